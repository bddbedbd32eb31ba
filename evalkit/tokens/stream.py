"""The token stream that is scored, and the part of it that a forecaster may see."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.errors import TokenError
from evalkit.plumbing.log import LOG
from evalkit.tokens.shards import find_shards, open_shard, require_one_split
from evalkit.tokens.texts import read_documents, source_name
from evalkit.tokens.tokenizer import TextTokenizer
from evalkit.tokens.witness import ByteWitness

_BLOCK = 2**20


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """A stream of tokens from one or more memory-mapped parts; never copied as a whole.

    Attributes:
        parts: token arrays, in order.
        names: where each part comes from.
        raw_bytes: UTF-8 bytes of the text before the tokenizer normalised it, where it is known.
        text_bytes: UTF-8 bytes of the text as the tokenizer normalises it, where the text is known.
    """

    parts: tuple[npt.NDArray[Any], ...]
    names: tuple[str, ...]
    raw_bytes: int | None = None
    text_bytes: int | None = None

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian uint16, or uint32 where a part has wider tokens."""
        return np.dtype("<u4" if any(part.dtype.itemsize > 2 for part in self.parts) else "<u2")

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return a copy of the tokens in ``[start, stop)``."""
        pieces = []
        offset = 0
        for part in self.parts:
            low, high = max(start - offset, 0), min(stop - offset, len(part))
            if low < high:
                pieces.append(np.asarray(part[low:high], dtype=self.dtype))
            offset += len(part)
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=self.dtype)

    def truncated(self, length: int) -> TokenStream:
        """Return the first ``length`` tokens as a stream; what the raw text's bytes would be is no longer known."""
        if length >= len(self):
            return self
        parts, names, left = [], [], length
        for part, name in zip(self.parts, self.names, strict=True):
            if left > 0:
                parts.append(part[:left])
                names.append(name)
                left -= len(part)
        return TokenStream(parts=tuple(parts), names=tuple(names), raw_bytes=None)

    def count(self, token: int) -> int:
        """Return how often a token occurs."""
        blocks = (part[i : i + _BLOCK] for part in self.parts for i in range(0, len(part), _BLOCK))
        return sum(int(np.count_nonzero(block == token)) for block in blocks)

    def num_bytes(self, tokenizer: TextTokenizer) -> int:
        """Return the bytes of all tokens but the first, by the tokenizer's table."""
        stops = range(1, len(self), _BLOCK)
        return sum(tokenizer.byte_table.total(self.read(start - 1, min(start + _BLOCK, len(self)))) for start in stops)

    def find(self, pattern: Sequence[int]) -> int | None:
        """Return where a row of tokens first stands, or None."""
        if not pattern:
            return None
        for start in range(0, len(self), _BLOCK):
            block = self.read(start, min(start + _BLOCK + len(pattern) - 1, len(self)))
            size = max(len(block) - len(pattern) + 1, 0)
            found = np.flatnonzero(np.all([block[i : i + size] == token for i, token in enumerate(pattern)], axis=0))
            if found.size:
                return start + int(found[0])
        return None

    def sha256(self) -> str:
        """Hash of all tokens, little-endian."""
        digest = hashlib.sha256()
        for part in self.parts:
            for start in range(0, len(part), _BLOCK):
                digest.update(np.ascontiguousarray(part[start : start + _BLOCK], dtype=self.dtype).tobytes())
        return digest.hexdigest()

    def validate(self, tokenizer: TextTokenizer) -> None:
        """Check every token against the tokenizer.

        The unknown token stands for text that is lost, and counts no bytes. A tokenizer with byte fallback never writes
        it, so there it is an error. One without writes it for every character that it lacks, and published systems are
        scored on such streams: there it is a warning, and a field of the report, since the score is of a text with
        holes.

        Raises:
            TokenError: an id is outside the vocabulary or is an unknown token that this tokenizer cannot have written,
                or there is nothing to score.
        """
        if len(self) < 2:
            what = "is empty: it has no token to score" if len(self) else "holds no tokens"
            raise TokenError(
                f"{', '.join(self.names)} {what}; scoring needs at least one after the first, which is given"
            )
        if len(self) == 2:
            LOG.warning("%s has a single token to score: the score says nothing", ", ".join(self.names))
        offset, lost = 0, 0
        for part, name in zip(self.parts, self.names, strict=True):
            for start in range(0, len(part), _BLOCK):
                block = part[start : start + _BLOCK]
                bad = np.flatnonzero(block >= tokenizer.vocab_size)
                if bad.size:
                    raise TokenError(
                        f"{name}: token {offset + start + int(bad[0]):,} is id {int(block[bad[0]])}; the tokenizer "
                        f"{tokenizer.path} has ids below {tokenizer.vocab_size}: wrong shard or wrong --tokenizer"
                    )
                unknown = np.flatnonzero(block == tokenizer.unk_id) if tokenizer.unk_id >= 0 else bad
                lost += unknown.size
                if unknown.size and tokenizer.has_byte_fallback:
                    raise TokenError(
                        f"{name}: token {offset + start + int(unknown[0]):,} is the unknown token (id "
                        f"{tokenizer.unk_id}), which stands for text that is lost; its bytes cannot be counted"
                    )
            offset += len(part)
        if lost:
            LOG.warning(
                "%s unknown tokens (id %s) of the stream stand for text that the tokenizer cannot write: they cost "
                "nats and count no bytes",
                f"{lost:,}",
                tokenizer.unk_id,
            )


