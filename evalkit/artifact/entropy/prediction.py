"""Linear prediction along the rows of embedding tables, in integers.

The columns of a table of embeddings are correlated (few directions hold much of the energy), which the spreads of rows
and columns do not see. An adaptive filter predicts every element from those to its left; its weights, one row of a
triangular matrix per column, follow the normalised least-mean-squares rule (Widrow and Hoff 1960) from row to row.
Nothing is sent: the reader repeats the same integer arithmetic. Matrices inside the network gain nothing from it.
"""

from __future__ import annotations

import numba
import numpy as np

from evalkit.artifact.entropy.integers import Int8Matrix

MAX_WORK = 1 << 32  # rows * cols * cols of one matrix: seconds of prediction
_MAX_COLS = 2048  # bounds the filter at 32 MiB
_RATE_16THS = 6


def prediction_work(shape: tuple[int, int]) -> int:
    """Return the multiplications that prediction takes, above :data:`MAX_WORK` if there are too many columns."""
    if shape[1] > _MAX_COLS:
        return MAX_WORK + 1
    return shape[0] * shape[1] * shape[1]


@numba.njit(cache=True)
def _transformed(source: Int8Matrix, inverse: bool) -> Int8Matrix:
    rows, cols = source.shape
    result = np.empty_like(source)
    weights = np.zeros((cols, cols), dtype=np.int64)  # 2^-16
    x = np.zeros(cols, dtype=np.int64)
    energy = np.int64(0)
    for r in range(rows):
        floor = 1 + energy // (4 * max(r, 1))
        so_far = np.int64(0)
        for c in range(cols):
            total = np.int64(0)
            for k in range(c):
                total += weights[c, k] * x[k]
            guess = (total + (1 << 15)) >> 16
            if guess > 127:
                guess = np.int64(127)
            elif guess < -128:
                guess = np.int64(-128)
            given = np.int64(source[r, c])
            # modulo 256, so that a residual fits the same eight bits
            other = given + guess if inverse else given - guess
            other = ((other + 128) & 255) - 128
            result[r, c] = other
            x[c] = other if inverse else given
            error = min(max((x[c] << 8) - (total >> 8), -(1 << 17)), 1 << 17)
            gain = (error * _RATE_16THS << 16) // (floor + so_far)
            for k in range(c):
                weights[c, k] += (gain * x[k] + 2048) >> 12
            so_far += x[c] * x[c]
        energy += so_far
    return result


def residuals(values: Int8Matrix) -> Int8Matrix:
    """Return what prediction leaves of a matrix, modulo 256."""
    residual: Int8Matrix = _transformed(values, False)
    return residual


def restore(left: Int8Matrix) -> Int8Matrix:
    """Undo :func:`residuals`."""
    restored: Int8Matrix = _transformed(left, True)
    return restored
