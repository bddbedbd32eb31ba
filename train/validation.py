"""Validation during training: non-overlapping windows, every target once, no claim of legality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evalkit.plumbing.ranks import Ranks
from evalkit.train.data import ByteCounter
from evalkit.train.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One pass over the validation stream.

    Attributes:
        val_loss: nats per token.
        val_bpb: bits per byte, or None without a tokenizer.
    """

    val_loss: float
    val_bpb: float | None


class Validator:
    """Scores the validation stream in windows of the training length; the last one is padded on the right."""

    def __init__(
        self,
        tokens: npt.NDArray[np.int64],
        *,
        seq_len: int,
        batch_tokens: int,
        byte_counter: ByteCounter | None,
        ranks: Ranks,
    ) -> None:
        self._tokens = torch.from_numpy(tokens)
        self._seq_len, self._batch, self._ranks = seq_len, max(1, batch_tokens // seq_len), ranks
        self._bytes = byte_counter.count(tokens) if byte_counter is not None else 0
        self.num_targets = len(tokens) - 1

    @property
    def bits_per_byte_factor(self) -> float | None:
        """Bits per byte for one nat per token, or None without a tokenizer."""
        return self.num_targets / self._bytes / math.log(2.0) if self._bytes else None

    def run(self, objective: Objective, masters: Mapping[str, Tensor], *, looped: bool = True) -> Validation:
        """Return the loss of ``masters`` over all targets, shared out among the ranks; ``looped`` as in training."""
        windows = -(-self.num_targets // self._seq_len)
        padding = windows * self._seq_len - self.num_targets
        padded = torch.nn.functional.pad(self._tokens, (0, padding))
        inputs, targets = padded[:-1].view(windows, -1), padded[1:].view(windows, -1)
        counted = (torch.arange(windows * self._seq_len) < self.num_targets).view(windows, -1)
        total = torch.zeros((), dtype=torch.float64)
        device = self._ranks.device
        for first in range(self._ranks.rank * self._batch, windows, self._batch * self._ranks.count):
            rows = slice(first, first + self._batch)
            nats = objective.nats(masters, inputs[rows].to(device), targets[rows].to(device), looped=looped)
            total += nats.double().cpu()[counted[rows]].sum()
        total = total.to(device)
        self._ranks.sum_(total)
        loss = float(total) / self.num_targets
        factor = self.bits_per_byte_factor
        return Validation(val_loss=loss, val_bpb=loss * factor if factor is not None else None)
