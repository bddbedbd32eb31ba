"""Streams from a known source, whole and salted into the real one: no legal code beats the source by much."""

from __future__ import annotations

import time

import numpy as np

from evalkit.legality.context import Context
from evalkit.legality.driver import advance, run_stream, spans
from evalkit.legality.evalue import Evidence, bounded_bets, restarted
from evalkit.legality.hosts import Fault, Host, Ids
from evalkit.legality.options import FALSE_ALARM
from evalkit.legality.sources import BigramSource, Source, UniformSource

LEVEL = FALSE_ALARM / 5
"""Five such tests run in one audit at most; together they stay below the stated probability of a false alarm."""


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


def salt(row: Ids, before: int, source: BigramSource, rng: np.random.Generator) -> list[tuple[int, float]]:
    """Replace one token in twelve of ``row`` by draws from a known q; return their places and ``q`` of each.

    q is half uniform and half the bigram source given the token before: no ratio p/q exceeds 2V.
    """
    drawn = []
    for offset in range(int(rng.integers(12)), len(row), 12):
        previous = int(row[offset - 1]) if offset else before
        token = int(rng.integers(source.vocab_size)) if rng.random() < 0.5 else source.draw(previous, rng)
        row[offset] = token
        drawn.append((offset, 0.5 / source.vocab_size + 0.5 * source.probability(previous, token)))
    return drawn


def deep_salting(context: Context, host: Host, seconds: float, rng: np.random.Generator) -> None:
    """Salt one token in twelve in a single long pass: a mixer may turn to fiction only after thousands of tokens."""
    audit = "deep salting"
    tokens = context.stream.copy()
    source = BigramSource.fitted(context.stream, context.vocab_size)
    drawn = salt(tokens[1:], int(tokens[0]), source, rng)
    try:
        host.fresh(int(tokens[0]))
        run = run_stream(host, tokens, context.options.span, deadline=time.monotonic() + seconds)
    except Fault as fault:
        context.failed(audit, fault, real=False)
        return
    with np.errstate(over="ignore"):
        p = np.exp(-run.nats[: run.stop - 1])
    pairs = [(offset, min(float(p[offset]) / q, 1e12)) for offset, q in drawn if offset < len(p)]
    pairs = [(offset, ratio) for offset, ratio in pairs if not np.isnan(ratio)]
    if not pairs:
        return
    values = np.array([ratio for _, ratio in pairs])
    evidence = bounded_bets(values)
    facts = {
        "positions": len(values),
        "last": pairs[-1][0] + 1,
        "mean_sum": float(values.mean()),
        "standard_error": float(values.std() / np.sqrt(len(values))),
        "mean_nats": max(evidence.nats, 0.0),
    }
    report(context, audit, evidence, pairs[min(evidence.at, len(pairs) - 1)][0] + 1, facts)


def salted_rows(context: Context, host: Host, seconds: float, rng: np.random.Generator) -> None:
    """Salt one token in twelve, again and again, in spans that are otherwise real: for dear calls.

    One call gives a draw of ``p(v)/q(v)`` at every salted position of its span, where a full sum takes a call for
    every token. The contexts stay close to the real ones, so a fiction shows at its real size.
    """
    audit = "salted rows"
    deadline = time.monotonic() + seconds
    source = BigramSource.fitted(context.tokens, context.vocab_size)
    ratios: list[float] = []
    places: list[int] = []
    try:
        host.fresh(int(context.tokens[0]))
        per_row = context.base.seconds / max(len(context.base.spans), 1)
        for number, (start, stop) in enumerate(spans(host, len(context.tokens), context.options.span)):
            left = deadline - time.monotonic()
            if left < 0:
                break
            spans_left = max(len(context.base.spans) - number, 1)
            real = context.tokens[start:stop]
            rows = np.repeat(real[None, :], max(1, min(64, int(left / spans_left / max(per_row, 1e-6)) - 1)), axis=0)
            for row in rows:
                drawn = salt(row, int(context.tokens[start - 1]), source, rng)
                with np.errstate(over="ignore"):
                    p = np.exp(-host.score(row[None, :], isolated=not context.recallable)[0])
                ratios.extend(min(float(p[offset]) / q, 1e12) for offset, q in drawn if not np.isnan(p[offset]))
                places.extend(start + offset for offset, _ in drawn if not np.isnan(p[offset]))
            advance(host, real)
    except Fault as fault:
        context.failed(audit, fault, real=False)
    if not ratios:
        return
    values = np.array(ratios)
    evidence = bounded_bets(values)
    facts = {
        "positions": len(set(places)),
        "draws": len(values),
        "mean_sum": float(values.mean()),
        "standard_error": float(values.std() / np.sqrt(len(values))),
        "mean_nats": max(evidence.nats, 0.0),
    }
    report(context, audit, evidence, places[min(evidence.at, len(places) - 1)], facts)
