"""Streams from a known source, whole and salted into the real one: no legal code beats the source by much."""

from __future__ import annotations

import time

import numpy as np

from evalkit.legality.context import Context
from evalkit.legality.driver import advance, run_stream, spans
from evalkit.legality.evalue import Evidence, bounded_bets, restarted
from evalkit.legality.hosts import Fault, Floats, Host, Ids
from evalkit.legality.options import FALSE_ALARM
from evalkit.legality.sources import BigramSource, Source, UniformSource

LEVEL = FALSE_ALARM / 6
"""Six such tests run in one audit at most; together they stay below the stated probability of a false alarm."""

EVERY = 12
"""One token in so many is salted where the context of the others is to stay close to the real one."""


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


def salt(row: Ids, before: int, source: BigramSource, places: Ids, rng: np.random.Generator) -> Floats:
    """Replace the tokens of ``row`` at ``places`` by draws from a known q; return ``q`` of each.

    q is half uniform and half the bigram source given the token before: no ratio p/q exceeds 2V.
    """
    q = np.empty(len(places))
    for index, offset in enumerate(places.tolist()):
        previous = int(row[offset - 1]) if offset else before
        token = int(rng.integers(source.vocab_size)) if rng.random() < 0.5 else source.draw(previous, rng)
        row[offset] = token
        q[index] = 0.5 / source.vocab_size + 0.5 * source.probability(previous, token)
    return q


def ratios_of(nats: Floats, places: Ids, q: Floats) -> tuple[Floats, Ids]:
    """Return p/q of the salted tokens that have a score, and where they are."""
    with np.errstate(over="ignore"):
        ratios = np.minimum(np.exp(-nats[places]) / q, 1e12)
    scored = ~np.isnan(ratios)
    return ratios[scored], places[scored]


def weigh(context: Context, audit: str, ratios: Floats, places: Ids) -> None:
    """Report what the draws say: given any prefix, p(v)/q(v) has mean ``sum_v p(v)``, and a code's is at most 1."""
    if len(ratios) == 0:
        return
    evidence = bounded_bets(ratios)
    facts = {
        "positions": len(np.unique(places)),
        "draws": len(ratios),
        "last": int(places.max()),
        "mean_sum": float(np.mean(ratios)),
        "standard_error": float(np.std(ratios) / np.sqrt(len(ratios))),
        "mean_nats": max(evidence.nats, 0.0),
    }
    report(context, audit, evidence, int(places[min(evidence.at, len(places) - 1)]), facts)


def salted_stream(context: Context, host: Host, rng: np.random.Generator, *, deep_seconds: float | None = None) -> None:
    """Replace one token in four of the audited text by draws from a known q, and score what results in one pass.

    With ``deep_seconds`` the pass goes on through the whole stream for so long, and one token in twelve is replaced: a
    mixer may turn to fiction only after thousands of tokens.
    """
    deep = deep_seconds is not None
    audit = "deep salting" if deep else "salting"
    tokens = context.tokens.copy()
    if deep_seconds is not None:
        per_second = len(context.base.nats) / max(context.base.seconds, 1e-6)
        tokens = context.stream[: len(tokens) + int(2 * deep_seconds * per_second)].copy()
    source = BigramSource.fitted(tokens, context.vocab_size)
    every = EVERY if deep else 4
    places = np.arange(int(rng.integers(every)), len(tokens) - 1, every)
    q = salt(tokens[1:], int(tokens[0]), source, places, rng)
    deadline = context.deadline if deep_seconds is None else time.monotonic() + deep_seconds
    try:
        host.fresh(int(tokens[0]))
        run = run_stream(host, tokens, context.options.span, deadline=deadline)
    except Fault as fault:
        context.failed(audit, fault, real=False)
        return
    ratios, places = ratios_of(run.nats, places, q)
    weigh(context, audit, ratios, places + 1)


def salted_rows(context: Context, host: Host, seconds: float, most: int, rng: np.random.Generator) -> None:
    """Salt one token in twelve, other ones in every row, in up to ``most`` rows of each span that are otherwise real.

    One call gives a draw of ``p(v)/q(v)`` at every salted position of its span, where a full sum takes a call for
    every token; twelve rows give one at every position. The contexts stay close to the real ones, so a fiction shows
    at its real size. Where p(v) is far above q(v) the full sums are asked for first.
    """
    audit = "salted rows"
    deadline = time.monotonic() + seconds
    source = BigramSource.fitted(context.tokens, context.vocab_size)
    ratios: list[Floats] = []
    places: list[Ids] = []
    try:
        host.fresh(int(context.tokens[0]))
        per_row = context.base.call_seconds
        for number, (start, stop) in enumerate(spans(host, len(context.tokens), context.options.span)):
            left = deadline - time.monotonic()
            if left < 0:
                break
            spans_left = max(len(context.base.spans) - number, 1)
            real = context.tokens[start:stop]
            count = max(1, min(most, int(left / spans_left / max(per_row, 1e-6)) - 1))
            rows = np.repeat(real[None, :], count, axis=0)
            offsets = [np.arange(number % EVERY, len(real), EVERY) for number in range(count)]
            before = int(context.tokens[start - 1])
            q = [salt(row, before, source, own, rng) for row, own in zip(rows, offsets, strict=True)]
            scores = host.score(rows, isolated=not context.recallable)
            for nats, own, own_q in zip(scores, offsets, q, strict=True):
                found, where = ratios_of(nats, own, own_q)
                ratios.append(found)
                places.append(start + where)
            advance(host, real)
    except Fault as fault:
        context.failed(audit, fault, real=False)
    if ratios:
        every_ratio, every_place = np.concatenate(ratios), np.concatenate(places)
        ranked = every_place[np.argsort(-every_ratio, kind="stable")]
        context.suspects = ranked[np.sort(np.unique(ranked, return_index=True)[1])]
        weigh(context, audit, every_ratio, every_place)
