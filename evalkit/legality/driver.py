"""Takes a forecaster through a stream: score a span, record it, let it be observed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from evalkit.legality.hosts import Fault, Floats, Host, Ids


@dataclass(kw_only=True)
class Run:
    """What one pass over a stream recorded.

    Attributes:
        nats: Score of position ``1 + i`` at index ``i``; NaN where the pass did not get to.
        spans: The spans ``(start, stop)`` that were scored.
        score_seconds: What each call of ``score`` took.
        seconds: Wall time of the pass.
    """

    nats: Floats
    spans: list[tuple[int, int]] = field(default_factory=list)
    score_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def call_seconds(self) -> float:
        """What a call of ``score`` takes; the median, since a first call may compile or load what the others use."""
        return float(np.median(self.score_seconds)) if self.score_seconds else 0.0

    @property
    def stop(self) -> int:
        """One past the last position that was scored."""
        return self.spans[-1][1] if self.spans else 1


def next_stop(host: Host, start: int, end: int, span: int) -> int:
    """Return where the span from ``start`` stops: ``span`` tokens on, at a boundary, or at the end."""
    stop = min(start + span, end)
    boundary = host.boundary()
    if boundary is not None:
        if boundary <= start:
            raise Fault("protocol", f"next_boundary({start}) is {boundary}, not beyond its argument", start=start)
        stop = min(stop, boundary)
    return stop


def spans(host: Host, end: int, span: int, cuts: Ids | None = None) -> Iterator[tuple[int, int]]:
    """Yield consecutive spans from position 1 to ``end``, cut also at ``cuts`` (ascending).

    The caller must observe each span before asking for the next.
    """
    start, index = 1, 0
    while start < end:
        stop = next_stop(host, start, end, span)
        if cuts is not None:
            while index < len(cuts) and cuts[index] <= start:
                index += 1
            if index < len(cuts):
                stop = min(stop, int(cuts[index]))
        yield start, stop
        start = stop


def advance(host: Host, span: Ids) -> None:
    """Do with a span what the ledger does: score it as it is, then let it be observed."""
    host.score(span[None, :])
    host.observe(span)


def run_stream(
    host: Host,
    tokens: Ids,
    span: int,
    *,
    deadline: float = math.inf,
    seconds: float = math.inf,
    seam: int = 0,
    patience: float = 0.0,
) -> Run:
    """Score ``tokens`` from position 1 with the forecaster that ``host`` has just started.

    At the deadline, or ``seconds`` after the first span (a first call may compile), it stops behind the span at hand;
    ``patience`` more seconds are granted to get past ``seam``.

    Raises:
        Fault: the forecaster failed in a call.
    """
    run = Run(nats=np.full(len(tokens) - 1, np.nan))
    began = time.monotonic()
    for start, stop in spans(host, len(tokens), span):
        piece = tokens[start:stop]
        clock = time.monotonic()
        run.nats[start - 1 : stop - 1] = host.score(piece[None, :])[0]
        run.score_seconds.append(time.monotonic() - clock)
        run.spans.append((start, stop))
        host.observe(piece)
        if len(run.spans) == 1:
            deadline = min(deadline, time.monotonic() + seconds)
        late = time.monotonic() - deadline
        if late > (patience if stop <= seam else 0.0):
            break
    run.seconds = time.monotonic() - began
    return run
