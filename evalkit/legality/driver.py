"""Takes a forecaster through a stream: score a span, record it, let it be observed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from evalkit.legality.hosts import Fault, Floats, Host, Ids
from evalkit.legality.options import AuditOptions
from evalkit.legality.outcome import Notes
from evalkit.plumbing.errors import ForecasterError
from evalkit.prequential import spans as pattern

AFFORDED = 256
"""Positions that a call may always ask for, however long it takes."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one pass over a stream recorded.

    Attributes:
        nats: Score of position ``1 + i`` at index ``i``, of those that the pass got to.
        spans: The spans ``(start, stop)`` that were scored.
        score_seconds: What each call of ``score`` took.
        seconds: Wall time of the pass.
    """

    nats: Floats
    spans: tuple[tuple[int, int], ...]
    score_seconds: tuple[float, ...] = ()
    seconds: float = 0.0

    def seconds_from(self, start: int) -> float:
        """Return what the calls of ``score`` took together from the span that begins at ``start``."""
        return sum(took for (first, _), took in zip(self.spans, self.score_seconds, strict=True) if first >= start)


def spans(host: Host, end: int, span: int, cuts: Ids | None = None) -> Iterator[tuple[int, int]]:
    """Yield the spans of :func:`evalkit.prequential.spans.spans` for the forecaster of ``host``.

    The caller must observe each span before asking for the next.

    Raises:
        Fault: the forecaster named a boundary that is no later position.
    """
    try:
        yield from pattern.spans(end, span, lambda _: host.boundary(), cuts=() if cuts is None else cuts.tolist())
    except ForecasterError as error:
        raise Fault("protocol", str(error)) from error


def walk(host: Host, tokens: Ids, span: int, cuts: Ids | None = None) -> Iterator[tuple[int, int]]:
    """Start a forecaster and yield the spans of ``tokens``, each in the state that the ledger's own call met.

    When the caller asks for the next one, the span is done with as the ledger does: scored as it is, then observed.
    """
    host.fresh(int(tokens[0]))
    for start, stop in spans(host, len(tokens), span, cuts):
        yield start, stop
        host.score(tokens[None, start:stop])
        host.observe(tokens[start:stop])


def affordable(host: Host, span: Ids, seconds: float) -> int:
    """Return how many positions of ``span`` a call can score in about ``seconds``, at least :data:`AFFORDED`.

    Found by calls that double in length. Only a forecaster of our own is asked so: its calls may be repeated.
    """
    length = AFFORDED
    if host.remote or not math.isfinite(seconds) or len(span) <= length:
        return len(span)
    host.score(span[None, :1])  # a first call may compile or load what the others use
    while length < len(span):
        began = time.monotonic()
        host.score(span[None, :length])
        took = time.monotonic() - began
        if 2 * took > seconds:
            return min(int(length * max(seconds / took, 1.0)), len(span))
        length *= 2
    return len(span)


def run_stream(
    host: Host,
    tokens: Ids,
    span: int,
    *,
    deadline: float = math.inf,
    allowance: Callable[[int], float] | None = None,
) -> Run:
    """Score ``tokens`` from position 1 with the forecaster that ``host`` has just started.

    At the deadline, its own or that of the host, it stops behind the last span that was scored.

    Args:
        host: Has just started a forecaster.
        tokens: The stream.
        span: Positions of a span.
        deadline: On the monotonic clock.
        allowance: The seconds that the pass may take after its first span, by where the next span stops. The last
            span is cut to what they allow, as the end of a stream would cut it.

    Raises:
        Fault: the forecaster failed in a call.
    """
    nats = np.full(len(tokens) - 1, np.nan)
    done: list[tuple[int, int]] = []
    took: list[float] = []
    began = time.monotonic()
    second = math.inf  # when the first span, whose call may compile or load what the others use, was done
    scored = 1
    try:
        for start, whole in spans(host, len(tokens), span):
            end = whole
            if allowance is not None:
                left = allowance(whole) - max(time.monotonic() - second, 0.0)
                end = start + affordable(host, tokens[start:whole], left)
            clock = time.monotonic()
            nats[start - 1 : end - 1] = host.score(tokens[None, start:end])[0]
            scored = end
            took.append(time.monotonic() - clock)
            done.append((start, end))
            host.observe(tokens[start:end])
            now = time.monotonic()
            second = min(second, now)
            if end < whole or now > deadline or (allowance is not None and now - second > allowance(end)):
                break
    except Fault as fault:
        if fault.kind != "budget" or scored == 1:
            raise
    return Run(nats=nats[: scored - 1], spans=tuple(done), score_seconds=tuple(took), seconds=time.monotonic() - began)


def scores_afresh(
    notes: Notes,
    host: Host,
    tokens: Ids,
    options: AuditOptions,
    deadline: float,
    *,
    real: bool = False,
    bait: Ids | None = None,
) -> Floats:
    """Return what a fresh forecaster scores in one pass over ``tokens``; nothing, and a note, where it failed.

    ``real`` says that these are the tokens of the stream itself; for the bait see :meth:`Host.fresh`.
    """
    try:
        host.fresh(int(tokens[0]), bait=bait)
        return run_stream(host, tokens, options.span, deadline=deadline).nats
    except Fault as fault:
        notes.failed(fault, real=real)
        return np.zeros(0)
