"""Streams from a known source, whole and salted into the real one: no legal code beats the source by much."""

from __future__ import annotations

import numpy as np

from evalkit.legality.context import Context
from evalkit.legality.driver import run_stream
from evalkit.legality.evalue import Evidence, bounded_bets, restarted
from evalkit.legality.hosts import Fault, Host
from evalkit.legality.options import FALSE_ALARM
from evalkit.legality.sources import BigramSource, Source, UniformSource

LEVEL = FALSE_ALARM / 4
"""Three such tests run in one audit; together they stay below the stated probability of a false alarm."""


def report(context: Context, audit: str, evidence: Evidence, position: int, facts: dict[str, float]) -> None:
    """Record the p-value, and a finding where it is below the level."""
    context.cover(audit, log_e=evidence.log_e, p_value=evidence.p_value, level=LEVEL, **facts)
    if evidence.p_value < LEVEL:
        context.find(
            audit,
            "normalisation",
            position,
            {
                "p_value": evidence.p_value,
                "log_e": evidence.log_e,
                **facts,
                **context.size(facts["mean_nats"]),
            },
            f"A legal code reaches this with probability at most {evidence.p_value:.3g}: its scores beat the known "
            f"source by {facts['mean_nats']:.4g} nats per token.",
        )


def whole_stream(context: Context, host: Host, kind: str, rng: np.random.Generator) -> None:
    """Score a stream drawn from a uniform or a text-like source with known log-probabilities."""
    audit = f"known source ({kind})"
    source: Source
    if kind == "uniform":
        source = UniformSource(context.vocab_size)
    else:
        source = BigramSource.fitted(context.tokens, context.vocab_size)
    tokens, log_q = source.sample(len(context.tokens), int(context.tokens[0]), rng)
    try:
        host.fresh(int(tokens[0]))
        run = run_stream(host, tokens, context.options.span, deadline=context.deadline)
    except Fault as fault:
        context.failed(audit, fault, real=False)
        return
    count = run.stop - 1
    if np.isnan(run.nats[:count]).any():
        where = int(np.flatnonzero(np.isnan(run.nats[:count]))[0]) + 1
        context.find(audit, "ledger", where, {}, "The score of a valid token is not a number.")
        return
    ratios = -run.nats[:count] - log_q[:count]
    evidence = restarted(ratios)
    length = max(evidence.at - evidence.start + 1, 1)
    facts = {
        "positions": count,
        "mean_nats": evidence.nats / length,
        "from": evidence.start + 1,
        "to": evidence.at + 2,
        "entropy_nats": float(-np.mean(log_q[:count])),
        "mean_score_nats": float(np.mean(run.nats[:count])),
    }
    report(context, audit, evidence, evidence.start + 1, facts)


def salted_stream(context: Context, host: Host, rng: np.random.Generator) -> None:
    """Replace about one token in four of the real stream by draws from a known q, and score what results.

    Given any prefix, p(v)/q(v) at a salted position has mean sum_v p(v): an estimate in place of what the
    probabilities sum to, on text that is otherwise real.
    """
    audit = "salting"
    source = BigramSource.fitted(context.tokens, context.vocab_size)
    tokens = context.tokens.copy()
    salted = np.flatnonzero(rng.random(len(tokens)) < 0.25)
    salted = salted[salted > 0]
    # half the bigram-free frequencies, half uniform: no ratio p/q exceeds 2V
    q = 0.5 * source.unigram + 0.5 / context.vocab_size
    tokens[salted] = np.minimum(np.searchsorted(np.cumsum(q), rng.random(len(salted))), context.vocab_size - 1)
    try:
        host.fresh(int(tokens[0]))
        run = run_stream(host, tokens, context.options.span, deadline=context.deadline)
    except Fault as fault:
        context.failed(audit, fault, real=False)
        return
    salted = salted[salted < run.stop]
    if len(salted) == 0:
        return
    with np.errstate(over="ignore"):
        ratios = np.exp(-run.nats[salted - 1]) / q[tokens[salted]]
    ratios = np.where(np.isnan(ratios), 0.0, np.minimum(ratios, 1e12))
    evidence = bounded_bets(ratios)
    error = float(np.std(ratios) / np.sqrt(len(ratios)))
    facts = {
        "positions": len(salted),
        "mean_sum": float(np.mean(ratios)),
        "standard_error": error,
        "mean_nats": max(evidence.nats, 0.0),
    }
    report(context, audit, evidence, int(salted[min(evidence.at, len(salted) - 1)]), facts)
