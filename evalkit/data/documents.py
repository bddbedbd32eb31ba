"""Documents of a token stream, one at a time, and the n-grams of their words."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.tokens.stream import TokenStream

Ids = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_BLOCK = 2**20
MAX_DOCUMENT = 2**22
"""Longer documents (streams without BOS, above all) are handed out in pieces of this many tokens."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: odd, bits well spread (Knuth, TAOCP 6.4)


def iterate_documents(stream: TokenStream, bos: int) -> Iterator[tuple[int, Ids]]:
    """Yield (position of the first token, tokens) of each document; a document starts at ``bos``.

    A first document without BOS is what the stream's cut left of it. Memory: one document and one block.
    """
    held: list[npt.NDArray[Any]] = []
    length = start = 0
    for offset in range(0, len(stream), _BLOCK):
        block = stream.read(offset, min(offset + _BLOCK, len(stream)))
        seams = np.flatnonzero(block == bos).tolist() if bos >= 0 else []
        previous = 0
        for seam in [*seams, len(block)]:
            held.append(block[previous:seam])
            length += seam - previous
            if (seam < len(block) or length >= MAX_DOCUMENT) and length:
                yield start, np.concatenate(held).astype(np.int64)
                start, held, length = start + length, [], 0
            previous = seam
    if length:
        yield start, np.concatenate(held).astype(np.int64)


class WordHasher:
    """Hashes of n-grams of words, which are runs of letters and digits, case folded."""

    def __init__(self, n: int) -> None:
        self._n = n

    def ngrams(self, text: str) -> Hashes:
        """Return the hash of every n-gram of a text, in order, uint64."""
        words = re.findall(r"\w+", text.casefold())
        if len(words) < self._n:
            return np.empty(0, dtype=np.uint64)
        return combine(np.array([_word_hash(word) for word in words], dtype=np.uint64), self._n)


@functools.lru_cache(maxsize=500_000)
def _word_hash(word: str) -> int:
    return _hash_of(word.encode())


def token_ngrams(tokens: Ids, n: int) -> Hashes:
    """Return the hash of every n-gram of token ids, in order, uint64."""
    if len(tokens) < n:
        return np.empty(0, dtype=np.uint64)
    return combine(mix(tokens.astype(np.uint64) + np.uint64(1)), n)


def combine(hashes: Hashes, n: int) -> Hashes:
    """Return one hash for each run of ``n`` hashes; order matters."""
    count = len(hashes) - n + 1
    total = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        total = mix(total ^ hashes[i : i + count])
    return total


def mix(values: Hashes) -> Hashes:
    """Return 64 bits mixed so that every bit depends on all (the finaliser of splitmix64, Steele et al. 2014)."""
    values = (values + _MULTIPLIER).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def document_hash(tokens: Ids) -> int:
    """Return a 64-bit hash of a document's tokens, BOS included or not."""
    return _hash_of(tokens.astype("<u4").tobytes())


def _hash_of(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
