"""Processes of one run (``torchrun``): they share the windows of every span, and each learns and reports the same.

What is shared is the work whose result is known to be the same wherever it is done: batches of windows, and rows of
test-time training on a CPU. The logits (gradients) come back to every rank in the order of the stream, so whatever
follows them (temperature, mixer, ledger) runs on every rank as it would in one process, and in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.plumbing.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among those of its run.

    Attributes:
        rank: 0 to ``count - 1``; 0 reports.
        count: number of processes.
        local_rank: place among the processes of this machine, which is the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count or self.local_rank < 0:
            raise InputError(
                f"RANK={self.rank}, WORLD_SIZE={self.count}, LOCAL_RANK={self.local_rank} in the environment are no "
                f"place among processes; start them with torchrun, or unset all three"
            )

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read what ``torchrun`` says; without it, this process is the only one.

        Raises:
            InputError: the variables hold something else than a place.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        try:
            rank, count, local_rank = (int(os.environ.get(name, "0")) for name in names)
        except ValueError:
            values = ", ".join(f"{name}={os.environ.get(name)!r}" for name in names)
            raise InputError(f"{values} in the environment; expected whole numbers, as torchrun sets them") from None
        return cls(rank=rank, count=count, local_rank=local_rank)

    @contextmanager
    def joined(self, device: str) -> Iterator[Ranks]:
        """Connect the processes for the length of a ``with`` block: gloo on a CPU, NCCL on GPUs."""
        if self.count == 1:
            yield self
            return
        if device.startswith("cuda"):
            torch.cuda.set_device(self.device(device))
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        try:
            yield self
        finally:
            torch.distributed.destroy_process_group()

    def device(self, device: str) -> str:
        """Return this rank's device: ``cuda`` without a number is the GPU of the local rank."""
        return f"cuda:{self.local_rank}" if device == "cuda" and self.count > 1 else device

    def slice(self, total: int, rank: int | None = None) -> range:
        """Return which of ``total`` pieces a rank (by default this one) takes: contiguous, as even as can be."""
        rank = self.rank if rank is None else rank
        return range(rank * total // self.count, (rank + 1) * total // self.count)

    def share(
        self, counts: Sequence[int], compute: Callable[[range], Iterable[Tensor]], like: Tensor
    ) -> Iterator[Tensor]:
        """Yield the results of pieces of work in order, each computed on one rank.

        Args:
            counts: number of rows that each piece gives, known to every rank.
            compute: returns the results of a range of pieces, each ``[rows, ...]``.
            like: a tensor of no rows, of the results' width, type and device.
        """
        own = self.slice(len(counts))
        if self.count == 1:
            yield from compute(own)
            return
        totals = [sum(counts[i] for i in self.slice(len(counts), rank)) for rank in range(self.count)]
        padded = like.new_zeros(max(totals), *like.shape[1:])
        row = 0
        for piece in compute(own):
            padded[row : row + len(piece)] = piece
            row += len(piece)
        gathered = [torch.empty_like(padded) for _ in range(self.count)]
        torch.distributed.all_gather(gathered, padded)
        for rank, (rows, total) in enumerate(zip(gathered, totals, strict=True)):
            yield from rows[:total].split([counts[i] for i in self.slice(len(counts), rank)])
