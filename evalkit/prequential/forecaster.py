"""The protocol that everything scored by evalkit speaks: networks, mixers, test-time training, strangers' code.

Prequential ("predictive sequential") scoring is Dawid's (1984): a forecaster states a probability for the next
token, the token is revealed, and only then may the forecaster learn from it.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.integer[Any]]
"""A one-dimensional integer array: the visible part of the stream."""

Nats = npt.NDArray[np.float64]
"""Negative log-probabilities (or log-probabilities) in nats."""


@runtime_checkable
class Forecaster(Protocol):
    """Scores spans of a token stream and learns from what has been scored.

    ``tokens`` always has length exactly ``stop``: nothing later exists. The harness calls ``score`` on consecutive
    spans that cover the stream from position 1, each once and in order, and ``observe`` with a span only after its
    scores are in the ledger. ``score`` leaves what the forecaster has learned unchanged, so that it may be called
    again with other tokens before ``observe``.

    A forecaster may also offer

    * ``distribution(tokens, start, stop) -> float[stop - start, vocab_size]``: log-probabilities, in nats, of every
      token at each position; row ``i - start`` depends on ``tokens[:i]`` alone;
    * ``next_boundary(start) -> int``: the largest ``stop`` that a span from ``start`` may have, for forecasters that
      must learn at fixed seams;
    * ``state_dict() -> dict`` and ``load_state_dict(state)``: what it has learned, so that a run can be resumed.
    """

    vocab_size: int

    def score(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return ``-ln p(tokens[i] | tokens[:i])`` in nats for ``i`` in ``[start, stop)``."""
        ...

    def observe(self, tokens: Tokens, start: int, stop: int) -> None:
        """Learn from the tokens in ``[start, stop)``, whose scores are in the ledger."""
        ...


@runtime_checkable
class DistributionForecaster(Forecaster, Protocol):
    """A forecaster that states its whole distribution, as decoding needs."""

    def distribution(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return log-probabilities in nats, ``[stop - start, vocab_size]``; row ``i - start`` sees ``tokens[:i]``."""
        ...
