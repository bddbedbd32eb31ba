"""Adam with decoupled weight decay: torch's own steps, bit for bit, without the start-up of ``torch.optim.AdamW``.

Making any ``torch.optim`` optimizer imports torch's compiler, which takes seconds, in every process that trains a
little or not at all. torch's function that takes the step does not need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


@dataclass(frozen=True, kw_only=True)
class AdamGroup:
    """Parameters with one learning rate and one decay."""

    parameters: Sequence[Tensor]
    lr: float
    weight_decay: float = 0.0


class AdamW:
    """The optimizer of some groups of parameters.

    Args:
        groups: what to train.
        betas: decay of the first and the second moment.
        eps: added to the denominator.
        fused: one kernel for all parameters, on a GPU; None leaves the choice to torch.
    """

    def __init__(
        self,
        groups: Sequence[AdamGroup],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
    ) -> None:
        self._groups, self._betas, self._eps, self._fused = groups, betas, eps, fused
        self._state = [_State.of(p, on_device=bool(fused)) for group in groups for p in group.parameters]

    @torch.no_grad()
    def step(self, *, lr_scale: float = 1.0) -> None:
        """Take a step along ``.grad``, at every group's rate times ``lr_scale``; without a gradient nothing moves."""
        states = iter(self._state)
        for group in self._groups:
            moved = [
                (p, p.grad, state) for p, state in zip(group.parameters, states, strict=False) if p.grad is not None
            ]
            adamw(
                [parameter for parameter, _, _ in moved],
                [gradient for _, gradient, _ in moved],
                [state.exp_avg for _, _, state in moved],
                [state.exp_avg_sq for _, _, state in moved],
                [],
                [state.step for _, _, state in moved],
                fused=self._fused,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=group.lr * lr_scale,
                weight_decay=group.weight_decay,
                eps=self._eps,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the moments and counts of every parameter, under torch's names for them."""
        return {"state": {i: vars(state) for i, state in enumerate(self._state)}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`'s output, or torch.optim.AdamW's, which is empty before its first step."""
        for i, mine in enumerate(self._state):
            given = state["state"].get(i)
            for name, value in vars(mine).items():
                value.zero_() if given is None else value.copy_(given[name])


@dataclass(frozen=True, kw_only=True)
class _State:
    """Count of steps, and the first and second moment of the gradient."""

    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    @classmethod
    def of(cls, parameter: Tensor, *, on_device: bool) -> _State:
        value = parameter.detach()
        return cls(
            step=torch.zeros((), dtype=torch.float32, device=value.device if on_device else "cpu"),
            exp_avg=torch.zeros_like(value),
            exp_avg_sq=torch.zeros_like(value),
        )
