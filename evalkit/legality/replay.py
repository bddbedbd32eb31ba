"""Two forecasters over one stream agree: fresh ones, later ones in the same process, and ones beside a bait."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evalkit.legality.driver import Run, run_stream, scores_afresh, spans
from evalkit.legality.hosts import Fault, Floats, Host, Ids
from evalkit.legality.noise import (
    FLOAT32,
    P_SYSTEMATIC,
    ROUNDING,
    difference,
    moved,
    one_sided_gain,
)
from evalkit.legality.options import FALSE_ALARM
from evalkit.legality.outcome import Notes, Outcome
from evalkit.legality.subject import Repeatability, Subject

LOUD = 0.005
"""Nats (rms) of noise between two equal calls beyond which no audit resolves what matters: 8 times it is 0.04."""

SAME_PROCESS, REPLAY, CALLS, BAIT = "same process", "replay", "repeated calls", "bait"

LATER_PASSES = 2
"""Forecasters that are made where the first one ran."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far a forecaster's scores lie from those of the first pass.

    Attributes:
        kind: ``noise`` is what arithmetic can do, ``drift`` is larger, on most positions, and helps nobody; ``breach``
            is neither.
        numbers: Largest difference, share of the positions moved, mean gain and its p-value.
        position: Where the difference is largest.
        scores: The forecaster's, nats.
    """

    kind: Literal["none", "noise", "drift", "breach"]
    numbers: dict[str, float]
    position: int
    scores: Floats


@dataclass(frozen=True, kw_only=True)
class LaterForecasters:
    """What forecasters that were made where the first one ran did.

    Attributes:
        outcome: Of the audit; :func:`fresh` judges what differed.
        differs: The first of them that differed; None where none did.
        number: Which pass that was, the first one counted.
    """

    outcome: Outcome
    differs: Comparison | None = None
    number: int = 0


def span_means(base: Run, values: Floats) -> Floats:
    """Return the mean of ``values`` (one per scored position) over each span of the first pass."""
    edges = [(start - 1, stop - 1) for start, stop in base.spans if stop - 1 <= len(values)]
    return np.array([np.mean(values[a:b]) for a, b in edges])


def compare(subject: Subject, scores: Floats, drift: float = 0.0) -> Comparison:
    """Compare scores with the first pass; ``drift`` is how far fresh forecasters are known to lie apart, nats."""
    count = min(len(scores), len(subject.base.nats))
    a, b = subject.base.nats[:count], scores[:count]
    gap = difference(a, b)
    size = np.abs(np.where(np.isfinite(gap), gap, np.inf))
    worst = int(np.argmax(size)) if count else 0
    share = float(np.mean(moved(a, b))) if count else 0.0
    gain, p_value = one_sided_gain(span_means(subject.base, np.where(np.isfinite(gap), -gap, 0.0)))
    largest = float(size[worst]) if count else 0.0
    known = max(FLOAT32, 20.0 * drift)
    sparse = share < 0.5 and subject.grid in ("float64", "float32")
    kind: Literal["none", "noise", "drift", "breach"] = "drift"
    if share == 0.0:
        kind = "none"
    elif largest <= FLOAT32 * (0.01 if sparse and subject.grid == "float64" and not drift else 1.0):
        kind = "noise"
    elif largest > max(ROUNDING, known) or (p_value < P_SYSTEMATIC and gain > FLOAT32) or (sparse and largest > known):
        kind = "breach"
    numbers = {"largest_nats": largest, "positions_moved": share, "mean_gain_nats": gain, "p_value": p_value}
    return Comparison(kind=kind, numbers=numbers, position=worst + 1, scores=scores)


def run_from(subject: Subject, host: Host, tokens: Ids | None = None) -> Floats:
    """Return what the forecaster that ``host`` has just started scores, over the audited tokens or others."""
    tokens = subject.tokens if tokens is None else tokens
    return run_stream(host, tokens, subject.options.span, deadline=subject.deadline).nats


def later_forecasters(subject: Subject, host: Host) -> LaterForecasters:
    """Make more forecasters where the first one ran: nothing of the first may be left."""
    notes = Notes(SAME_PROCESS)
    planned, done = len(subject.base.nats), 0
    try:
        for number in range(2, LATER_PASSES + 2):
            host.another(int(subject.tokens[0]))
            seen = compare(subject, run_from(subject, host))
            done += len(seen.scores)
            notes.cover(passes=number - 1, positions=len(seen.scores), difference=seen.kind, **seen.numbers)
            if seen.kind in ("breach", "drift"):
                return LaterForecasters(outcome=notes.outcome(), differs=seen, number=number)
    except Fault as fault:
        notes.failed(fault, real=True)
    notes.cut(done, LATER_PASSES * planned, needed=1)
    return LaterForecasters(outcome=notes.outcome())


def fresh(subject: Subject, host: Host, later: LaterForecasters) -> tuple[list[Outcome], Repeatability]:
    """Run a fresh forecaster in a fresh process: the same scores, or the ledger cannot be reproduced.

    A memory that outlives its forecaster knows the tokens after t when t is scored again. What tells it from mere
    luck: the forecasters that have it agree with each other, and so do those that do not.
    """
    notes, later_notes = Notes(REPLAY), Notes(SAME_PROCESS)
    known = Repeatability()
    scores = scores_afresh(notes, host, subject.tokens, subject.options, subject.deadline, real=True)
    notes.cut(len(scores), len(subject.base.nats), needed=1)
    if len(scores):
        seen = compare(subject, scores)
        notes.cover(positions=len(scores), difference=seen.kind, **seen.numbers)
        drift = 0.0
        if seen.kind == "drift":
            gap = difference(subject.base.nats[: len(scores)], scores)
            drift = float(np.sqrt(np.mean(gap**2)))
        if drift > 0.02:
            notes.gap(f"fresh runs differ by {drift:.3g} nats rms, so smaller leaks cannot be seen")
        known = Repeatability(drift=drift, exact=seen.kind == "none", unstable=seen.kind == "breach")
        remembers = False
        if seen.kind == "breach":
            third = scores_afresh(notes, host, subject.tokens, subject.options, subject.deadline, real=True)
            remembers = bool(len(third)) and not moved(scores, third[: len(scores)]).any()
            _accuse(notes, subject, "a later fresh process", seen, remembers=remembers)
        if later.differs is not None:
            breach = later.differs.kind == "breach"
            if not known.unstable:
                remembers = breach or (known.exact and _remembers(later_notes, subject, host, later))
            if breach or (remembers and not known.unstable):
                where = f"pass {later.number} in one process"
                _accuse(later_notes, subject, where, later.differs, remembers=remembers)
    return [notes.outcome(), later_notes.outcome()], known


def _remembers(notes: Notes, subject: Subject, host: Host, later: LaterForecasters) -> bool:
    """Return whether a small difference between forecasters of one process comes from what the first one saw.

    A stranger's random numbers move on from one forecaster to the next and are no memory of the text: after a first
    forecaster that saw other tokens, the later ones score as they did before. After a memory they do not.
    """
    assert later.differs is not None
    shuffled = np.concatenate([subject.tokens[:1], subject.tokens[:0:-1]])
    try:
        host.fresh(int(shuffled[0]))
        for _ in range(later.number - 1):
            run_from(subject, host, shuffled)
            host.another(int(subject.tokens[0]))
        scores = run_from(subject, host)
    except Fault as fault:
        notes.failed(fault, real=True)
        notes.cut(0, len(subject.base.nats), needed=1)
        return False
    count = min(len(scores), len(later.differs.scores))
    gap = difference(later.differs.scores[:count], scores[:count])
    return bool(count and np.max(np.abs(np.where(np.isfinite(gap), gap, np.inf))) > FLOAT32)


def _accuse(notes: Notes, subject: Subject, where: str, seen: Comparison, *, remembers: bool) -> None:
    """Note that a later forecaster differs from the first; and, where it remembers, that it saw the future."""
    evidence = {**seen.numbers, **subject.options.size(seen.numbers["largest_nats"])}
    text = (
        f"The forecaster of {where} scores this position {seen.numbers['largest_nats']:.6g} nats apart from the first "
        f"({seen.numbers['mean_gain_nats']:.3g} nats per token better on average)"
    )
    if remembers:
        memory = "a memory outlives its forecaster, and it holds the tokens that follow this position"
        notes.find("causality", seen.position, evidence, f"{text}: {memory}.")
    notes.find("ledger", seen.position, evidence, f"{text}: the ledger cannot be reproduced.")


def beside_bait(subject: Subject, host: Host, known: Repeatability) -> Outcome:
    """Run beside a bait: the whole stream lies in the process, where a careless harness would have left it.

    An honest forecaster never looks, so its scores are those of the first pass, where nothing later existed. Only
    strangers are baited: our own code shares this process with the stream, and is read instead.
    """
    notes = Notes(BAIT)
    tokens = subject.tokens
    scores = scores_afresh(notes, host, tokens, subject.options, subject.deadline, real=True, bait=tokens)
    notes.cut(len(scores), len(subject.base.nats), needed=1)
    if not len(scores):
        return notes.outcome()
    seen = compare(subject, scores, known.drift)
    notes.cover(positions=len(seen.scores), difference=seen.kind, **seen.numbers)
    # where a fresh process repeats the scores to the bit, the bait is the only difference
    if (seen.kind == "breach" or (seen.kind == "drift" and known.exact)) and not known.unstable:
        notes.find(
            "causality",
            seen.position,
            {**seen.numbers, **subject.options.size(seen.numbers["largest_nats"])},
            f"With the whole stream lying in its process the score moves by {seen.numbers['largest_nats']:.6g} nats "
            f"({seen.numbers['mean_gain_nats']:.3g} per token better on average): it reaches beyond the tokens it was "
            "handed.",
        )
    return notes.outcome()


def repeated_calls(
    subject: Subject, host: Host, known: Repeatability, rng: np.random.Generator
) -> tuple[Outcome, Repeatability]:
    """Score random tokens before the real ones in every span: the real scores stay what they were.

    Where they do not, ``score`` is not a function of the prefix, and the other audits make every call the first.
    """
    notes = Notes(CALLS)
    size = 0.0
    count = 0
    changes: list[Floats] = []
    try:
        host.fresh(int(subject.tokens[0]))
        for start, stop in spans(host, len(subject.tokens), subject.options.span):
            real = subject.tokens[start:stop]
            other = rng.integers(0, subject.vocab_size, size=stop - start, dtype=np.int64)
            values = host.score(np.stack([other, real, real]))
            expected = subject.base.nats[start - 1 : stop - 1]
            gaps = np.abs(difference(expected[None, :], values[1:]))
            size = max(size, float(np.max(np.where(np.isfinite(gaps), gaps, np.inf))))
            changes.append(difference(values[2], values[1]))
            count = stop - 1
            if size > ROUNDING:
                break
            host.observe(real)
    except Fault as fault:
        notes.failed(fault, real=False)
        if fault.kind != "budget":
            size = np.inf
    if size <= ROUNDING:
        notes.cut(count, len(subject.base.nats), needed=1)
    in_place = bool(size <= max(1e-6, 20.0 * known.drift)) or (size <= FLOAT32 and subject.grid != "float64")
    noise = 0.0
    if changes and size <= ROUNDING:
        # two equal calls that differ: noise, unless the second is better throughout, as after learning
        _, learned = one_sided_gain(np.array([np.mean(change) for change in changes]))
        if learned > FALSE_ALARM:
            noise = float(np.sqrt(np.mean(np.concatenate(changes) ** 2)))
    if noise > LOUD:
        notes.gap(f"two equal calls differ by {noise:.3g} nats rms, so smaller fictions cannot be seen")
    notes.cover(positions=count, largest_nats=size, repeatable=in_place, noise_of_equal_calls=noise)
    return notes.outcome(), replace(known, in_place=in_place, call_noise=noise)
