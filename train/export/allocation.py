"""A step of its own for every tensor: the least predicted loss for a number of bytes.

With an entropy coder, the step decides what a tensor costs, and the width only how large an integer may get. At the
best allocation one byte more buys the same loss in every tensor, so all tensors minimise ``loss + price * bytes`` at
one price (Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers"). Losses come from
:mod:`train.quantization.curvature`, bytes from the entropy of the integers; the caller corrects for what a container
really takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evalkit.artifact.tensors import PlainTensor, QuantizedTensor, StoredTensor
from evalkit.progress import tracked
from train.export.export import quantize_tensor
from train.quantization.curvature import Curvature
from train.quantization.plan import QuantizationPlan, TensorRule, layer_count
from train.quantization.rows import integer_limit

STEPS = tuple(2.0 ** (-j / 2) for j in range(-2, 8))
"""Candidates for the step, in root mean squares of a tensor's entries: about 1 to 5.5 bits an entry."""

_PRICES = 60  # halvings


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to store one tensor.

    Attributes:
        tensor: what would be stored.
        n_bytes: estimate of what it takes.
        cost: predicted rise of the loss, nats per token.
    """

    tensor: StoredTensor
    n_bytes: float
    cost: float


def choices(
    state: Mapping[str, Tensor],
    plan: QuantizationPlan,
    hessians: Mapping[str, Tensor],
    curvature: Curvature,
    widths: Sequence[int],
) -> dict[str, list[Choice]]:
    """Return the ways to store every tensor: as the plan says, and large matrices with every step of :data:`STEPS`.

    Args:
        state: name to float tensor.
        plan: widths and floors to start from; what it keeps in floating point because it is small stays so.
        hessians: mean of ``x x^T`` by module name.
        curvature: prices of errors; a tensor that it does not know is stored as the plan says.
        widths: integer widths that the container holds, ascending.
    """
    layers = layer_count(state)
    result = {}
    for name, weight in tracked(list(state.items()), "try steps", unit="weights", size=lambda item: item[1].numel()):
        rule = plan.rule_for(name, weight.numel(), layers)
        module = name.removesuffix(".weight")
        rules = [rule]
        if weight.ndim == 2 and (rule.bits or not rule.max_elements) and curvature.knows(module):
            rules += [step_rule(name, weight, factor, widths, gptq=module in hessians) for factor in STEPS]
        result[name] = [_choice(name, weight, plan, one, hessians, curvature) for one in rules]
    return result


def step_rule(name: str, weight: Tensor, factor: float, widths: Sequence[int], *, gptq: bool) -> TensorRule:
    """Return a rule with the step ``factor`` times the root mean square of a tensor, in the width that this needs."""
    step = factor * float(weight.square().mean().sqrt())
    largest = float(weight.abs().max())
    fitting = [bits for bits in widths if integer_limit(bits) * step >= largest]
    bits = fitting[0] if fitting else widths[-1]
    return TensorRule(patterns=(name,), format=f"int{bits}", min_step=min(step, 60_000.0), gptq=gptq)


def _choice(
    name: str,
    weight: Tensor,
    plan: QuantizationPlan,
    rule: TensorRule,
    hessians: Mapping[str, Tensor],
    curvature: Curvature,
) -> Choice:
    tensor = quantize_tensor(name, weight, plan, rule, hessians)
    module = name.removesuffix(".weight")
    cost = 0.0
    if weight.ndim == 2 and curvature.knows(module):
        cost = curvature.cost(module, weight - torch.from_numpy(tensor.dequantize()).view_as(weight), hessians)
    return Choice(tensor=tensor, n_bytes=estimated_bytes(tensor), cost=cost)


def estimated_bytes(tensor: StoredTensor) -> float:
    """Return the entropy of the integers, and of the distinct bytes of what is stored in floating point."""
    if isinstance(tensor, PlainTensor):
        return _entropy_bytes(tensor.values)
    assert isinstance(tensor, QuantizedTensor)
    return _entropy_bytes(tensor.values) + _entropy_bytes(tensor.scale)


def _entropy_bytes(values: np.ndarray) -> float:
    """Return the order-0 entropy of the values' bytes, each of their places with its own histogram."""
    places = np.ascontiguousarray(values).reshape(-1, 1).view(np.uint8)
    total = 0.0
    for place in places.T:
        counts = np.bincount(place, minlength=1)
        counts = counts[counts > 0]
        total -= float((counts * np.log2(counts / counts.sum())).sum()) / 8
    return total


def allocate(options: Mapping[str, Sequence[Choice]], n_bytes: float) -> dict[str, Choice]:
    """Return a choice for every tensor, the least total cost at one price, whose estimates stay within ``n_bytes``.

    If even the smallest choices do not, they are what comes back.
    """
    low, high = 0.0, 1.0
    if _total(_at(options, low)) <= n_bytes:
        return _at(options, low)
    while _total(_at(options, high)) > n_bytes and high < 2.0**40:
        high *= 4
    for _ in range(_PRICES):
        middle = (low + high) / 2
        if _total(_at(options, middle)) <= n_bytes:
            high = middle
        else:
            low = middle
    return _at(options, high)


def _at(options: Mapping[str, Sequence[Choice]], price: float) -> dict[str, Choice]:
    return {
        n: min(c, key=lambda choice: (choice.cost + price * choice.n_bytes, choice.n_bytes)) for n, c in options.items()
    }


def _total(chosen: Mapping[str, Choice]) -> float:
    return sum(choice.n_bytes for choice in chosen.values())
