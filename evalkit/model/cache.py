"""Keys and values of rows that need not be computed again: a slot for each pass through a block."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """Keys and values of one pass through a block, for rows that came before."""

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append rows, ``[B, K, T, D]`` each, and return all rows that the new ones may attend to."""
        ...


class PassCache:
    """Keys and values of one pass, ``[B, K, T, D]`` each, for rows that need not be computed again."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append rows and return all rows."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


class KVCache:
    """Keys and values of every pass through a block, for the rows of a window that have been computed.

    A block that is visited twice computes other keys and values each time, hence a slot for each pass.
    """

    def __init__(self, num_passes: int) -> None:
        self.passes = [PassCache() for _ in range(num_passes)]
        self.length = 0