def open_shards(pattern: str | Sequence[str]) -> TokenStream:
    """Open the shards that a glob matches as one stream.

    Raises:
        TokenError: nothing matches, a file is no shard, training and validation shards are mixed, or one shard holds
            the bytes of another's tokens, to judge by their names.
    """
    paths = find_shards(pattern)
    require_one_split(paths)
    for path in paths:
        if path.with_name(path.name.replace("_bytes_", "_", 1)) in set(paths) - {path}:
            raise TokenError(
                f"{pattern} matches {path.name}, which by its name holds the bytes of tokens, not tokens: name it with "
                f"--token-bytes, or give a narrower glob"
            )
    return stream_of(paths)


def stream_of(paths: Sequence[Path]) -> TokenStream:
    """Return shards as one stream, in this order."""
    return TokenStream(parts=tuple(map(open_shard, paths)), names=tuple(map(str, paths)))


def tokenize_file(path: str | Path, tokenizer: TextTokenizer) -> TokenStream:
    """Tokenise what :func:`evalkit.tokens.texts.read_documents` finds, BOS before each document.

    Raises:
        TokenError: the file cannot be read as UTF-8 text, or a document needs the unknown token.
    """
    token = np.uint16 if tokenizer.vocab_size <= 65536 else np.uint32
    raw_bytes = text_bytes = 0
    pieces = []
    witness = ByteWitness(tokenizer)
    for text in read_documents(path):
        raw_bytes += len(text.encode("utf-8"))
        text_bytes += witness.size_of(text)
        pieces.append(tokenizer.encode_document(text).astype(token))
    if not pieces:
        raise TokenError(f"{source_name(path)} holds no documents")
    return TokenStream(
        parts=(np.concatenate(pieces),), names=(source_name(path),), raw_bytes=raw_bytes, text_bytes=text_bytes
    )


class VisibleTokens:
    """The released part of a stream: a file that holds nothing past what has been released.

    Forecasters are handed maps of this file, so that what they must not see does not exist anywhere near it, and a
    stream of any length takes disk rather than memory.
    """

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream
        self._dtype = stream.dtype
        self._file = tempfile.TemporaryFile(prefix="evalkit-")  # noqa: SIM115
        self._released = 0

    def up_to(self, stop: int) -> npt.NDArray[Any]:
        """Release tokens up to ``stop`` and return ``[0, stop)`` as a read-only array."""
        while self._released < stop:
            upper = min(self._released + _BLOCK, stop)
            self._file.write(self._stream.read(self._released, upper).astype(self._dtype).tobytes())
            self._released = upper
        self._file.flush()
        if self._released != stop:
            # A resumed or repeated span: never hand out more than was asked for.
            self._released = stop
            os.ftruncate(self._file.fileno(), self._dtype.itemsize * stop)
            self._file.seek(self._dtype.itemsize * stop)
        return np.memmap(self._file, dtype=self._dtype, mode="r", shape=(stop,))

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
