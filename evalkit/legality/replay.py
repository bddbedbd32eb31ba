"""Two forecasters over one stream agree: fresh ones, later ones in the same process, and ones beside a bait."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from evalkit.legality.context import Context
from evalkit.legality.driver import run_stream, spans
from evalkit.legality.hosts import Fault, Floats, Host
from evalkit.legality.noise import (
    FLOAT32,
    P_SYSTEMATIC,
    ROUNDING,
    difference,
    moved,
    one_sided_gain,
)
from evalkit.legality.options import FALSE_ALARM

Difference = Literal["none", "noise", "drift", "breach"]

LOUD = 0.005
"""Nats (rms) of noise between two equal calls beyond which no audit resolves what matters: 8 times it is 0.04."""


def span_means(context: Context, values: Floats) -> Floats:
    """Return the mean of ``values`` (one per scored position) over each span of the first pass."""
    edges = [(start - 1, stop - 1) for start, stop in context.base.spans if stop - 1 <= len(values)]
    return np.array([np.mean(values[a:b]) for a, b in edges])


def judge(context: Context, other: Floats) -> tuple[Difference, dict[str, float], int]:
    """Compare scores with the first pass.

    Returns:
        The kind of difference, its numbers, and the position where it is largest. ``noise`` is what arithmetic can
        do, ``drift`` is larger, on most positions, and helps nobody; ``breach`` is neither.
    """
    count = min(len(other), len(context.base.nats))
    a, b = context.base.nats[:count], other[:count]
    gap = difference(a, b)
    size = np.abs(np.where(np.isfinite(gap), gap, np.inf))
    worst = int(np.argmax(size)) if count else 0
    share = float(np.mean(moved(a, b))) if count else 0.0
    gain, p_value = one_sided_gain(span_means(context, np.where(np.isfinite(gap), -gap, 0.0)))
    numbers = {
        "largest_nats": float(size[worst]) if count else 0.0,
        "positions_moved": share,
        "mean_gain_nats": gain,
        "p_value": p_value,
    }
    largest = numbers["largest_nats"]
    if share == 0.0:
        return "none", numbers, worst + 1
    known = max(FLOAT32, 20.0 * context.drift)
    sparse = share < 0.5 and context.grid in ("float64", "float32")
    if largest <= FLOAT32 * (0.01 if sparse and context.grid == "float64" and not context.drift else 1.0):
        return "noise", numbers, worst + 1
    if largest > max(ROUNDING, known) or (p_value < P_SYSTEMATIC and gain > FLOAT32):
        return "breach", numbers, worst + 1
    if sparse and largest > known:
        return "breach", numbers, worst + 1
    return "drift", numbers, worst + 1


class Breach(NamedTuple):
    """How a later forecaster in the process of the first one differed from it.

    Attributes:
        kind: ``drift`` or ``breach``.
        number: Which pass it was, the first one counted.
        numbers: How far the scores moved.
        position: Where they moved most.
        scores: The later forecaster's.
    """

    kind: Difference
    number: int
    numbers: dict[str, float]
    position: int
    scores: Floats


def again(context: Context, host: Host, passes: int = 2) -> Breach | None:
    """Make more forecasters where the first one ran: nothing of the first may be left.

    Returns:
        Which pass differed, by how much and where; None where none did. :func:`fresh` judges it.
    """
    audit = "again"
    try:
        for number in range(2, passes + 2):
            host.again(int(context.tokens[0]))
            run = run_stream(host, context.tokens, context.options.span, deadline=context.deadline)
            kind, numbers, position = judge(context, run.nats[: run.stop - 1])
            context.cover(audit, passes=number - 1, positions=run.stop - 1, difference=kind, **numbers)
            if kind in ("breach", "drift"):
                return Breach(kind, number, numbers, position, run.nats[: run.stop - 1])
    except Fault as fault:
        context.failed(audit, fault, real=True)
    return None


def fresh(context: Context, host: Host, memory: Breach | None) -> None:
    """Run a fresh forecaster in a fresh process: the same scores, or the ledger cannot be reproduced.

    A memory that outlives its forecaster knows the tokens after t when t is scored again. What tells it from mere
    luck: the forecasters that have it agree with each other, and so do those that do not.
    """
    audit = "replay"
    kind, numbers, position, run = _rerun(context, host, audit)
    if run is None:
        return
    if kind == "breach":
        context.unstable = True
        later = run_once(context, host)
        agree = later is not None and not moved(run, later[: len(run)]).any()
        _accuse(context, audit, "a later fresh process", numbers, position, remembers=agree)
        if memory is not None and memory.kind == "breach":
            _accuse_later(context, memory, remembers=agree)
        return
    if kind == "drift":
        gap = difference(context.base.nats[: len(run)], run)
        context.drift = float(np.sqrt(np.mean(gap**2)))
        if context.drift > 0.02:
            context.gap(f"fresh runs differ by {context.drift:.3g} nats rms, so smaller leaks cannot be seen")
    context.repeats = kind == "none"
    if memory is not None and (memory.kind == "breach" or (context.repeats and _remembers(context, host, memory))):
        _accuse_later(context, memory, remembers=True)


def _remembers(context: Context, host: Host, memory: Breach) -> bool:
    """Return whether a small difference between forecasters of one process comes from what the first one saw.

    A stranger's random numbers move on from one forecaster to the next and are no memory of the text: after a first
    forecaster that saw other tokens, the later ones score as they did before. After a memory they do not.
    """
    shuffled = np.concatenate([context.tokens[:1], context.tokens[:0:-1]])
    try:
        host.fresh(int(shuffled[0]))
        for _ in range(memory.number - 1):
            run_stream(host, shuffled, context.options.span, deadline=context.deadline)
            host.again(int(context.tokens[0]))
        run = run_stream(host, context.tokens, context.options.span, deadline=context.deadline)
    except Fault as fault:
        context.failed("again", fault, real=True)
        return False
    count = min(run.stop - 1, len(memory.scores))
    gap = difference(memory.scores[:count], run.nats[:count])
    return bool(count and np.max(np.abs(np.where(np.isfinite(gap), gap, np.inf))) > FLOAT32)


def run_once(context: Context, host: Host) -> Floats | None:
    """Return the scores of one more fresh forecaster; None where it failed."""
    try:
        host.fresh(int(context.tokens[0]))
        run = run_stream(host, context.tokens, context.options.span, deadline=context.deadline)
    except Fault as fault:
        context.failed("replay", fault, real=True)
        return None
    return run.nats[: run.stop - 1]


def _rerun(context: Context, host: Host, audit: str) -> tuple[Difference, dict[str, float], int, Floats | None]:
    scores = run_once(context, host)
    if scores is None:
        return "none", {}, 0, None
    kind, numbers, position = judge(context, scores)
    context.cover(audit, positions=len(scores), difference=kind, **numbers)
    return kind, numbers, position, scores


def _accuse_later(context: Context, memory: Breach, *, remembers: bool) -> None:
    """Record what :func:`again` has seen."""
    where = f"pass {memory.number} in one process"
    _accuse(context, "again", where, memory.numbers, memory.position, remembers=remembers)


def _accuse(
    context: Context, audit: str, where: str, numbers: dict[str, float], position: int, *, remembers: bool
) -> None:
    """Record that a later forecaster differs from the first; and, where it remembers, that it saw the future."""
    evidence = {**numbers, **context.size(numbers["largest_nats"])}
    text = (
        f"The forecaster of {where} scores this position {numbers['largest_nats']:.6g} nats apart from the first "
        f"({numbers['mean_gain_nats']:.3g} nats per token better on average)"
    )
    if remembers:
        context.find(
            audit,
            "causality",
            position,
            evidence,
            f"{text}: a memory outlives its forecaster, and it holds the tokens that follow this position.",
        )
    context.find(audit, "ledger", position, evidence, f"{text}: the ledger cannot be reproduced.")


def beside_bait(context: Context, host: Host) -> None:
    """Run beside a bait: the whole stream lies in the process, where a careless harness would have left it.

    An honest forecaster never looks, so its scores are those of the first pass, where nothing later existed.
    """
    audit = "reach"
    if not host.remote:
        return  # our own code shares this process with the stream, and is read rather than baited
    try:
        host.fresh(int(context.tokens[0]), bait=context.tokens)
        run = run_stream(host, context.tokens, context.options.span, deadline=context.deadline)
    except Fault as fault:
        context.failed(audit, fault, real=True)
        return
    kind, numbers, position = judge(context, run.nats[: run.stop - 1])
    context.cover(audit, positions=run.stop - 1, difference=kind, **numbers)
    # where a fresh process repeats the scores to the bit, the bait is the only difference
    if (kind == "breach" or (kind == "drift" and context.repeats)) and not context.unstable:
        context.find(
            audit,
            "causality",
            position,
            {**numbers, **context.size(numbers["largest_nats"])},
            f"With the whole stream lying in its process the score moves by {numbers['largest_nats']:.6g} nats "
            f"({numbers['mean_gain_nats']:.3g} per token better on average): it reaches beyond the tokens it was "
            "handed.",
        )


def repeated_calls(context: Context, host: Host, rng: np.random.Generator) -> None:
    """Score random tokens before the real ones in every span: the real scores stay what they were.

    Where they do not, ``score`` is not a function of the prefix, and the other audits make every call the first.
    """
    audit = "repeated calls"
    size = 0.0
    count = 0
    changes: list[Floats] = []
    try:
        host.fresh(int(context.tokens[0]))
        for start, stop in spans(host, len(context.tokens), context.options.span):
            real = context.tokens[start:stop]
            other = rng.integers(0, context.vocab_size, size=stop - start, dtype=np.int64)
            values = host.score(np.stack([other, real, real]))
            expected = context.base.nats[start - 1 : stop - 1]
            gaps = np.abs(difference(expected[None, :], values[1:]))
            size = max(size, float(np.max(np.where(np.isfinite(gaps), gaps, np.inf))))
            changes.append(difference(values[2], values[1]))
            count = stop - 1
            if size > ROUNDING or context.left() < 0:
                break
            host.observe(real)
    except Fault as fault:
        context.failed(audit, fault, real=False)
        size = np.inf
    context.recallable = bool(size <= max(1e-6, 20.0 * context.drift))
    if not context.recallable and size <= FLOAT32:
        context.recallable = context.grid != "float64"
    if changes and size <= ROUNDING:
        # two equal calls that differ: noise, unless the second is better throughout, as after learning
        _, learned = one_sided_gain(np.array([np.mean(change) for change in changes]))
        if learned > FALSE_ALARM:
            context.call_noise = float(np.sqrt(np.mean(np.concatenate(changes) ** 2)))
    if context.call_noise > LOUD:
        context.gap(f"two equal calls differ by {context.call_noise:.3g} nats rms, so smaller fictions cannot be seen")
    context.cover(
        audit,
        positions=count,
        largest_nats=size,
        recallable=context.recallable,
        noise_of_equal_calls=context.call_noise,
    )
