"""Where a stream is cut into spans: the one pattern in which everything that walks a stream calls a forecaster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from evalkit.plumbing.errors import ForecasterError


def spans(
    end: int,
    span: int,
    boundary: Callable[[int], int | None] | None = None,
    *,
    start: int = 1,
    cuts: Sequence[int] = (),
) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` for consecutive spans that cover the positions from ``start`` to ``end``.

    A span ends at the next multiple of ``span`` (counted from position 1), wherever the forecaster says that it must
    learn first, at the next of ``cuts``, and at the end of the stream. A span is asked for only after the one before
    has been observed, since a boundary may depend on what was learned.

    Args:
        end: one past the last position.
        span: positions of a span that nothing cuts shorter.
        boundary: the forecaster's ``next_boundary``; None where any length will do.
        start: first position.
        cuts: further positions at which a span ends, ascending.

    Raises:
        ForecasterError: ``boundary`` returned a position that is not later.
    """
    position, cut = start, 0
    while position < end:
        stop = min(((position - 1) // span + 1) * span + 1, end)
        seam = boundary(position) if boundary is not None else None
        if seam is not None and seam <= position:
            raise ForecasterError(f"next_boundary({position}) returned {seam}; expected a later position")
        if seam is not None:
            stop = min(stop, int(seam))
        while cut < len(cuts) and cuts[cut] <= position:
            cut += 1
        if cut < len(cuts):
            stop = min(stop, int(cuts[cut]))
        yield position, stop
        position = stop
