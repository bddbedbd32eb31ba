"""What test-time training gained over the frozen network, by chunk and by document."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.prequential.intervals import clustered_mean

Floats = npt.NDArray[np.float64]


class DocumentGains:
    """Sums of nats (trained and frozen) and bytes, for the chunk at hand and for every document.

    Args:
        document_token: the token that opens a document, or None for one document.
    """

    def __init__(self, document_token: int | None) -> None:
        self._document_token = document_token
        self._chunk = np.zeros(3)
        self._documents = [np.zeros(3)]

    def add(self, tokens: npt.NDArray[Any], nll: Floats, frozen: Floats, num_bytes: npt.NDArray[np.int32]) -> None:
        """Add a span: its tokens, their nats under both networks and their bytes, ``[n]`` each."""
        rows = np.stack([nll, frozen, num_bytes.astype(np.float64)], axis=1)
        self._chunk += rows.sum(axis=0)
        cuts = np.flatnonzero(tokens == self._document_token) if self._document_token is not None else np.empty(0, int)
        for i, part in enumerate(np.split(rows, cuts)):
            if i:
                self._documents.append(np.zeros(3))
            self._documents[-1] += part.sum(axis=0)

    def take_chunk(self, *, compared: bool) -> dict[str, Any]:
        """Return the chunk's bytes and bits per byte, and start the next chunk."""
        nats, frozen, num_bytes = self._chunk.tolist()
        self._chunk = np.zeros(3)

        def bpb(value: float) -> float | None:
            return value / math.log(2) / num_bytes if num_bytes else None

        return {"bytes": int(num_bytes), "bpb": bpb(nats), "frozen_bpb": bpb(frozen) if compared else None}

    def summary(self) -> dict[str, Any]:
        """Return the gain in bits per byte with a 95% interval; documents are the independent units.

        See :func:`evalkit.prequential.intervals.clustered_mean`.
        """
        rows = np.array([row for row in self._documents if row[2] > 0])
        if not len(rows):
            return {"bpb": None, "interval_95": None, "documents": 0}
        gained, num_bytes = (rows[:, 1] - rows[:, 0]) / math.log(2), rows[:, 2]
        gain, half, _ = clustered_mean(gained, num_bytes)
        interval = None if half is None else [gain - half, gain + half]
        return {"bpb": gain, "interval_95": interval, "documents": len(rows)}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        return {"chunk": self._chunk, "documents": np.array(self._documents)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up saved sums."""
        self._chunk = np.array(state["chunk"])
        self._documents = list(np.array(state["documents"]))
