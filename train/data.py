"""Training data: shards as one endless stream, cut into spans that do not depend on the number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evalkit.plumbing.errors import InputError, TokenError
from evalkit.plumbing.files import in_order
from evalkit.tokens.kinds import open_tokenizer
from evalkit.tokens.shards import open_shard, split_of
from evalkit.tokens.stream import TokenStream
from evalkit.train.config import DataConfig

_CHECKED_TOKENS = 1_000_000


def find_shards(data: Path, config: DataConfig) -> tuple[list[Path], list[Path]]:
    """Return the training and validation shards of a data folder, each in the order of the numbers.

    Where a manifest or a name says outright what a shard is (:func:`evalkit.tokens.shards.split_of`), a pattern that
    matches it as well does not count. They lie in ``data`` itself or in exactly one folder below it.

    Raises:
        InputError: there is no such folder, no training shard, or shards of several tokenizers.
    """
    if not data.is_dir():
        raise InputError(f"data folder {data} does not exist; expected a folder with {config.train_pattern} shards")
    found = [path for path in _matching(data, f"**/{config.train_pattern}") if split_of(path) != "val"]
    folders = sorted({path.parent for path in found})
    if not found:
        raise InputError(f"data folder {data} holds no {config.train_pattern} shard")
    if len(folders) > 1:
        names = ", ".join(str(folder) for folder in folders[:4])
        raise InputError(f"data folder {data} holds several sets of shards, of several tokenizers? ({names}); name one")
    train = found[: config.max_shards or None]
    val = [p for p in _matching(folders[0], config.val_pattern) if p not in found and split_of(p) != "train"]
    return train, val


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Return the shards that match a pattern, packed ones too."""
    packed = ("", ".gz", ".zst") if pattern.endswith(".bin") else ("",)
    return sorted((path for ending in packed for path in folder.glob(pattern + ending)), key=in_order)


def _check_ids(tokens: npt.NDArray[Any], vocab_size: int, where: object) -> None:
    largest = int(tokens.max(initial=0))
    if largest >= vocab_size:
        raise TokenError(
            f"{where} holds token {largest}, but the model has {vocab_size}: they are another tokenizer's; "
            "use shards of one tokenizer and its model.vocab_size"
        )


class TrainingTokens:
    """Shards in order, one after another and again from the first, addressed by position.

    Reading has no state: span s of step n starts at (n spans_per_step + s) (span_tokens + 1), so a run can
    resume at any step, and any rank can read its own spans and nothing else.
    """

    def __init__(self, paths: list[Path], *, vocab_size: int) -> None:
        self._stream = TokenStream(parts=tuple(map(open_shard, paths)), names=tuple(path.name for path in paths))
        self._vocab_size = vocab_size
        self.num_tokens = len(self._stream)
        for path, shard in zip(paths, self._stream.parts, strict=True):
            _check_ids(shard[:_CHECKED_TOKENS], vocab_size, path)

    def require(self, span_tokens: int) -> None:
        """Refuse to train on fewer tokens than one span needs.

        Raises:
            TokenError: the stream is too short.
        """
        if self.num_tokens < span_tokens + 1:
            raise TokenError(
                f"the training shards hold {self.num_tokens} tokens, too few for one micro-batch of "
                f"{span_tokens + 1}; "
                "use more data, a smaller train.batch_tokens or more train.spans"
            )

    def identity(self) -> list[dict[str, Any]]:
        """Return name and tokens of every shard, by which a resumed run knows its data again."""
        shards = zip(self._stream.names, self._stream.parts, strict=True)
        return [{"name": name, "tokens": len(part)} for name, part in shards]

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return tokens ``start .. start + count`` of the endless stream."""
        pieces = [self._stream.read(0, 0)]
        while count:
            first = start % self.num_tokens
            pieces.append(self._stream.read(first, min(first + count, self.num_tokens)))
            start, count = start + len(pieces[-1]), count - len(pieces[-1])
        tokens = np.concatenate(pieces).astype(np.int64)
        _check_ids(tokens, self._vocab_size, f"the training shards, from {self._stream.names[0]},")
        return tokens

    def span(self, step: int, index: int, *, spans: int, span_tokens: int, seq_len: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, ``[span_tokens / seq_len, seq_len]`` each, of one micro-batch."""
        tokens = torch.from_numpy(self.read((step * spans + index) * (span_tokens + 1), span_tokens + 1))
        return tokens[:-1].view(-1, seq_len), tokens[1:].view(-1, seq_len)


class ByteCounter:
    """Bytes of text that target tokens stand for, by the challenge's rule (:mod:`evalkit.tokens.tokenizer`).

    Raises:
        TokenError: the tokenizer cannot be opened, or its vocabulary is not the model's.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        tokenizer = open_tokenizer(path)
        if tokenizer.vocab_size != vocab_size:
            raise TokenError(
                f"tokenizer {path} has {tokenizer.vocab_size} tokens, but the model has {vocab_size}; "
                "use the shards' tokenizer and set model.vocab_size"
            )
        self._table = tokenizer.byte_table

    def count(self, tokens: npt.NDArray[np.int64]) -> int:
        """Return the bytes of ``tokens[1:]``."""
        return int(self._table.count(tokens[:-1], tokens[1:]).sum(dtype=np.int64))


def load_validation(paths: list[Path], *, vocab_size: int, limit: int) -> npt.NDArray[np.int64] | None:
    """Return the first ``limit`` validation targets and the token before them; None without shards.

    Raises:
        TokenError: a shard is unusable or too short.
    """
    if not paths:
        return None
    pieces: list[npt.NDArray[Any]] = []
    for path in paths:
        shard = open_shard(path)
        _check_ids(shard, vocab_size, path)
        pieces.append(np.asarray(shard, dtype=np.int64))
        if limit and sum(map(len, pieces)) > limit:
            break
    tokens = np.concatenate(pieces)[: limit + 1 if limit else None]
    if len(tokens) < 2:
        raise TokenError(f"the validation shards, from {paths[0]}, hold fewer than 2 tokens")
    return tokens
