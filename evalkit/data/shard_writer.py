"""Write a long stream of tokens as shards of a stated size, a piece at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from evalkit.tokens.shards import HEADER_BYTES, form_for


class ShardWriter:
    """Cuts a stream into ``NAME_000000.bin``, ``NAME_000001.bin``, ...

    Args:
        folder: where the shards go.
        name: first part of their names.
        shard_tokens: tokens of each shard but the last.
        vocab_size: number of token ids, which decides how wide a token is.
    """

    def __init__(self, folder: Path, name: str, shard_tokens: int, vocab_size: int) -> None:
        self._folder, self._name, self._shard_tokens = folder, name, shard_tokens
        self._form = form_for(vocab_size)
        self._file: IO[bytes] | None = None
        self._held = 0
        self.paths: list[Path] = []
        self.tokens = 0

    def write(self, tokens: npt.NDArray[Any]) -> None:
        """Append tokens, each below the vocabulary's size."""
        data = np.ascontiguousarray(tokens, dtype=self._form.dtype)
        while len(data):
            if self._file is None:
                path = self._folder / f"{self._name}_{len(self.paths):06d}.bin"
                self._file, self._held = path.open("wb"), 0
                self._file.write(bytes(HEADER_BYTES))
                self.paths.append(path)
            piece = data[: self._shard_tokens - self._held]
            self._file.write(piece.tobytes())
            self._held += len(piece)
            self.tokens += len(piece)
            data = data[len(piece) :]
            if self._held == self._shard_tokens:
                self.close()

    def close(self) -> None:
        """Complete the header of the open shard and flush it to disk."""
        if self._file is None:
            return
        header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
        header[:3] = self._form.magic, self._form.version, self._held
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
