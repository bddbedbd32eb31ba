"""Streams from a known source, whole and salted into the real one: no legal code beats the source by much."""

from __future__ import annotations

import math
import time

import numpy as np

from evalkit.legality.driver import scores_afresh, spans, walk
from evalkit.legality.evalue import Evidence, bounded_bets, restarted
from evalkit.legality.hosts import Fault, Floats, Host, Ids, LocalHost
from evalkit.legality.options import FALSE_ALARM, AuditOptions
from evalkit.legality.outcome import Notes, Outcome
from evalkit.legality.sources import BigramSource, Source, UniformSource
from evalkit.legality.subject import Repeatability, Subject
from evalkit.plumbing.constants import DEEP_TOKENS

LEVEL = FALSE_ALARM / 7
"""Seven such tests run in one audit at most; together they stay below the stated probability of a false alarm."""

SOURCE, SALTING = "known source", "salting"

EVERY = 12
"""One token in so many is salted where the context of the others is to stay close to the real one."""

LATE_TOKENS = 1024
"""Tokens that are scored after a warm-up."""

LATE_EVERY = 8
"""One of these in so many is salted."""


def report(notes: Notes, options: AuditOptions, evidence: Evidence, position: int, facts: dict[str, float]) -> None:
    """Note the p-value, and a finding where it is below the level."""
    notes.cover(log_e=evidence.log_e, p_value=evidence.p_value, level=LEVEL, **facts)
    if evidence.p_value < LEVEL:
        notes.find(
            "normalisation",
            position,
            {"p_value": evidence.p_value, "log_e": evidence.log_e, **facts, **options.size(facts["mean_nats"])},
            f"A legal code reaches this with probability at most {evidence.p_value:.3g}: its scores beat the known "
            f"source by {facts['mean_nats']:.4g} nats per token.",
        )


def whole_stream(subject: Subject, host: Host, kind: str, rng: np.random.Generator) -> Outcome:
    """Score a stream drawn from a uniform or a text-like source with known log-probabilities."""
    notes = Notes(f"{SOURCE} ({kind})")
    source: Source
    if kind == "uniform":
        source = UniformSource(subject.vocab_size)
    else:
        source = BigramSource.fitted(subject.tokens, subject.vocab_size)
    tokens, log_q = source.sample(len(subject.tokens), int(subject.tokens[0]), rng)
    nats = scores_afresh(notes, host, tokens, subject.options, subject.deadline)
    count = len(nats)
    notes.cut(count, len(tokens) - 1)
    if not count:
        return notes.outcome()
    if np.isnan(nats).any():
        where = int(np.flatnonzero(np.isnan(nats))[0]) + 1
        notes.find("ledger", where, {}, "The score of a valid token is not a number.")
        return notes.outcome()
    evidence = restarted(-nats - log_q[:count])
    length = max(evidence.at - evidence.start + 1, 1)
    facts = {
        "positions": count,
        "mean_nats": evidence.nats / length,
        "from": evidence.start + 1,
        "to": evidence.at + 2,
        "entropy_nats": float(-np.mean(log_q[:count])),
        "mean_score_nats": float(np.mean(nats)),
    }
    report(notes, subject.options, evidence, evidence.start + 1, facts)
    return notes.outcome()


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
    reached = places < len(nats)
    places, q = places[reached], q[reached]
    with np.errstate(over="ignore"):
        ratios = np.minimum(np.exp(-nats[places]) / q, 1e12)
    scored = ~np.isnan(ratios)
    return ratios[scored], places[scored]


def weigh(notes: Notes, options: AuditOptions, ratios: Floats, places: Ids) -> None:
    """Note what the draws say: given any prefix, p(v)/q(v) has mean ``sum_v p(v)``, and a code's is at most 1."""
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
    report(notes, options, evidence, int(places[min(evidence.at, len(places) - 1)]), facts)


def salted_stream(
    subject: Subject, host: Host, rng: np.random.Generator, *, deep_seconds: float | None = None
) -> Outcome:
    """Replace one token in four of the audited text by draws from a known q, and score what results in one pass.

    With ``deep_seconds`` the pass goes on through the stream beyond, for so long at most, and one token in twelve is
    replaced: a mixer may turn to fiction only after thousands of tokens.
    """
    notes = Notes(SALTING if deep_seconds is None else "deep salting")
    tokens, every, deadline = subject.tokens.copy(), 4, subject.deadline
    if deep_seconds is not None:
        tokens, every = subject.stream[:DEEP_TOKENS].copy(), EVERY
        deadline = time.monotonic() + deep_seconds
    source = BigramSource.fitted(tokens, subject.vocab_size)
    places = np.arange(int(rng.integers(every)), len(tokens) - 1, every)
    q = salt(tokens[1:], int(tokens[0]), source, places, rng)
    nats = scores_afresh(notes, host, tokens, subject.options, deadline)
    notes.cut(len(nats), len(tokens) - 1)
    ratios, places = ratios_of(nats, places, q)
    weigh(notes, subject.options, ratios, places + 1)
    return notes.outcome()


