"""Sums of nats along the stream, in equal buckets whose number is bounded: what a report can hold of a second score."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FIRST_BUCKET = 64
"""Tokens of a bucket at first."""

MAX_BUCKETS = 1024
"""More buckets than these are joined in pairs, so that one of a long stream holds more tokens."""


class BucketSums:
    """Sums of values that come one after another."""

    def __init__(self) -> None:
        self._size, self._count = FIRST_BUCKET, 0
        self._sums: npt.NDArray[np.float64] = np.zeros(0)

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Take the next values, float64 ``[n]``."""
        end = self._count + len(values)
        while end > self._size * MAX_BUCKETS:
            padded = np.append(self._sums, np.zeros(len(self._sums) % 2))
            self._sums, self._size = padded.reshape(-1, 2).sum(axis=1), 2 * self._size
        bucket = np.arange(self._count, end) // self._size
        sums = np.bincount(bucket, weights=values, minlength=len(self._sums)).astype(np.float64)
        sums[: len(self._sums)] += self._sums
        self._sums, self._count = sums, end

    def report(self) -> dict[str, Any]:
        """Return ``tokens`` of a bucket and ``nats`` of each; the last one may hold fewer tokens."""
        return {"tokens": self._size, "nats": self._sums}

    def state_dict(self) -> dict[str, Any]:
        """Return everything."""
        return {"size": self._size, "count": self._count, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self._size, self._count = int(state["size"]), int(state["count"])
        self._sums = np.array(state["sums"], dtype=np.float64)
