"""A range coder with adaptive frequency tables, in integers throughout.

The coder keeps an interval ``[low, low + range)`` of 64-bit numbers and narrows it once per symbol; whenever the range
falls under 2^32 the top 32 bits leave (Martin 1979; carries walk back into the words already written). A symbol's
share of the interval is ``freq / 2^16``. Tables are semi-static: counts are updated at every symbol, and the cumulative
frequencies are rebuilt from them at growing intervals, so that decoding a symbol is one division, one table look-up
and a short scan.

A *bank* is an int32 array ``[contexts, 2 * symbols + 67]``: per context the symbol counts, the cumulative frequencies
(``symbols + 1``), a look-up table (64), the symbols left until the next rebuild and the distance between rebuilds. One
plain array, because numba counts references of every array that is passed or sliced, at a cost above the coding itself.

A coder is ``state``, uint64 ``[3]`` (low for an encoder or code minus low for a decoder; range; words written or read),
and ``words``, uint32. Reading past the end yields zeros: a decoder ends after the number of symbols it was asked for,
whatever the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

PROB_BITS = 16
COUNT_STEP = 256  # one observation in units of counts, so that priors can hold fractions of an observation
_LUT_BITS = 6
_LUT = 1 << _LUT_BITS
_LUT_SHIFT = PROB_BITS - _LUT_BITS
_EXTRA = _LUT + 3
_FIRST_INTERVAL = 16
_LAST_INTERVAL = 4096
_COUNT_LIMIT = 1 << 28  # halve a context's counts above this total


_U16 = np.uint64(PROB_BITS)
_U32 = np.uint64(32)
_MAX64 = np.uint64(0xFFFFFFFFFFFFFFFF)
_LIMIT32 = np.uint64(1 << 32)
_TOP = np.uint64((1 << PROB_BITS) - 1)
_ONE = np.uint64(1)

Bank = npt.NDArray[np.int32]
State = npt.NDArray[np.uint64]
Words = npt.NDArray[np.uint32]


@dataclass(kw_only=True)
class Coder:
    """An encoder's or a decoder's arrays; see the module's docstring."""

    state: State
    words: Words


@numba.njit(cache=True)
def _rebuild(bank: Bank, context: int) -> None:
    symbols = (bank.shape[1] - _EXTRA) >> 1
    total = np.int64(0)
    for s in range(symbols):
        total += bank[context, s]
    if total > _COUNT_LIMIT:
        total = np.int64(0)
        for s in range(symbols):
            bank[context, s] = (bank[context, s] + 1) >> 1
            total += bank[context, s]
    share = (1 << PROB_BITS) - symbols
    best = 0
    used = np.int64(0)
    for s in range(symbols):
        used += 1 + np.int64(bank[context, s]) * share // total
        if bank[context, s] > bank[context, best]:
            best = s
    start = np.int64(0)
    lut = 2 * symbols + 1
    slot = 0
    for s in range(symbols):
        bank[context, symbols + s] = start
        start += 1 + np.int64(bank[context, s]) * share // total
        if s == best:
            start += (1 << PROB_BITS) - used
        while slot < _LUT and (slot << _LUT_SHIFT) < start:
            bank[context, lut + slot] = s
            slot += 1
    bank[context, 2 * symbols] = start


def make_bank(prior: npt.NDArray[np.int64]) -> Bank:
    """Return a bank that starts from ``prior``: integers ``[contexts, symbols]``, at least 1 each."""
    contexts, symbols = prior.shape
    bank = np.zeros((contexts, 2 * symbols + _EXTRA), dtype=np.int32)
    bank[:, :symbols] = prior
    bank[:, -2:] = _FIRST_INTERVAL
    for context in range(contexts):
        _rebuild(bank, context)
    return bank


def uniform_bank(contexts: int, symbols: int, weight: int) -> Bank:
    """Return a bank that starts uniform; ``weight`` is each symbol's prior count in 1/256 of an observation."""
    return make_bank(np.full((contexts, symbols), weight, dtype=np.int64))


@numba.njit(cache=True, inline="always")
def _learn(bank: Bank, context: int, symbol: int) -> None:
    bank[context, symbol] += COUNT_STEP
    last = bank.shape[1] - 1
    left = bank[context, last - 1] - 1
    if left == 0:
        _rebuild(bank, context)
        left = min(bank[context, last] + (bank[context, last] >> 1), _LAST_INTERVAL)
        bank[context, last] = left
    bank[context, last - 1] = left


@numba.njit(cache=True)
def _carry(words: Words, used: int) -> None:
    i = used - 1
    while words[i] == np.uint32(0xFFFFFFFF):
        words[i] = np.uint32(0)
        i -= 1
    words[i] += np.uint32(1)


