"""A step of its own for every tensor: the least predicted loss for a number of bytes.

With an entropy coder, the step decides what a tensor costs, and the width only how large an integer may get. At the
best allocation one byte more buys the same loss in every tensor, so all tensors minimise ``loss + price * bytes`` at
one price (Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers"). Losses come from
:mod:`evalkit.train.quantization.curvature`, bytes from the entropy of the integers; the caller corrects for what a
container really takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evalkit.artifact.tensors import QuantizedTensor, StoredTensor
from evalkit.plumbing.progress import tracked
from evalkit.train.export.export import quantize_tensor
from evalkit.train.quantization.curvature import Curvature
from evalkit.train.quantization.gptq import rounded
from evalkit.train.quantization.plan import QuantizationPlan, layer_count
from evalkit.train.quantization.rows import integer_limit, row_step

STEPS = tuple(2.0 ** (-j / 2) for j in range(-2, 8))
"""Candidates for the step of a row of mean curvature, in root mean squares of a tensor's entries."""

_PRICES = 60  # halvings
_UNTOUCHED = 0.1  # of the mean curvature, added to that of every row
_FACTORS_PER_OCTAVE = 4
_LARGEST_STEP = 60_000.0


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
        module = module_of(name)
        tensors = [quantize_tensor(name, weight, plan, rule, hessians)]
        if weight.ndim == 2 and (rule.bits or not rule.max_elements) and curvature.knows(module):
            unit = float(weight.square().mean().sqrt()) * row_factors(curvature.rows(module))
            tensors += [
                quantize_rows_to(weight, factor * unit, widths, hessians.get(module), plan.dtype_of(name))
                for factor in STEPS
            ]
        result[name] = [weighed(name, weight, t, hessians, curvature) for t in tensors]
    return result


def module_of(name: str) -> str:
    """Return the name of the module that a tensor belongs to, by which Hessians and curvatures go."""
    return name.removesuffix(".weight")


def weighed(
    name: str, weight: Tensor, tensor: StoredTensor, hessians: Mapping[str, Tensor], curvature: Curvature
) -> Choice:
    """Return a stored tensor as a choice, with its estimates; ``weight`` is what it stands for."""
    module, cost = module_of(name), 0.0
    if weight.ndim == 2 and curvature.knows(module):
        cost = curvature.cost(module, weight - torch.from_numpy(tensor.dequantize()).view_as(weight), hessians)
    return Choice(tensor=tensor, n_bytes=estimated_bytes(tensor), cost=cost)


def row_factors(curvature: Tensor) -> Tensor:
    """Return the steps that rows should have beside one another, ``[rows]``, 1 for the mean curvature.

    A byte buys the same everywhere if curvature times squared step is the same. Factors are powers of a fourth root
    of 2, so that few of them are distinct, and a row that calibration hardly touched is not given up.
    """
    relative = curvature.double() / curvature.double().mean().clamp_min(1e-300)
    exponents = -0.5 * torch.log2(relative + _UNTOUCHED)
    return torch.exp2(torch.round(_FACTORS_PER_OCTAVE * exponents) / _FACTORS_PER_OCTAVE).float()


def quantize_rows_to(
    weight: Tensor, step: Tensor, widths: Sequence[int], hessian: Tensor | None, dtype: str
) -> QuantizedTensor:
    """Return a matrix in integers of given steps, in the narrowest width that holds them.

    Args:
        weight: ``[rows, cols]``.
        step: ``[rows]``; larger where even the widest integers would not reach a row's largest entry.
        widths: integer widths to choose from, ascending.
        hessian: mean of ``x x^T``; None rounds to nearest.
        dtype: in which the model holds the weight.
    """
    weight = weight.detach().float()
    largest = weight.abs().amax(dim=1)
    clipped = row_step(largest, widths[-1])
    steps = torch.maximum(step.half(), clipped).clamp(max=_LARGEST_STEP)
    fitting = [bits for bits in widths if bool((integer_limit(bits) * steps.float() >= largest).all())]
    bits = fitting[0] if fitting else widths[-1]
    values = rounded(weight, steps, bits, hessian)
    return QuantizedTensor(values=values.contiguous().numpy(), scale=steps.numpy(), bits=bits, dtype=dtype)


def best_next(chosen: Mapping[str, Choice], options: Mapping[str, Sequence[Choice]]) -> tuple[str, Choice] | None:
    """Return the tensor in which a byte more buys most, and its finer choice; None if all have their finest.

    Tensors that are stored in floating point have no steps in between and are left out.
    """
    finer = [
        ((now.cost - choice.cost) / (choice.n_bytes - now.n_bytes), name, choice)
        for name, now in chosen.items()
        for choice in options[name]
        if isinstance(now.tensor, QuantizedTensor)
        and isinstance(choice.tensor, QuantizedTensor)
        and choice.n_bytes > now.n_bytes
        and choice.cost < now.cost
    ]
    return max(finer, key=lambda one: one[0])[1:] if finer else None


def between(
    weight: Tensor, now: StoredTensor, finer: StoredTensor, share: float, widths: Sequence[int], hessian: Tensor | None
) -> QuantizedTensor:
    """Return a matrix whose steps lie between those of two others: ``share`` of the way, in logarithms."""
    assert isinstance(now, QuantizedTensor)
    assert isinstance(finer, QuantizedTensor)
    first, last = (torch.from_numpy(t.scale.astype(np.float32)).expand(weight.shape[0]) for t in (now, finer))
    return quantize_rows_to(weight, first ** (1 - share) * last**share, widths, hessian, now.dtype)


def estimated_bytes(tensor: StoredTensor) -> float:
    """Return the entropy of the integers, and of the distinct bytes of what is stored in floating point."""
    scales = [tensor.scale] if isinstance(tensor, QuantizedTensor) else []
    return sum(_entropy_bytes(values) for values in (tensor.values, *scales))


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
    """Return a choice for every tensor whose estimates stay within ``n_bytes``, at next to the least total cost.

    That is the best allocation at one price, and then, because prices leave gaps, what still fits into the rest.
    If even the smallest choices do not fit, they are what comes back.
    """
    chosen = at_one_price(options, n_bytes)
    left = n_bytes - _total(chosen)
    while True:
        better = [
            (now.cost - choice.cost, name, choice)
            for name, now in chosen.items()
            for choice in options[name]
            if choice.cost < now.cost and choice.n_bytes - now.n_bytes <= left
        ]
        if not better:
            return chosen
        _, name, choice = max(better, key=lambda one: one[0])
        left -= choice.n_bytes - chosen[name].n_bytes
        chosen[name] = choice


def at_one_price(options: Mapping[str, Sequence[Choice]], n_bytes: float) -> dict[str, Choice]:
    """Return the allocation at the lowest price of a byte at which all fits: none of as many bytes costs less."""
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
        n: min(c, key=lambda choice: (choice.cost + price * choice.n_bytes, choice.n_bytes, choice.cost))
        for n, c in options.items()
    }


def _total(chosen: Mapping[str, Choice]) -> float:
    return sum(choice.n_bytes for choice in chosen.values())
