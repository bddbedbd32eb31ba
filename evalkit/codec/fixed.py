"""The one conversion from float log-probabilities to the integers that a range coder works with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.errors import InputError

PRECISION = 24
"""Bits of the fixed-point probabilities, the coder's own. A symbol costs at most 24 bits."""

TOLERANCE = 1e-4
"""How far a row may sum above 1: what float32 arithmetic does. More is not a distribution, and is refused."""


def frequencies(log_row: npt.NDArray[np.floating[Any]], position: int) -> npt.NDArray[np.int64]:
    """Return integers, each at least 1, that sum to exactly 2^24 and are proportional to ``exp(log_row)``.

    ``f = 1 + floor(p (2^24 - V))``, and what is left of 2^24 (less than V + 1) goes to the likeliest token. A token
    of probability p costs at most ``-log2(p) + V 2^-24 / ln 2`` bits or so, and 24 bits however small p is.
    A row that sums to less than 1 is scaled up: the code is then shorter than the ledger says.

    Args:
        log_row: Log-probabilities in nats, ``[V]``; ``-inf`` is allowed and still codable.
        position: For the message.

    Raises:
        InputError: the row has a NaN or a value above 0, sums to more than 1 or to nothing, or V is too large.
    """
    row = np.asarray(log_row, dtype=np.float64)
    if row.ndim != 1 or not 1 <= len(row) <= 1 << (PRECISION - 2):
        raise InputError(f"the distribution at position {position} has shape {list(row.shape)}: no row can be coded")
    if np.isnan(row).any():
        raise InputError(f"the distribution at position {position} holds a NaN: it cannot be coded")
    largest = float(row.max())
    if largest > TOLERANCE:
        raise InputError(f"a probability at position {position} is {math.exp(min(largest, 700)):.6g}, above 1")
    p = np.exp(row)
    total = float(p.sum())
    if total > 1.0 + TOLERANCE:
        raise InputError(
            f"the probabilities at position {position} sum to {total:.6g}: no decoder exists for more than 1"
        )
    if total <= 0.0:
        raise InputError(f"the probabilities at position {position} are all zero")
    room = (1 << PRECISION) - len(row)
    counts = np.floor(p / total * room).astype(np.int64) + 1
    counts[int(np.argmax(p))] += (1 << PRECISION) - int(counts.sum())
    if counts.min() < 1:
        raise InputError(f"the distribution at position {position} does not fit {PRECISION} bits")
    return counts
