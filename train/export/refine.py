"""Refinement: after rounding, train what is still free, with the integers fixed.

Rounding moves the network away from where training left it. The steps of the rows, and everything that is stored in
floating point (gains, gates, mixes, small projections), can make up for part of that by descending the training loss
for a few hundred steps, as EfficientQAT (Chen et al. 2024, arXiv:2407.11062, second phase) does with the steps alone.

It costs no bytes: the integers are the same, and what is constant stays constant (a matrix whose rows share one step
gets one factor, not one for each row), because constants cost nothing in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from evalkit.artifact.tensors import PlainTensor, QuantizedTensor, StoredTensor
from evalkit.model.config import ModelConfig
from evalkit.model.empty import empty_model
from evalkit.plumbing.adamw import AdamGroup, AdamW
from evalkit.plumbing.progress import tracked
from evalkit.train.export.export import store_plain

_BETAS = (0.9, 0.95)
_SMALLEST_UNIT = 0.01  # of a tensor of zeros, such as a gate that never moved
_SMALLEST_STEP, _LARGEST_STEP = 2.0**-14, 65504.0  # the normal numbers of float16


def refine(
    model_config: ModelConfig,
    tensors: Mapping[str, StoredTensor],
    text: Callable[[int], Tensor],
    steps: int,
    *,
    learning_rate: float = 0.001,
) -> dict[str, StoredTensor]:
    """Return the tensors with steps and floating-point values trained; integers are untouched.

    Adam works on relative changes: 1 doubles a step, or adds a tensor's root mean square to an entry.

    Args:
        model_config: the network that the tensors belong to.
        tensors: what the artifact would hold.
        text: training tokens of update ``i``, int64 ``[B, T + 1]``.
        steps: number of updates.
        learning_rate: of the first update; falls linearly to zero.
    """
    model = empty_model(model_config)  # holds no weights: each pass gets its own
    free = {name: _Free.of(tensor) for name, tensor in tensors.items()}
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    changes = [f.change for f in free.values()]
    optimizer = AdamW([AdamGroup(parameters=changes, lr=learning_rate)], betas=_BETAS)
    for step in tracked(range(steps), "refine", unit="steps"):
        ids = text(step)
        state = {name: f.value().reshape(shapes[name]) for name, f in free.items()}
        logits = functional_call(model, state, (ids[:, :-1],))
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        for change in changes:
            change.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(lr_scale=1 - step / steps)
    return {name: f.stored(name, tensors[name]) for name, f in free.items()}


@dataclass(frozen=True, kw_only=True)
class _Free:
    """A tensor as ``base + unit * change``, or its step so, times the integers.

    Attributes:
        base: float32, the step (``[rows, 1 ...]`` or without dimensions) or the values.
        unit: float32, what a change of 1 adds.
        change: float32, trained; without dimensions where all of ``base`` is the same.
        integers: float32, None for a tensor that is not quantised.
    """

    base: Tensor
    unit: Tensor
    change: Tensor
    integers: Tensor | None

    @classmethod
    def of(cls, tensor: StoredTensor) -> _Free:
        if isinstance(tensor, QuantizedTensor):
            integers = torch.from_numpy(tensor.values).float()
            base = torch.from_numpy(tensor.scale.astype(np.float32))
            if base.ndim:
                base = base.reshape(-1, *([1] * (integers.ndim - 1)))
            unit = base
        else:
            integers = None
            base = torch.from_numpy(tensor.dequantize()).clone()
            unit = base.square().mean().sqrt().clamp_min(_SMALLEST_UNIT) if base.numel() else base.new_ones(())
        constant = bool((base == base.flatten()[:1]).all()) if base.numel() else True
        change = torch.zeros(() if constant else base.shape, requires_grad=True)
        return cls(base=base, unit=unit, change=change, integers=integers)

    def value(self) -> Tensor:
        """Return the values that the model computes with."""
        moved = self.base + self.unit * self.change
        return moved if self.integers is None else self.integers * moved

    @torch.no_grad()
    def stored(self, name: str, tensor: StoredTensor) -> StoredTensor:
        """Return the tensor with what was trained."""
        moved = self.base + self.unit * self.change
        if isinstance(tensor, PlainTensor):
            return store_plain(name, moved, tensor.stored, tensor.dtype)
        scale = moved.clamp(_SMALLEST_STEP, _LARGEST_STEP).reshape(tensor.scale.shape).numpy()
        return replace(tensor, scale=scale.astype(tensor.scale.dtype))
