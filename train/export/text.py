"""The text that an export learns from: training shards or the model's own samples, never validation text.

Both have ``notes``, what must be said about them, one sentence each, and ``kind``, what they are, in words.
Calibration, measuring and refinement read parts that do not overlap (unless the shards are too short, which wrap).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from evalkit.model.cache import KVCache
from evalkit.model.gpt import GPT
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import sha256_of
from evalkit.tokens.shards import open_shard, split_of
from evalkit.train.data import TrainingTokens, find_shards
from evalkit.train.folder import TrainedModel

HELD_OUT_TOKENS = 16_384  # at least; as many as calibrate where those are more
REFINE_TOKENS = 4096  # of one update
_BOS = 1
_VALIDATION_NAME = re.compile(r"(^|[^a-z])(val|valid|validation|test|eval)([^a-z]|$)")


class TrainingText:
    """Tokens of training shards.

    Args:
        data: folder with the shards.
        trained: names the shards and the window.
        calibration_tokens: tokens of the first part; 0 for none.
        refine_steps: updates that :meth:`refinement` is asked for.
        force: read shards that look like validation data all the same.

    Raises:
        InputError: there are no shards, or one that would be read looks like validation data or is a copy of some.
    """

    kind = "training text"

    def __init__(
        self, data: Path, trained: TrainedModel, *, calibration_tokens: int, refine_steps: int = 0, force: bool = False
    ) -> None:
        self._seq_len = trained.config.train.seq_len
        self._calibration_rows = _calibration_rows(calibration_tokens, self._seq_len)
        self._held_out_rows = max(max(calibration_tokens, HELD_OUT_TOKENS) // self._seq_len, 1)
        self._refine_rows = max(REFINE_TOKENS // self._seq_len, 1)
        self._held_out_start = self._calibration_rows * self._seq_len
        self._refine_start = self._held_out_start + self._held_out_rows * (self._seq_len + 1)
        shards, validation = find_shards(data, trained.config.data)
        used = _first_shards(shards, self._refine_start + refine_steps * self._refine_rows * (self._seq_len + 1))
        self.notes = check_calibration_shards(used, validation, force=force)
        if self._calibration_rows:
            self.notes.append(f"calibrated on {self._held_out_start:,} training tokens")
        self._stream = TrainingTokens(used, vocab_size=trained.config.model.vocab_size)

    def _rows(self, start: int, rows: int, width: int) -> Tensor:
        return torch.from_numpy(self._stream.read(start, rows * width)).view(rows, width)

    def calibration(self) -> list[Tensor]:
        """Return the first tokens, int64 ``[1, T]`` each."""
        return [row[None] for row in self._rows(0, self._calibration_rows, self._seq_len)]

    def held_out(self) -> Tensor:
        """Return the tokens after those, int64 ``[rows, T + 1]``."""
        return self._rows(self._held_out_start, self._held_out_rows, self._seq_len + 1)

    def refinement(self, step: int) -> Tensor:
        """Return the tokens of an update, further on, int64 ``[rows, T + 1]``."""
        width = self._seq_len + 1
        return self._rows(self._refine_start + step * self._refine_rows * width, self._refine_rows, width)


class OwnSamples:
    """Tokens drawn from the model itself."""

    kind = "the model's own samples"

    def __init__(self, model: GPT, *, seq_len: int, calibration_tokens: int) -> None:
        self._model, self._seq_len = model, seq_len
        self._calibration_rows = _calibration_rows(calibration_tokens, seq_len)
        self.notes: list[str] = []
        if self._calibration_rows:
            self.notes.append(f"calibrated on {self._calibration_rows * seq_len:,} tokens of the model's own samples")

    def calibration(self) -> list[Tensor]:
        """Return the model's samples, int64 ``[1, T]`` each."""
        if not self._calibration_rows:
            return []
        drawn = sample(self._model, rows=self._calibration_rows, seq_len=self._seq_len, seed=0)
        return [row[None] for row in drawn]

    def held_out(self) -> Tensor:
        """Return other samples, int64 ``[rows, T + 1]``."""
        rows = max(HELD_OUT_TOKENS // self._seq_len, 1)
        return sample(self._model, rows=rows, seq_len=self._seq_len + 1, seed=1)


@torch.no_grad()
def sample(model: GPT, *, rows: int, seq_len: int, seed: int) -> Tensor:
    """Draw ``[rows, seq_len]`` tokens from the model itself, each row from BOS."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((rows, 1), _BOS)
    cache = KVCache(len(model.config.passes))
    while ids.shape[1] < seq_len:
        logits = model(ids, first_row=ids.shape[1] - 1, cache=cache, fed_length=seq_len)[:, -1]
        drawn = torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator)
        ids = torch.cat([ids, drawn], dim=1)
    return ids


def _calibration_rows(tokens: int, seq_len: int) -> int:
    return max(tokens // seq_len, 1) if tokens else 0


def _first_shards(shards: Sequence[Path], tokens: int) -> list[Path]:
    """Return the first shards, as many as hold so many tokens."""
    used = []
    for path in shards:
        used.append(path)
        tokens -= len(open_shard(path))
        if tokens <= 0:
            break
    return used


def check_calibration_shards(paths: Sequence[Path], validation: Sequence[Path], *, force: bool = False) -> list[str]:
    """Refuse shards that look like, or are, validation data.

    Args:
        paths: files that calibration would read.
        validation: the validation shards that are known.
        force: go on all the same.

    Returns:
        What must be said in the report: one sentence for each suspicious shard, empty when there is none.

    Raises:
        InputError: a shard is named like validation data or is a copy of some, and ``force`` is off.
    """
    notes = []
    for path in paths:
        size = path.stat().st_size
        if any(other.stat().st_size == size and sha256_of(other) == sha256_of(path) for other in validation):
            notes.append(f"calibration shard {path.name} has the SHA-256 of a validation shard")
        elif split_of(path) != "train" and _VALIDATION_NAME.search(path.name.lower()):
            notes.append(f"calibration shard {path.name} is named like a validation shard")
    if notes and not force:
        raise InputError(f"{notes[0]}: calibrate on training shards or on the model's own samples")
    return notes
