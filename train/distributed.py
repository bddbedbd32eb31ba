"""Processes under ``torchrun``: gloo on CPUs, NCCL on GPUs, and nothing at all for a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from evalkit.plumbing.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among all that train one model.

    Attributes:
        rank: number of this process.
        size: number of processes.
        device: device of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def mean_(self, values: Tensor) -> None:
        """Replace ``values`` by their mean over the ranks (gloo has no AVG, so sum and divide)."""
        if self.size > 1:
            dist.all_reduce(values)
            values.div_(self.size)

    def sum_(self, values: Tensor) -> None:
        """Replace ``values`` by their sum over the ranks."""
        if self.size > 1:
            dist.all_reduce(values)

    def largest(self, *numbers: float) -> list[float]:
        """Return the maximum of each number over the ranks."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [float(value) for value in values.tolist()]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def launched(device: str) -> Iterator[Ranks]:
    """Join the processes of ``torchrun`` and leave them at the end; a plain process is rank 0 of 1.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InputError: the device is not there.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name, _, number = device.partition(":")
    if name not in ("cpu", "cuda") or not (number.isdecimal() or device == name):
        raise InputError(f"train.device is {device!r}; expected auto, cpu, cuda or cuda:N")
    place = torch.device("cpu")
    if name == "cuda":
        index = int(number) if number else local
        if index >= torch.cuda.device_count():
            raise InputError(f"train.device is {device}, GPU {index}, but torch sees {torch.cuda.device_count()} GPUs")
        place = torch.device("cuda", index)
        torch.cuda.set_device(place)
    if size == 1:
        yield Ranks(rank=0, size=1, device=place)
        return
    started_here = not dist.is_initialized()
    if started_here:
        if place.type == "cuda":
            dist.init_process_group("nccl", device_id=place)
        else:
            dist.init_process_group("gloo")
    try:
        yield Ranks(rank=rank, size=size, device=place)
    finally:
        if started_here:
            dist.destroy_process_group()
