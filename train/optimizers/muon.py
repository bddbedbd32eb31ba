"""Muon over single matrices, in the challenge's convention, with the work shared out among ranks.

Convention (the "plain sum" one): M <- mu M + G without a factor (1 - mu); U = G + mu M (Nesterov);
W <- (1 - lr decay) W - lr sqrt(max(1, m/n)) NS(U). Since Newton-Schulz ignores the length of its input,
``torch.optim.Muon`` with M <- mu M + (1 - mu) G takes the same steps as long as mu is constant; while mu
warms up the two differ, because the plain sum keeps the weights of old gradients.

With ``row_normalise`` (MuonEq-R, as the records from PR1334 on have it), U's rows get length 1 before Newton-Schulz.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evalkit.plumbing.ranks import Ranks
from evalkit.train.config import OptimizerConfig
from evalkit.train.optimizers.newton_schulz import aspect_scale, newton_schulz
from evalkit.train.parameters import DTYPES

_SMALLEST_ROW = 1e-7


def muon_direction(g: Tensor, momentum_buffer: Tensor, *, momentum: float, config: OptimizerConfig) -> Tensor:
    """Return the orthogonalised, scaled update of a batch of matrices; advance their momentum in place.

    Args:
        g: reduced gradients ``[N, m, n]``.
        momentum_buffer: plain-sum momentum of the same shape, float32 or bfloat16.
        momentum: mu.
        config: Nesterov, row normalisation, and number, dtype and polynomials of the Newton-Schulz iterations.

    Returns:
        ``[N, m, n]`` in ``config.ns_precision``.
    """
    g = g.to(momentum_buffer.dtype)
    momentum_buffer.mul_(momentum).add_(g)
    update = g.add(momentum_buffer, alpha=momentum) if config.nesterov else momentum_buffer
    if config.row_normalise:
        update = update / torch.linalg.vector_norm(update, dim=-1, keepdim=True).clamp_min(_SMALLEST_ROW)
    orthogonal = newton_schulz(update, config.ns_steps, DTYPES[config.ns_precision], config.ns_coefficients)
    return orthogonal * aspect_scale(g.shape[-2], g.shape[-1])


def shard_rows(count: int, ranks: Ranks) -> int:
    """Return how many of ``count`` matrices each rank takes, padding included."""
    return -(-count // ranks.count)


class Muon:
    """Muon on matrices with replicated, already reduced gradients.

    Matrices of one shape form a batch; each rank orthogonalises an equal share of every batch, so the work is
    balanced by cost, and an all-gather hands the updates to everybody. Momentum exists on its owner alone.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks
        by_shape: dict[tuple[int, ...], dict[str, nn.Parameter]] = {}
        for name, parameter in parameters.items():
            by_shape.setdefault(tuple(parameter.shape), {})[name] = parameter
        self._groups = list(by_shape.values())
        self._momentum = [
            torch.zeros(
                shard_rows(len(group), ranks),
                *next(iter(group.values())).shape,
                dtype=DTYPES[config.momentum_precision],
                device=ranks.device,
            )
            for group in self._groups
        ]

    @torch.no_grad()
    def step(self, *, lr: float, momentum: float) -> None:
        """Update all matrices from their ``.grad``."""
        for group, buffer in zip(self._groups, self._momentum, strict=True):
            parameters: list[Tensor] = list(group.values())
            shard = buffer.shape[0]
            first = self._ranks.rank * shard
            mine = [p.grad for p in parameters[first : first + shard] if p.grad is not None]
            mine += [torch.zeros_like(buffer[0], dtype=torch.float32)] * (shard - len(mine))
            update = muon_direction(torch.stack(mine), buffer, momentum=momentum, config=self._config)
            if self._ranks.count > 1:
                gathered = update.new_empty(shard * self._ranks.count, *update.shape[1:])
                dist.all_gather_into_tensor(gathered, update.contiguous())
                update = gathered
            torch._foreach_mul_(parameters, 1.0 - lr * self._config.matrix_weight_decay)
            updates = [update[i].to(p.dtype) for i, p in enumerate(parameters)]
            torch._foreach_add_(parameters, updates, alpha=-lr)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the momentum of every matrix by name, gathered from all ranks (a collective call)."""
        state: dict[str, Tensor] = {}
        for group, buffer in zip(self._groups, self._momentum, strict=True):
            state.update(zip(group, gather_rows(buffer, self._ranks), strict=False))
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore :meth:`state_dict`'s output, on any number of ranks."""
        for group, buffer in zip(self._groups, self._momentum, strict=True):
            scatter_rows(buffer, [state[name] for name in group], self._ranks)


def gather_rows(shard: Tensor, ranks: Ranks) -> Tensor:
    """Return the rows of all ranks' shards, ``[size * rows, ...]``."""
    if ranks.count == 1:
        return shard
    gathered = shard.new_empty(shard.shape[0] * ranks.count, *shard.shape[1:])
    dist.all_gather_into_tensor(gathered, shard.contiguous())
    return gathered


def scatter_rows(shard: Tensor, rows: list[Tensor], ranks: Ranks) -> None:
    """Fill this rank's shard with its part of ``rows``."""
    shard.zero_()
    first = ranks.rank * shard.shape[0]
    for i, row in enumerate(rows[first : first + shard.shape[0]]):
        shard[i].copy_(row)
