"""Processes of one run (``torchrun``): each knows its place, and they exchange numbers and tensors.

Scoring shares the work whose result is known to be the same wherever it is done: batches of windows, and rows of
test-time training on a CPU. The logits (gradients) come back to every rank in the order of the stream, so whatever
follows them (temperature, mixer, ledger) runs on every rank as it would in one process, and in the same order.
Training shares the micro-batches of a step, whose gradients are averaged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from evalkit.plumbing.errors import InputError
from evalkit.plumbing.launch import place_among_processes

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among those of its run.

    Attributes:
        rank: 0 to ``count - 1``; 0 reports.
        count: number of processes.
        local_rank: place among the processes of this machine, which is the number of its GPU.
        device: where this process computes, once it has joined the others.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    device: torch.device = _CPU

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read what ``torchrun`` says; without it, this process is the only one.

        Raises:
            InputError: the variables hold something else than a place.
        """
        rank, count, local_rank = place_among_processes()
        return cls(rank=rank, count=count, local_rank=local_rank)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def local(self, device: str) -> str:
        """Return this rank's device: ``cuda`` alone is the local rank's GPU; so is ``auto``, if it has one."""
        if self.count == 1:
            return device
        if device == "auto":
            device = "cuda" if torch.cuda.device_count() > self.local_rank else "cpu"
        return f"cuda:{self.local_rank}" if device == "cuda" else device

    @contextmanager
    def joined(self, device: str) -> Iterator[Ranks]:
        """Connect the processes for the length of a ``with`` block: gloo on CPUs, NCCL on GPUs.

        Args:
            device: ``cpu``, ``cuda`` or ``cuda:N``; a machine that lacks it has been refused before.

        Raises:
            InputError: there are several processes, and the environment does not say where they meet.
        """
        joined = replace(self, device=torch.device(self.local(device)))
        on_gpu = joined.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(joined.device.index or 0)
        if self.count == 1 or dist.is_initialized():
            yield joined
            return
        if "MASTER_ADDR" not in os.environ:
            raise InputError(f"WORLD_SIZE is {self.count}, but no MASTER_ADDR says where they meet; use torchrun")
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=joined.device if on_gpu else None)
        try:
            yield joined
        finally:
            dist.destroy_process_group()

    def mean_(self, values: Tensor) -> None:
        """Replace ``values`` by their mean over the ranks (gloo has no AVG, so sum and divide)."""
        if self.count > 1:
            dist.all_reduce(values)
            values.div_(self.count)

    def sum_(self, values: Tensor) -> None:
        """Replace ``values`` by their sum over the ranks."""
        if self.count > 1:
            dist.all_reduce(values)

    def largest(self, *numbers: float) -> list[float]:
        """Return the maximum of each number over the ranks."""
        if self.count == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [float(value) for value in values.tolist()]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.count > 1:
            dist.barrier()

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
        dist.all_gather(gathered, padded)
        for rank, (rows, total) in enumerate(zip(gathered, totals, strict=True)):
            yield from rows[:total].split([counts[i] for i in self.slice(len(counts), rank)])
