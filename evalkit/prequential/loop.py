"""The one loop: release a span, score it, write it down, and only then let the forecaster learn from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evalkit.prequential.forecaster import Forecaster
from evalkit.prequential.ledger import Ledger, check_scores
from evalkit.tokens.stream import TokenStream, VisibleTokens
from evalkit.tokens.tokenizer import ByteTable

DEFAULT_SPAN = 2048
"""Positions a span covers unless the forecaster prefers another length or its seams cut it shorter."""

AfterSpan = Callable[[Ledger], None]


def span_stop(forecaster: Any, start: int, end: int, span: int) -> int:
    """Return where the span that starts at ``start`` stops.

    Spans end at multiples of ``span`` (counted from position 1), at the end of the stream, and wherever the forecaster
    says that it must learn first.
    """
    stop = min(((start - 1) // span + 1) * span + 1, end)
    next_boundary = getattr(forecaster, "next_boundary", None)
    if next_boundary is not None:
        stop = min(stop, int(next_boundary(start)))
    if stop <= start:
        raise ValueError(f"next_boundary({start}) returned {stop}; expected a later position")
    return stop


def run_prequential(
    forecaster: Forecaster,
    stream: TokenStream,
    byte_table: ByteTable,
    ledger: Ledger,
    *,
    span: int = 0,
    after_span: AfterSpan | None = None,
) -> Ledger:
    """Score the stream from the ledger's next position to its end.

    Args:
        forecaster: scores and learns; a resumed one has learned exactly what the ledger holds.
        stream: the tokens; position 0 is given.
        byte_table: bytes of each target.
        ledger: takes every score before the forecaster may learn from it.
        span: positions scored at a time; 0 takes what the forecaster prefers, or :data:`DEFAULT_SPAN`.
        after_span: called when a span is scored, recorded and observed; for progress and checkpoints.

    Returns:
        The ledger, which now covers positions 1 to the end.

    Raises:
        ForecasterError: the forecaster returned something else than one finite score for each position.
    """
    span = span or int(getattr(forecaster, "preferred_span", DEFAULT_SPAN))
    visible = VisibleTokens(stream)
    try:
        end = len(stream)
        while ledger.next_position < end:
            start = ledger.next_position
            stop = span_stop(forecaster, start, end, span)
            tokens = visible.up_to(stop)
            nll = forecaster.score(tokens, start, stop)
            check_scores(nll, start, stop - start)
            ledger.record(start, nll, byte_table.count(tokens[start - 1 : stop - 1], tokens[start:stop]))
            forecaster.observe(tokens, start, stop)
            if after_span is not None:
                after_span(ledger)
    finally:
        visible.close()
    return ledger
