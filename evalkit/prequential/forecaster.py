"""The protocol that everything scored by evalkit speaks: networks, mixers, test-time training, strangers' code.

Prequential ("predictive sequential") scoring is Dawid's (1984): a forecaster states a probability for the next
token, the token is revealed, and only then may the forecaster learn from it.

Two methods are needed; :class:`Forecaster` lists what a forecaster may offer besides. Whoever uses an optional member
asks for it through the functions below, which say what its absence means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.errors import InputError

Tokens = npt.NDArray[np.integer[Any]]
"""A one-dimensional integer array: the visible part of the stream."""

Nats = npt.NDArray[np.float64]
"""Negative log-probabilities (or log-probabilities) in nats."""

DEFAULT_SPAN = 2048
"""Positions that a span covers unless the forecaster prefers another length or its seams cut it shorter."""


@runtime_checkable
class Forecaster(Protocol):
    """Scores spans of a token stream and learns from what has been scored.

    ``tokens`` always has length exactly ``stop``: nothing later exists. The harness calls ``score`` on consecutive
    spans that cover the stream from position 1, each once and in order, and ``observe`` with a span only after its
    scores are in the ledger. ``score`` leaves what the forecaster has learned unchanged, so that it may be called
    again with other tokens before ``observe``.

    A forecaster may also offer these members, and the harness looks for no others:

    * ``distribution(tokens, start, stop) -> float[stop - start, vocab_size]``: log-probabilities, in nats, of every
      token at each position; row ``i - start`` depends on ``tokens[:i]`` alone;
    * ``next_distribution(prefix) -> float[vocab_size]``: the log-probabilities of the token after ``prefix``, for a
      decoder, which asks for one position after another; cheaper than ``distribution`` where work can be kept;
    * ``preferred_span: int``: how many positions the harness should score at a time (:data:`DEFAULT_SPAN` otherwise);
    * ``next_boundary(start) -> int``: the largest ``stop`` that a span from ``start`` may have, for forecasters that
      must learn at fixed seams;
    * ``warm_up_tokens: int``: after how many tokens it begins to score in another way than before, so that an audit
      looks there as well;
    * ``report() -> dict``: what a score's report shows of it, JSON types and arrays;
    * ``state_dict() -> dict`` and ``load_state_dict(state)``: what it has learned, so that a run can be resumed.
    """

    vocab_size: int

    def score(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return ``-ln p(tokens[i] | tokens[:i])`` in nats for ``i`` in ``[start, stop)``."""
        ...

    def observe(self, tokens: Tokens, start: int, stop: int) -> None:
        """Learn from the tokens in ``[start, stop)``, whose scores are in the ledger."""
        ...


class DistributionForecaster(Forecaster, Protocol):
    """A forecaster that states its whole distribution, as decoding needs."""

    def distribution(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return log-probabilities in nats, ``[stop - start, vocab_size]``; row ``i - start`` sees ``tokens[:i]``."""
        ...


class ResumableForecaster(Protocol):
    """A forecaster whose learning can be saved and taken up again."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything learned: nested dicts and lists of arrays, numbers and strings."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        ...


def states_distribution(forecaster: object) -> TypeGuard[DistributionForecaster]:
    """Return whether a forecaster states its whole distribution."""
    return callable(getattr(forecaster, "distribution", None))


def require_distribution(forecaster: Forecaster, what: str) -> DistributionForecaster:
    """Return the forecaster as one that states its whole distribution.

    Raises:
        InputError: it states none; ``what`` is said to need it.
    """
    if not states_distribution(forecaster):
        raise InputError(f"the forecaster states no distribution: {what} needs its `distribution` method")
    return forecaster


def is_resumable(forecaster: object) -> TypeGuard[ResumableForecaster]:
    """Return whether what a forecaster has learned can be saved."""
    return callable(getattr(forecaster, "state_dict", None))


def next_distribution_of(forecaster: Forecaster) -> Callable[[Tokens], Nats] | None:
    """Return the forecaster's way to state one row after another; None where it has no quicker one."""
    method: Callable[[Tokens], Nats] | None = getattr(forecaster, "next_distribution", None)
    return method


def next_boundary_of(forecaster: object) -> Callable[[int], int] | None:
    """Return the function that says where a span from a position must stop; None where any length will do."""
    method: Callable[[int], int] | None = getattr(forecaster, "next_boundary", None)
    return method


def preferred_span(forecaster: object) -> int:
    """Return how many positions a forecaster is to be asked for at a time."""
    return int(getattr(forecaster, "preferred_span", DEFAULT_SPAN))


def warm_up_tokens(forecaster: object) -> int:
    """Return after how many tokens a forecaster changes its ways; 0 where it never does."""
    return int(getattr(forecaster, "warm_up_tokens", 0))


def report_of(forecaster: object) -> dict[str, Any]:
    """Return what a forecaster tells the report; nothing where it has no report."""
    method: Callable[[], dict[str, Any]] | None = getattr(forecaster, "report", None)
    return {} if method is None else method()
