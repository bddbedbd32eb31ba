"""Coding of floating-point tensors by their bits: repeats, sign, exponent, mantissa.

A value is split as its format splits it. The exponent is coded as its distance from the one expected at
``rows[r] + cols[c]`` (codes in quarter octaves, fitted as for the integers); the leading four mantissa bits are coded
given that distance; the rest in groups of up to six bits, each with one adaptive table, which is enough to notice that
numbers came from a narrower format. Everything works on bit patterns, so infinities, NaN payloads and -0 survive.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from evalkit.artifact.entropy.integers import CODE_RANGE, Codes, decode_axis, encode_axis
from evalkit.artifact.entropy.rangecoder import (
    Bank,
    Coder,
    State,
    Words,
    decode_symbol,
    decode_uniform,
    encode_symbol,
    encode_uniform,
    reserve,
    uniform_bank,
)

Form = tuple[int, int]
"""Exponent bits and mantissa bits."""

FORMATS: dict[str, Form] = {"float16": (5, 10), "bfloat16": (8, 7), "float32": (8, 23)}

_HEAD_BITS = 4
_CHUNK_BITS = 6
_ZERO = 63  # exponent symbols: 0 escapes to a raw exponent, 63 is a zero magnitude, the rest are distances + 32
_MIN_MATRIX_SIDE = 8
_PRIOR = 8
_SYMBOLS_PER_VALUE = 8  # repeat, sign, exponent, escape, head, three chunks

Bits = npt.NDArray[np.uint32]


class FloatTables(NamedTuple):
    """The adaptive tables of one group of tensors.

    Attributes:
        flags: bank ``[3, 2]``: repeat of the value before; sign of a vector's value; sign of a matrix's value.
        exponent: bank ``[4, 64]`` by the fraction of the expected exponent.
        head: bank ``[32, 16]`` by the exponent's distance (8 classes) and the fraction.
        chunks: bank ``[4, 64]`` by position.
    """

    flags: Bank
    exponent: Bank
    head: Bank
    chunks: Bank


def make_tables() -> FloatTables:
    """Return fresh tables."""
    return FloatTables(
        flags=uniform_bank(3, 2, 128),
        exponent=uniform_bank(4, 64, _PRIOR),
        head=uniform_bank(32, 16, 64),
        chunks=uniform_bank(4, 64, _PRIOR),
    )


def fit_codes(bits: Bits, form: Form) -> tuple[int, Codes, Codes]:
    """Fit spread codes in quarter octaves of the bit patterns' exponents.

    Returns:
        base, rows ``[rows]``, cols ``[cols]``: the value at (r, c) is expected at
        ``base + rows[r] + cols[c]``, a quarter of which is the exponent field.
    """
    exponent_bits, mantissa_bits = form
    n_rows, n_cols = bits.shape
    magnitude = (bits & ((1 << (exponent_bits + mantissa_bits)) - 1)).astype(np.int64)
    rows, cols = np.zeros(n_rows, dtype=np.int32), np.zeros(n_cols, dtype=np.int32)
    # exponent field plus mantissa fraction is within 0.09 of the logarithm's octave: enough to place a table
    position = 4.0 * magnitude / (1 << mantissa_bits)
    seen = position[magnitude > 0]
    base = round(float(np.median(seen))) + 2 if seen.size else 0
    base = min(max(base, 0), 4 * (1 << exponent_bits) - 1)
    if min(n_rows, n_cols) < _MIN_MATRIX_SIDE or not seen.size:
        return base, rows, cols
    position = np.where(magnitude > 0, position, np.median(seen))
    limit = CODE_RANGE // 2
    row_offset = position.mean(axis=1) - position.mean()
    col_offset = position.mean(axis=0) - position.mean()
    for offset, codes, samples in ((row_offset, rows, n_cols), (col_offset, cols, n_rows)):
        variance = float(offset.var())
        noise = 16 * 2.6 / samples  # var(log2 |x|) of a Gaussian is 2.57
        keep = max(0.0, 1 - noise / variance) if variance > 0 else 0.0
        codes[:] = np.clip(np.rint(keep * offset), -limit, limit - 1)
    return base, rows, cols


@numba.njit(cache=True)
def _encode_values(
    state: State, words: Words, tables: FloatTables, bits: Bits, rows: Codes, cols: Codes, form: Form, matrix: bool
) -> None:
    flags, exponent_bank, head, chunks = tables
    exponent_bits, mantissa_bits = form
    previous = np.int64(-1)
    for r in range(bits.shape[0]):
        for c in range(bits.shape[1]):
            value = np.int64(bits[r, c])
            if not matrix:
                encode_symbol(state, words, flags, 0, 1 if value == previous else 0)
                if value == previous:
                    continue
                previous = value
            exponent = (value >> mantissa_bits) & ((1 << exponent_bits) - 1)
            mantissa = value & ((1 << mantissa_bits) - 1)
            encode_symbol(state, words, flags, 2 if matrix else 1, value >> (exponent_bits + mantissa_bits))
            place = rows[r] + cols[c]
            fraction = place & 3
            if exponent == 0 and mantissa == 0:
                encode_symbol(state, words, exponent_bank, fraction, _ZERO)
                continue
            distance = exponent - (place >> 2)
            if distance < -31 or distance > 30:
                encode_symbol(state, words, exponent_bank, fraction, 0)
                encode_uniform(state, words, exponent_bits, exponent)
            else:
                encode_symbol(state, words, exponent_bank, fraction, distance + 32)
            left = mantissa_bits - _HEAD_BITS
            encode_symbol(state, words, head, (min(max(distance, -6), 1) + 6) * 4 + fraction, mantissa >> left)
            chunk = 0
            while left > 0:
                size = min(left, _CHUNK_BITS)
                left -= size
                encode_symbol(state, words, chunks, chunk, (mantissa >> left) & ((1 << size) - 1))
                chunk += 1


@numba.njit(cache=True)
def _decode_values(
    state: State, words: Words, tables: FloatTables, bits: Bits, rows: Codes, cols: Codes, form: Form, matrix: bool
) -> None:
    flags, exponent_bank, head, chunks = tables
    exponent_bits, mantissa_bits = form
    previous = np.int64(0)
    for r in range(bits.shape[0]):
        for c in range(bits.shape[1]):
            if not matrix and decode_symbol(state, words, flags, 0) == 1:
                bits[r, c] = previous
                continue
            sign = decode_symbol(state, words, flags, 2 if matrix else 1)
            place = rows[r] + cols[c]
            fraction = place & 3
            symbol = decode_symbol(state, words, exponent_bank, fraction)
            exponent = np.int64(0)
            mantissa = np.int64(0)
            if symbol != _ZERO:
                exponent = (place >> 2) + symbol - 32
                if symbol == 0:
                    exponent = decode_uniform(state, words, exponent_bits)
                distance = exponent - (place >> 2)
                exponent &= (1 << exponent_bits) - 1  # only hostile bytes leave the field
                left = mantissa_bits - _HEAD_BITS
                mantissa = decode_symbol(state, words, head, (min(max(distance, -6), 1) + 6) * 4 + fraction)
                chunk = 0
                while left > 0:
                    size = min(left, _CHUNK_BITS)
                    left -= size
                    part = decode_symbol(state, words, chunks, chunk) & ((1 << size) - 1)
                    mantissa = (mantissa << size) | part
                    chunk += 1
            value = (((sign << exponent_bits) | exponent) << mantissa_bits) | mantissa
            bits[r, c] = value
            previous = value


def encode_bits(coder: Coder, codes: Bank, tables: FloatTables, bits: Bits, stored: str) -> None:
    """Code a matrix of bit patterns (uint32 ``[rows, cols]``, not empty) of the format ``stored``."""
    base, rows, cols = fit_codes(bits, FORMATS[stored])
    matrix = min(bits.shape) >= _MIN_MATRIX_SIDE
    reserve(coder, _SYMBOLS_PER_VALUE * bits.size + 8)
    encode_uniform(coder.state, coder.words, 11, base)
    if matrix:
        encode_axis(coder, codes, 0, rows)
        encode_axis(coder, codes, 1, cols)
        reserve(coder, _SYMBOLS_PER_VALUE * bits.size + 8)
    _encode_values(coder.state, coder.words, tables, bits, rows + np.int32(base), cols, FORMATS[stored], matrix)


def decode_bits(coder: Coder, codes: Bank, tables: FloatTables, shape: tuple[int, int], stored: str) -> Bits:
    """Return the bit patterns coded by :func:`encode_bits`."""
    base = int(decode_uniform(coder.state, coder.words, 11))
    rows, cols = np.zeros(shape[0], dtype=np.int32), np.zeros(shape[1], dtype=np.int32)
    matrix = min(shape) >= _MIN_MATRIX_SIDE
    if matrix:
        rows = decode_axis(coder, codes, 0, shape[0])
        cols = decode_axis(coder, codes, 1, shape[1])
    bits = np.empty(shape, dtype=np.uint32)
    _decode_values(coder.state, coder.words, tables, bits, rows + np.int32(base), cols, FORMATS[stored], matrix)
    return bits
