"""The one loop: release a span, score it, write it down, and only then let the forecaster learn from it."""

from __future__ import annotations

from collections.abc import Callable

from evalkit.prequential.forecaster import Forecaster, next_boundary_of, preferred_span
from evalkit.prequential.ledger import Ledger
from evalkit.prequential.spans import spans
from evalkit.tokens.stream import TokenStream, VisibleTokens
from evalkit.tokens.tokenizer import ByteCounts


def run_prequential(
    forecaster: Forecaster,
    stream: TokenStream,
    num_bytes: ByteCounts,
    ledger: Ledger,
    *,
    span: int = 0,
    after_span: Callable[[Ledger], None] | None = None,
) -> Ledger:
    """Score the stream from the ledger's next position to its end.

    Args:
        forecaster: scores and learns; a resumed one has learned exactly what the ledger holds.
        stream: the tokens; position 0 is given.
        num_bytes: bytes of each target.
        ledger: takes every score before the forecaster may learn from it.
        span: positions scored at a time; 0 takes what the forecaster prefers.
        after_span: called when a span is scored, recorded and observed; for progress and checkpoints.

    Returns:
        The ledger, which now covers positions 1 to the end.

    Raises:
        ForecasterError: the forecaster returned something else than one finite score for each position.
    """
    span = span or preferred_span(forecaster)
    visible = VisibleTokens(stream)
    try:
        for start, stop in spans(len(stream), span, next_boundary_of(forecaster), start=ledger.next_position):
            tokens = visible.up_to(stop)
            nll = forecaster.score(tokens, start, stop)
            ledger.record(start, nll, num_bytes.count_span(tokens, start, stop))
            forecaster.observe(tokens, start, stop)
            if after_span is not None:
                after_span(ledger)
    finally:
        visible.close()
    return ledger
