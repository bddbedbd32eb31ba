"""How well probabilities are calibrated: of the tokens given a probability near x, what share came.

Every token of the vocabulary counts at every sampled position, not only the one that came: a forecaster that says "1%"
a thousand times is calibrated if about ten of those tokens come, whichever they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.prequential.forecaster import (
    Forecaster,
    Nats,
    Tokens,
    is_resumable,
    report_of,
    require_distribution,
)

LOG_ODDS = 16
"""Bins are one unit of log-odds wide, from -16 (p = 1e-7) to 16; the first and the last are open."""

_MAX_NUMBERS = 2**21
"""Probabilities held at a time, float64: 16 MiB, whatever the vocabulary."""


@dataclass
class Counts:
    """Sums over all tokens in each bin, ``[2 * LOG_ODDS]``.

    Attributes:
        tokens: how many probabilities were stated, int64.
        expected: their sum, float64.
        occurred: how many of the tokens came, int64.
    """

    tokens: npt.NDArray[np.int64]
    expected: npt.NDArray[np.float64]
    occurred: npt.NDArray[np.int64]


def count(rows: Nats, targets: Tokens) -> Counts:
    """Bin every probability of ``rows``, log-probabilities in nats ``[n, vocab_size]``; ``targets`` ``[n]`` came."""
    p = np.exp(rows)
    with np.errstate(divide="ignore"):
        log_odds = rows - np.log(np.maximum(1.0 - p, 0.0))
    bins = np.clip(np.floor(log_odds) + LOG_ODDS, 0, 2 * LOG_ODDS - 1).astype(np.int64)
    hit = np.take_along_axis(bins, np.asarray(targets, dtype=np.int64)[:, None], axis=1)
    return Counts(
        tokens=np.bincount(bins.ravel(), minlength=2 * LOG_ODDS),
        expected=np.bincount(bins.ravel(), weights=p.ravel(), minlength=2 * LOG_ODDS).astype(np.float64),
        occurred=np.bincount(hit.ravel(), minlength=2 * LOG_ODDS),
    )


class ReliabilityForecaster:
    """A forecaster whose whole distribution is asked for at some positions; scores and learning stay as they are.

    The sampled positions are the beginnings of spans, spread evenly over the stream.

    Args:
        inner: states its distribution.
        positions: how many positions to sample, about.
        total: positions of the stream.

    Raises:
        InputError: the forecaster states no distribution.
    """

    def __init__(self, inner: Forecaster, positions: int, total: int) -> None:
        self.inner = require_distribution(inner, "--reliability")
        self.vocab_size = inner.vocab_size
        self.sampled = 0
        self.max_difference = 0.0
        self._positions, self._total = positions, total
        bins = 2 * LOG_ODDS
        self._counts = Counts(np.zeros(bins, np.int64), np.zeros(bins), np.zeros(bins, np.int64))
        self._pending: tuple[int, Counts, float] | None = None

    def __getattr__(self, name: str) -> Any:
        """Whatever else the forecaster offers (seams, preferred span, warm-up)."""
        return getattr(self.inner, name)

    def score(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return the inner scores, float64 nats ``[stop - start]``; sample the span if one is due."""
        self._pending = None
        rows = None
        if self.sampled * self._total <= self._positions * (start - 1):
            middle = min(stop, start + max(1, _MAX_NUMBERS // self.vocab_size))
            rows = self.inner.distribution(tokens[:middle], start, middle)
        nll = self.inner.score(tokens, start, stop)  # last, so that what is pending inside belongs to the whole span
        if rows is not None:
            targets = tokens[start:middle]
            stated = rows[np.arange(len(rows)), targets]
            difference = float(np.abs(stated + nll[: len(rows)]).max())
            self._pending = len(rows), count(rows, targets), difference
        return nll

    def observe(self, tokens: Tokens, start: int, stop: int) -> None:
        """Add the sample to the counts, then let the forecaster learn."""
        if self._pending is not None:
            sampled, counts, difference = self._pending
            self.sampled += sampled
            self._counts.tokens += counts.tokens
            self._counts.expected += counts.expected
            self._counts.occurred += counts.occurred
            self.max_difference = max(self.max_difference, difference)
            self._pending = None
        self.inner.observe(tokens, start, stop)

    def report(self) -> dict[str, Any]:
        """Return the inner report and ``reliability``.

        ``positions`` sampled; for bin ``k``, log-odds from ``first_log_odds + k``: ``tokens``, ``expected``,
        ``occurred``; and ``max_difference``, the largest difference in nats between a score and its row.
        """
        return report_of(self.inner) | {
            "reliability": {
                "positions": self.sampled,
                "first_log_odds": -LOG_ODDS,
                **vars(self._counts),
                "max_difference": self.max_difference,
            }
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and what the forecaster has learned."""
        state: dict[str, Any] = {"sampled": self.sampled, "max_difference": self.max_difference}
        state["counts"] = dict(vars(self._counts))
        if is_resumable(self.inner):
            state["inner"] = self.inner.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.sampled, self.max_difference = int(state["sampled"]), float(state["max_difference"])
        self._counts = Counts(**state["counts"])
        if is_resumable(self.inner):
            self.inner.load_state_dict(state["inner"])
