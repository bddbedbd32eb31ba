"""Discretised Gaussians on a grid of spreads, in fixed point: where the adaptive tables start.

Bin ``b`` stands for the standard deviation ``2^((b - 32) / 8)`` in quantisation steps, from 1/16 to about 235. Every
number here is an integer computed by integer arithmetic, so encoder and decoder agree on any machine.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

BINS = 96
UNIT_BIN = 32  # the bin of standard deviation 1
_POINTS = 16  # density samples per integer
_LN2_Q30 = 744261118
# 2^(-j/4) for j = 0..3 in 2^-20, the squared ratio of neighbouring bins
_QUARTERS_Q20 = (1048576, 881744, 741455, 623487)


def _exp_neg_q30(t_q20: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return ``exp(-t)`` in 2^-30 for ``t >= 0`` in 2^-20: Taylor series after taking out powers of two."""
    t = np.minimum(t_q20, 40 << 20) << 10
    halvings = t // _LN2_Q30
    rest = t - halvings * _LN2_Q30
    one = 1 << 30
    total = np.full(t.shape, one, dtype=np.int64)
    for n in range(12, 0, -1):
        total = one - ((rest * total) >> 30) // n
    result: npt.NDArray[np.int64] = total >> np.minimum(halvings, 62)
    return result


@lru_cache(maxsize=2)
def gaussian_pmf(lowest: int, count: int) -> npt.NDArray[np.int64]:
    """Return the mass of integers ``lowest .. lowest + count - 1`` for every bin.

    Returns:
        int64 ``[BINS, count]``; each row sums to about 2^24.
    """
    values = np.arange(lowest, lowest + count, dtype=np.int64)[:, None]
    points = 2 * np.arange(_POINTS, dtype=np.int64)[None, :] + 1 - _POINTS
    x = (values * (2 * _POINTS) + points).ravel()  # in 1/(2 * _POINTS) of a step
    squared = x * x  # < 2^24
    rows = []
    for b in range(BINS):
        octaves, quarter = divmod(b - UNIT_BIN, 4)  # 1 / sigma^2 = 2^-(octaves + quarter / 4)
        inverse = _QUARTERS_Q20[quarter]
        shift = 11 + octaves  # 10 for x^2's denominator of 1024, 1 for the half, the octaves
        density = _exp_neg_q30((squared * inverse) >> shift)
        mass = density.reshape(count, _POINTS).sum(axis=1)
        rows.append((mass << 24) // max(int(mass.sum()), 1))
    return np.stack(rows)
