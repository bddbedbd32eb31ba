"""Coding of integer matrices: the spread of each row times the spread of each column selects the table.

Trained weight matrices are close to Gaussian once every row and column has its own standard deviation, and then nearly
independent: neighbours, the layer above and the sign say nothing more. So the encoder fits one code per row and one
per column (in eighths of an octave), sends them, and element ``(r, c)`` is coded under table ``rows[r] + cols[c]``.
The tables adapt, and start from discretised Gaussians.

Values inside [-32, 31] are one symbol of 64; a matrix with wider values codes ``value >> 2`` and then the two low bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from evalkit.artifact.entropy.priors import BINS, gaussian_pmf
from evalkit.artifact.entropy.rangecoder import (
    COUNT_STEP,
    Bank,
    Coder,
    State,
    Words,
    decode_symbol,
    decode_uniform,
    encode_symbol,
    encode_uniform,
    make_bank,
    reserve,
    uniform_bank,
)

CODE_RANGE = 64  # row and column codes are offsets in [-32, 31]
SPREAD_CLASSES = 4
_PRIOR_OBSERVATIONS = 100
_LOW_OBSERVATIONS = 16
_REACH = 4
_SWEEPS = 2

Int8Matrix = npt.NDArray[np.int8]
Codes = npt.NDArray[np.int32]


class IntegerTables(NamedTuple):
    """The adaptive tables of one group of matrices.

    Attributes:
        high: bank ``[BINS, 64]`` of the values, or of ``value >> 2`` in wide matrices.
        low: bank ``[BINS / 8 * 64, 4]`` of the two low bits given the octave of the spread and the high part.
    """

    high: Bank
    low: Bank


def make_tables(wide: bool) -> IntegerTables:
    """Return fresh tables for values in [-32, 31], or for any int8 when ``wide``."""
    if not wide:
        high = make_bank(_prior(gaussian_pmf(-32, 64), _PRIOR_OBSERVATIONS))
        return IntegerTables(high=high, low=uniform_bank(1, 4, 1))
    pmf = gaussian_pmf(-128, 256)
    octaves = pmf[4::8].reshape(-1, 4)  # the middle bin of every octave
    total = octaves.sum(axis=1, keepdims=True)
    conditional = np.where(total > 0, (octaves << 24) // np.maximum(total, 1), 1 << 22)
    return IntegerTables(
        high=make_bank(_prior(pmf.reshape(BINS, 64, 4).sum(axis=2), _PRIOR_OBSERVATIONS)),
        low=make_bank(_prior(conditional, _LOW_OBSERVATIONS)),
    )


def _prior(pmf_q24: npt.NDArray[np.int64], observations: int) -> npt.NDArray[np.int64]:
    counts: npt.NDArray[np.int64] = ((pmf_q24 * (observations * COUNT_STEP)) >> 24) + 1
    return counts


def make_code_bank() -> Bank:
    """Return the bank of row and column codes: one context per axis and class of spread."""
    return uniform_bank(2 * SPREAD_CLASSES, CODE_RANGE, 4)


@numba.njit(cache=True)
def _axis_costs(
    values: Int8Matrix, current: Codes, other: Codes, costs: npt.NDArray[np.int32], reach: int
) -> npt.NDArray[np.int64]:
    """Return the cost of every row in 1/256 bit, int64 ``[rows, 2 * reach + 1]``, for codes around the current ones."""
    rows, cols = values.shape
    out = np.zeros((rows, 2 * reach + 1), dtype=np.int64)
    for r in range(rows):
        for c in range(cols):
            value = np.int64(values[r, c]) + 128
            b = current[r] + other[c] - reach
            for k in range(2 * reach + 1):
                out[r, k] += costs[min(max(b + k, 0), BINS - 1), value]
    return out


def _cost_table(wide: bool) -> npt.NDArray[np.int32]:
    """Return what coding ``value`` in a bin costs under the prior, int32 ``[BINS, 256]`` in 1/256 bit."""
    lowest, count = (-128, 256) if wide else (-32, 64)
    weights = _prior(gaussian_pmf(lowest, count), _PRIOR_OBSERVATIONS).astype(np.float64)
    bits = np.log2(weights.sum(axis=1, keepdims=True) / weights)
    table = np.zeros((BINS, 256), dtype=np.int32)
    table[:, lowest + 128 : lowest + 128 + count] = np.rint(256 * bits)
    return table


def _side_bits(codes: Codes, reach: int) -> npt.NDArray[np.int64]:
    """Return what sending each candidate code costs, in 1/256 bit, from the histogram of the present ones."""
    shifted = codes - codes.min() + reach
    counts = np.bincount(shifted, minlength=int(shifted.max()) + reach + 1) + 0.3
    bits = np.log2(counts.sum() / counts)
    offsets = np.arange(-reach, reach + 1)
    table: npt.NDArray[np.int64] = np.rint(256 * bits[shifted[:, None] + offsets[None, :]]).astype(np.int64)
    return table


def _shrunk(codes: npt.NDArray[np.float64], samples: int) -> Codes:
    """Pull codes estimated from ``samples`` values each towards their mean by the share of noise in their variance."""
    # variance of log sigma estimated by the mean magnitude of Gaussians, 0.57 / n, in squared bins
    noise = 76.0 / samples
    variance = float(codes.var())
    keep = max(0.0, 1.0 - noise / variance) if variance > 0 else 0.0
    shrunk: Codes = np.rint(codes.mean() + keep * (codes - codes.mean())).astype(np.int32)
    return shrunk


def fit_codes(values: Int8Matrix, wide: bool) -> tuple[int, Codes, Codes]:
    """Fit the spread codes of rows and columns by coordinate descent on the bits that they and the values cost.

    Returns:
        base, rows ``[rows]`` and cols ``[cols]``: element (r, c) belongs to bin ``base + rows[r] + cols[c]``, clipped.
    """
    pmf = gaussian_pmf(-128, 256).astype(np.float64)
    mean_magnitude = (pmf * np.abs(np.arange(-128, 128))).sum(axis=1) / pmf.sum(axis=1)
    magnitudes = np.abs(values.astype(np.int16))

    grid = np.arange(BINS)

    def position(mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.interp(mean, mean_magnitude, grid)

    n_rows, n_cols = values.shape
    overall = int(np.rint(position(np.array([magnitudes.sum(dtype=np.int64) / values.size])))[0])
    rows = _shrunk(position(magnitudes.sum(axis=1, dtype=np.int64) / n_cols) - overall, n_cols) + np.int32(overall)
    cols = _shrunk(position(magnitudes.sum(axis=0, dtype=np.int64) / n_rows) - overall, n_rows)
    costs = _cost_table(wide)
    transposed = np.ascontiguousarray(values.T)
    if n_cols == 1:
        cols[:] = 0
    if n_rows == 1:
        rows[:] = overall
    half = CODE_RANGE // 2
    base = overall
    for _ in range(_SWEEPS):
        for axis in (0, 1):
            data, moving, other = (values, rows, cols) if axis == 0 else (transposed, cols, rows)
            if moving.size == 1 and other.size > 1:
                continue
            total = _axis_costs(data, moving, other, costs, _REACH) + _side_bits(moving, _REACH)
            moving += (np.argmin(total, axis=1) - _REACH).astype(np.int32)
        drift = int(np.median(cols))
        cols -= drift
        rows += drift
        base = int(np.clip(np.median(rows), 0, BINS - 1))
        np.clip(rows, base - half, base + half - 1, out=rows)
        np.clip(cols, -half, half - 1, out=cols)
    return base, rows - np.int32(base), cols


def _spread_class(codes: Codes) -> int:
    deviation = float(np.abs(codes - np.median(codes)).mean()) if codes.size else 0.0
    return int(np.searchsorted([0.02, 1.0, 3.0], deviation))


@numba.njit(cache=True)
def _encode_codes(state: State, words: Words, bank: Bank, context: int, codes: Codes) -> None:
    for i in range(codes.size):
        encode_symbol(state, words, bank, context, codes[i] + CODE_RANGE // 2)


@numba.njit(cache=True)
def _decode_codes(state: State, words: Words, bank: Bank, context: int, codes: Codes) -> None:
    for i in range(codes.size):
        codes[i] = decode_symbol(state, words, bank, context) - CODE_RANGE // 2


def encode_axis(coder: Coder, bank: Bank, axis: int, codes: Codes) -> None:
    """Send one axis's codes: the class of their spread (2 bits), then each under that class's table."""
    spread = _spread_class(codes)
    reserve(coder, codes.size + 1)
    encode_uniform(coder.state, coder.words, 2, spread)
    _encode_codes(coder.state, coder.words, bank, axis * SPREAD_CLASSES + spread, codes)


def decode_axis(coder: Coder, bank: Bank, axis: int, count: int) -> Codes:
    """Return the codes sent by :func:`encode_axis`."""
    codes = np.zeros(count, dtype=np.int32)
    spread = int(decode_uniform(coder.state, coder.words, 2))
    _decode_codes(coder.state, coder.words, bank, axis * SPREAD_CLASSES + spread, codes)
    return codes


@numba.njit(cache=True)
def _encode_values(
    state: State, words: Words, tables: IntegerTables, values: Int8Matrix, rows: Codes, cols: Codes, wide: bool
) -> None:
    high, low = tables
    for r in range(values.shape[0]):
        for c in range(values.shape[1]):
            b = min(max(rows[r] + cols[c], 0), BINS - 1)
            value = np.int64(values[r, c])
            if wide:
                symbol = (value + 128) >> 2
                encode_symbol(state, words, high, b, symbol)
                encode_symbol(state, words, low, (b >> 3) * 64 + symbol, (value + 128) & 3)
            else:
                encode_symbol(state, words, high, b, value + 32)


@numba.njit(cache=True)
def _decode_values(
    state: State, words: Words, tables: IntegerTables, values: Int8Matrix, rows: Codes, cols: Codes, wide: bool
) -> None:
    high, low = tables
    for r in range(values.shape[0]):
        for c in range(values.shape[1]):
            b = min(max(rows[r] + cols[c], 0), BINS - 1)
            symbol = decode_symbol(state, words, high, b)
            if wide:
                part = decode_symbol(state, words, low, (b >> 3) * 64 + symbol)
                values[r, c] = symbol * 4 + part - 128
            else:
                values[r, c] = symbol - 32


def encode_matrix(coder: Coder, codes: Bank, tables: IntegerTables, values: Int8Matrix, wide: bool) -> None:
    """Code an int8 matrix, C-contiguous and not empty. ``wide`` must be set when a value is outside [-32, 31]."""
    base, rows, cols = fit_codes(values, wide)
    reserve(coder, 2 * values.size + 8)
    encode_uniform(coder.state, coder.words, 7, base)
    encode_axis(coder, codes, 0, rows)
    encode_axis(coder, codes, 1, cols)
    reserve(coder, 2 * values.size + 8)
    _encode_values(coder.state, coder.words, tables, values, rows + np.int32(base), cols, wide)


def decode_matrix(coder: Coder, codes: Bank, tables: IntegerTables, shape: tuple[int, int], wide: bool) -> Int8Matrix:
    """Return the matrix coded by :func:`encode_matrix`."""
    base = int(decode_uniform(coder.state, coder.words, 7))
    rows = decode_axis(coder, codes, 0, shape[0]) + np.int32(base)
    cols = decode_axis(coder, codes, 1, shape[1])
    values = np.empty(shape, dtype=np.int8)
    _decode_values(coder.state, coder.words, tables, values, rows, cols, wide)
    return values