@numba.njit(cache=True, inline="always")
def _encode_interval(state: State, words: Words, start: int, freq: int) -> None:
    low = state[0]
    step = state[1] >> _U16
    new_low = low + step * np.uint64(start)
    if new_low < low:
        _carry(words, np.int64(state[2]))
    width = step * np.uint64(freq)
    if width < _LIMIT32:
        words[np.int64(state[2])] = np.uint32(new_low >> _U32)
        state[2] += _ONE
        new_low <<= _U32
        width <<= _U32
    state[0] = new_low
    state[1] = width


@numba.njit(cache=True, inline="always")
def _decode_interval(state: State, words: Words, start: int, freq: int, step: int) -> None:
    code = state[0] - step * np.uint64(start)
    width = step * np.uint64(freq)
    if width < _LIMIT32:
        i = np.int64(state[2])
        word = np.uint64(0)
        if i < words.shape[0]:
            word = np.uint64(words[i])
        state[2] += _ONE
        code = (code << _U32) | word
        width <<= _U32
    state[0] = code
    state[1] = width


@numba.njit(cache=True)
def encode_symbol(state: State, words: Words, bank: Bank, context: int, symbol: int) -> None:
    """Code ``symbol`` under ``context`` and learn from it."""
    symbols = (bank.shape[1] - _EXTRA) >> 1
    start = np.int64(bank[context, symbols + symbol])
    _encode_interval(state, words, start, bank[context, symbols + symbol + 1] - start)
    _learn(bank, context, symbol)


@numba.njit(cache=True)
def decode_symbol(state: State, words: Words, bank: Bank, context: int) -> np.int64:
    """Return the next symbol under ``context`` and learn from it."""
    symbols = (bank.shape[1] - _EXTRA) >> 1
    step = state[1] >> _U16
    target = np.int64(min(state[0] // step, _TOP))
    symbol = np.int64(bank[context, 2 * symbols + 1 + (target >> _LUT_SHIFT)])
    while bank[context, symbols + symbol + 1] <= target:
        symbol += 1
    start = np.int64(bank[context, symbols + symbol])
    _decode_interval(state, words, start, bank[context, symbols + symbol + 1] - start, step)
    _learn(bank, context, symbol)
    return symbol


@numba.njit(cache=True)
def encode_uniform(state: State, words: Words, bits: int, value: int) -> None:
    """Code ``value`` in ``[0, 2^bits)`` as equally likely numbers; ``bits`` at most 16."""
    shift = PROB_BITS - bits
    _encode_interval(state, words, value << shift, 1 << shift)


@numba.njit(cache=True)
def decode_uniform(state: State, words: Words, bits: int) -> np.int64:
    """Return a number coded by :func:`encode_uniform`."""
    shift = PROB_BITS - bits
    step = state[1] >> _U16
    value = np.int64(min(state[0] // step, _TOP)) >> shift
    _decode_interval(state, words, value << shift, 1 << shift, step)
    return value


def make_encoder() -> Coder:
    """Return an empty encoder; call :func:`reserve` before coding."""
    return Coder(state=np.array([0, _MAX64, 0], dtype=np.uint64), words=np.zeros(1024, dtype=np.uint32))


def reserve(coder: Coder, symbols: int) -> None:
    """Make room in an encoder for ``symbols`` further symbols (at most half a word each)."""
    needed = int(coder.state[2]) + symbols // 2 + 8
    if needed > coder.words.size:
        grown = np.zeros(max(needed, 2 * coder.words.size), dtype=np.uint32)
        grown[: coder.words.size] = coder.words
        coder.words = grown


def finish(coder: Coder) -> bytes:
    """Return the bytes of a finished encoder: the shortest end that a zero-padded reader decodes alike."""
    used = int(coder.state[2])
    low, width = int(coder.state[0]), int(coder.state[1])
    body = int.from_bytes(coder.words[:used].astype(">u4").tobytes(), "big")
    for n in range(9):  # the top n bytes of some number inside [low, low + width)
        shift = 64 - 8 * n
        top = (low + (1 << shift) - 1) >> shift
        if (top << shift) < low + width:
            value = (body << (8 * n)) + top
            return value.to_bytes(4 * used + n, "big").rstrip(b"\0")
    raise AssertionError("the coder's interval is never empty")


def make_decoder(data: bytes) -> Coder:
    """Return a decoder over the bytes of :func:`finish`."""
    padded = data + b"\0" * (-len(data) % 4 + (8 if len(data) < 8 else 0))
    words = np.frombuffer(padded, dtype=">u4").astype(np.uint32)
    code = (int(words[0]) << 32) | int(words[1])
    return Coder(state=np.array([code, _MAX64, 2], dtype=np.uint64), words=words)
