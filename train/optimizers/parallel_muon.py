"""Parallel Muon: banks, scattered gradients, sharded Newton-Schulz, gathered updates (PR634).

Each bank ``[N, m, n]`` is padded to a multiple of the ranks and split by rows. Three phases overlap:

1. gradients of all banks start their reduce-scatter;
2. meanwhile the other gradients are all-reduced by the caller;
3. bank by bank, largest first: momentum and Newton-Schulz on the own shard, then an asynchronous all-gather,
   which is awaited only after the next bank's Newton-Schulz has been computed.

The gradient is clipped after reduction (over shards and replicated part together), so the threshold means the
same on any number of ranks, and one process takes the same steps without any communication.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evalkit.plumbing.ranks import Ranks
from evalkit.train.config import OptimizerConfig
from evalkit.train.optimizers.muon import gather_rows, muon_direction, scatter_rows, shard_rows
from evalkit.train.parameters import DTYPES


@dataclass(kw_only=True)
class _Bank:
    """One bank's buffers; the parameter's ``.grad`` is a view of the first rows of ``gradient``."""

    name: str
    parameter: nn.Parameter
    gradient: Tensor
    shard: Tensor
    momentum: Tensor
    pending: list[Any] = field(default_factory=list)


class ParallelMuon:
    """Muon on parameter banks.

    Call :meth:`reduce` after the backward pass, then :meth:`square_norm`, then :meth:`step`.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks
        self._reduce_dtype = DTYPES[config.reduce_precision]
        momentum_dtype = DTYPES[config.momentum_precision]
        self._banks: list[_Bank] = []
        for name, parameter in sorted(parameters.items(), key=lambda item: -item[1].numel()):
            rows = shard_rows(parameter.shape[0], ranks)
            padded = torch.zeros(rows * ranks.count, *parameter.shape[1:], device=ranks.device)
            parameter.grad = padded[: parameter.shape[0]]
            self._banks.append(
                _Bank(
                    name=name,
                    parameter=parameter,
                    gradient=padded,
                    shard=padded if ranks.count == 1 else padded.new_empty(rows, *parameter.shape[1:]),
                    momentum=torch.zeros(rows, *parameter.shape[1:], dtype=momentum_dtype, device=ranks.device),
                )
            )

    def zero_grad(self) -> None:
        """Zero the gradients, padding included."""
        for bank in self._banks:
            bank.gradient.zero_()

    def reduce(self) -> None:
        """Start the reduce-scatter of every bank."""
        if self._ranks.count == 1:
            return
        for bank in self._banks:
            source = bank.gradient.to(self._reduce_dtype)
            target = torch.empty(bank.shard.shape, dtype=self._reduce_dtype, device=self._ranks.device)
            work = dist.reduce_scatter_tensor(target, source, async_op=True)
            bank.pending = [work, source, target]

    def square_norm(self) -> Tensor:
        """Wait for the reduction and return this rank's part of the squared gradient norm."""
        for bank in self._banks:
            if bank.pending:
                work, _, target = bank.pending
                work.wait()
                bank.shard.copy_(target).div_(self._ranks.count)
                bank.pending = []
        return torch.stack([bank.shard.float().square().sum() for bank in self._banks]).sum()

    @torch.no_grad()
    def step(self, *, lr: float, momentum: float, clip: Tensor) -> None:
        """Update all banks; ``clip`` is the factor on the reduced gradient."""
        previous: tuple[_Bank, Tensor, Any] | None = None
        for bank in self._banks:
            update = muon_direction(bank.shard * clip, bank.momentum, momentum=momentum, config=self._config)
            work = None
            if self._ranks.count > 1:
                gathered = update.new_empty(bank.gradient.shape)
                work = dist.all_gather_into_tensor(gathered, update.contiguous(), async_op=True)
                update = gathered
            if previous is not None:
                self._apply(*previous, lr=lr)
            previous = (bank, update, work)
        if previous is not None:
            self._apply(*previous, lr=lr)

    def _apply(self, bank: _Bank, update: Tensor, work: Any, *, lr: float) -> None:
        if work is not None:
            work.wait()
        parameter = bank.parameter
        parameter.mul_(1.0 - lr * self._config.matrix_weight_decay)
        parameter.add_(update[: parameter.shape[0]].to(parameter.dtype), alpha=-lr)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the momentum of every bank by name, gathered from all ranks (a collective call)."""
        return {b.name: gather_rows(b.momentum, self._ranks)[: b.parameter.shape[0]] for b in self._banks}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore :meth:`state_dict`'s output, on any number of ranks."""
        for bank in self._banks:
            scatter_rows(bank.momentum, list(state[bank.name]), self._ranks)