def salted_rows(
    subject: Subject, host: Host, known: Repeatability, most: int, seconds: float, rng: np.random.Generator
) -> tuple[Outcome, Ids]:
    """Salt one token in twelve, other ones in every row, in up to ``most`` rows of each span that are otherwise real.

    One call gives a draw of ``p(v)/q(v)`` at every salted position of its span, where a full sum takes a call for
    every token; twelve rows give one at every position. The contexts stay close to the real ones, so a fiction shows
    at its real size. Where p(v) is far above q(v) the full sums are asked for first.

    Returns:
        What the audit says, and positions where tokens that did not occur were given much, the most suspect first.
    """
    notes = Notes("salted rows")
    deadline = time.monotonic() + seconds
    source = BigramSource.fitted(subject.tokens, subject.vocab_size)
    ratios: list[Floats] = []
    places: list[Ids] = []
    done = 0  # rows times positions
    try:
        for start, stop in walk(host, subject.tokens, subject.options.span):
            left = deadline - time.monotonic()
            if left < 0:
                break
            real = subject.tokens[start:stop]
            count = max(1, int(min(most, left / max(subject.base.seconds_from(start), 1e-6) - 1)))
            rows = np.repeat(real[None, :], count, axis=0)
            offsets = [np.arange(number % EVERY, len(real), EVERY) for number in range(count)]
            before = int(subject.tokens[start - 1])
            q = [salt(row, before, source, own, rng) for row, own in zip(rows, offsets, strict=True)]
            scores = host.score(rows, isolated=not known.in_place)
            for nats, own, own_q in zip(scores, offsets, q, strict=True):
                found, where = ratios_of(nats, own, own_q)
                ratios.append(found)
                places.append(start + where)
            done += count * len(real)
    except Fault as fault:
        notes.failed(fault, real=False)
    notes.cut(done // most, len(subject.base.nats))
    if not ratios:
        return notes.outcome(), np.zeros(0, np.int64)
    every_ratio, every_place = np.concatenate(ratios), np.concatenate(places)
    weigh(notes, subject.options, every_ratio, every_place)
    ranked = every_place[np.argsort(-every_ratio, kind="stable")]
    first = np.sort(np.unique(ranked, return_index=True)[1])
    return notes.outcome(), ranked[first]


def after_warm_up(host: LocalHost, stream: Ids, options: AuditOptions) -> Outcome | None:
    """Estimate what the probabilities sum to where a forecaster of our own says that its warm-up is over.

    It learns that much text unscored, which is quick, and is then scored once on text in which every eighth token is
    drawn uniformly: at those, V p(v) has mean sum_v p(v), at most 1 for a code. None where there is no warm-up.
    """
    notes = Notes("salting after warm-up")
    host.fresh(int(stream[0]))
    if not host.warm_up_tokens:
        return None
    begin = host.warm_up_tokens + 1
    tokens = np.resize(stream, begin + LATE_TOKENS)  # a short stream is gone through again
    places = np.arange(begin + LATE_EVERY - 1, len(tokens), LATE_EVERY)
    tokens[places] = np.random.default_rng([options.seed, 17]).integers(0, host.vocab_size, len(places))
    nats = np.full(len(tokens), np.nan)
    try:
        for start, stop in spans(host, len(tokens), options.span, np.array([begin])):
            if start >= begin:
                nats[start:stop] = host.score(tokens[None, start:stop])[0]
            host.observe(tokens[start:stop])
    except Fault as fault:
        notes.failed(fault, real=True)
        notes.cut(0, len(places), needed=1)
        return notes.outcome()
    ratios = host.vocab_size * np.exp(-nats[places])
    evidence = bounded_bets(ratios)
    mean_sum, error = float(ratios.mean()), float(ratios.std() / math.sqrt(len(ratios)))
    facts = {
        "positions": len(places),
        "warm_up_tokens": host.warm_up_tokens,
        "mean_sum": mean_sum,
        "standard_error": error,
        "p_value": evidence.p_value,
        **options.size(max(math.log(max(mean_sum, 1e-300)), 0.0)),
    }
    notes.cover(**facts)
    if evidence.p_value < LEVEL:
        per_byte = f"{facts['bpb']:.3f} bits per byte" if facts["bpb"] is not None else f"{facts['nats']:.3f} nats"
        notes.find(
            "normalisation",
            int(places[0]),
            facts,
            f"After its warm-up of {host.warm_up_tokens:,} tokens the probabilities sum to {mean_sum:.2f} on average "
            f"(+-{error:.2f}), where 1 is the most that a code can have: about {per_byte} of the score are fiction "
            f"(p = {evidence.p_value:.2g}).",
        )
    return notes.outcome()
