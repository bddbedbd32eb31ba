"""All optimizers of a run as one: who owns which parameter, reduction, clipping, and the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evalkit.plumbing.adamw import AdamGroup, AdamW
from evalkit.plumbing.ranks import Ranks
from evalkit.train.config import OptimizerConfig
from evalkit.train.optimizers.muon import Muon
from evalkit.train.optimizers.parallel_muon import ParallelMuon
from evalkit.train.parameters import BANKS, DTYPES, role_of

Owner = Literal["bank", "muon", "table", "head", "vector", "projection"]


def owner_of(name: str, config: OptimizerConfig) -> Owner:
    """Return which group trains the master ``name``: banks and ``muon`` by Muon, the others by Adam."""
    role = role_of(name)
    if name in BANKS:
        return "bank"
    if role in ("attention", "mlp"):
        return "muon"
    if role == "projection":
        return "muon" if config.small_projections == "muon" else "projection"
    return "table" if role == "table" else "head" if role == "head" else "vector"


class Optimizer:
    """Muon for matrices and Adam(W) for the rest, on replicated masters.

    Gradients live in flat buffers, of which every ``.grad`` is a view: one reduction serves all parameters
    outside banks, and a parameter that got no gradient contributes zeros.
    """

    def __init__(self, masters: Mapping[str, nn.Parameter], config: OptimizerConfig, ranks: Ranks) -> None:
        self.config, self._ranks = config, ranks
        owned: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in masters.items():
            owned.setdefault(owner_of(name, config), {})[name] = parameter
        banks, matrices = owned.pop("bank", {}), owned.pop("muon", {})
        self._flat = _flat_gradients([*matrices.values(), *(p for group in owned.values() for p in group.values())])
        self._muon = Muon(matrices, config, ranks)
        self._parallel = ParallelMuon(banks, config, ranks) if banks else None
        rates = {
            "table": config.embed_lr,
            "head": config.head_lr,
            "vector": config.scalar_lr,
            "projection": config.scalar_lr,
        }
        groups = [
            AdamGroup(
                parameters=list(parameters.values()),
                lr=rates[owner],
                weight_decay=config.vector_decay if owner == "vector" else config.adam_weight_decay,
            )
            for owner, parameters in owned.items()
        ]
        self._adam = AdamW(
            groups,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            fused=True if ranks.device.type == "cuda" else None,
        )

    def zero_grad(self) -> None:
        """Zero all gradients in place."""
        for flat in self._flat:
            flat.zero_()
        if self._parallel is not None:
            self._parallel.zero_grad()

    @torch.no_grad()
    def step(self, *, lr_scale: float, momentum: float) -> Tensor:
        """Reduce, clip and apply the accumulated gradients.

        Args:
            lr_scale: factor of the schedule on every learning rate.
            momentum: Muon's momentum of this step.

        Returns:
            Global L2 norm of the reduced gradient before clipping, on the device.
        """
        config = self.config
        if self._parallel is not None:
            self._parallel.reduce()
        for flat in self._flat:
            self._reduce(flat)
        square = torch.stack([flat.float().square().sum() for flat in self._flat]).sum()
        if self._parallel is not None:
            sharded = self._parallel.square_norm()
            self._ranks.sum_(sharded)
            square = square + sharded
        norm = square.sqrt()
        clip = torch.ones_like(norm)
        if config.clip_norm:
            clip = torch.clamp(config.clip_norm / (norm + 1e-6), max=1.0)
            for flat in self._flat:
                flat.mul_(clip)
        self._adam.step(lr_scale=lr_scale)
        lr = config.matrix_lr * lr_scale
        self._muon.step(lr=lr, momentum=momentum)
        if self._parallel is not None:
            self._parallel.step(lr=lr, momentum=momentum, clip=clip)
        return norm

    def _reduce(self, flat: Tensor) -> None:
        wire = DTYPES[self.config.reduce_precision]
        if flat.dtype == wire or self._ranks.count == 1:
            self._ranks.mean_(flat)
        else:
            rounded = flat.to(wire)
            self._ranks.mean_(rounded)
            flat.copy_(rounded)

    def state_dict(self) -> dict[str, Any]:
        """Return everything, independent of the number of ranks (a collective call)."""
        state: dict[str, Any] = {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}
        if self._parallel is not None:
            state["banks"] = self._parallel.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`'s output."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
        if self._parallel is not None:
            self._parallel.load_state_dict(state["banks"])


def _flat_gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """Make every ``.grad`` a view into one buffer for each dtype, and return the buffers."""
    buffers: list[Tensor] = []
    for dtype in dict.fromkeys(p.dtype for p in parameters):
        members = [p for p in parameters if p.dtype == dtype]
        flat = torch.zeros(sum(p.numel() for p in members), dtype=dtype, device=members[0].device)
        done = 0
        for p in members:
            p.grad = flat[done : done + p.numel()].view_as(p)
            done += p.numel()
        buffers.append(flat)
    return buffers
