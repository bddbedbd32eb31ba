"""Pruning: small weights before quantisation, and lone +-1 integers after it, to meet a size in bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evalkit.artifact.tensors import QuantizedTensor, StoredTensor
from evalkit.plumbing.errors import InputError
from evalkit.train.quantization.plan import SMALL_ELEMENTS

_QUANTILE_LIMIT = 1 << 24  # torch.quantile refuses more elements


def magnitude_prune(weight: Tensor, share: float) -> Tensor:
    """Zero the entries of a large matrix that are below its ``share`` quantile of magnitudes (PR333 2%, PR849 3%).

    Tensors that are not matrices or have at most :data:`SMALL_ELEMENTS` elements come back unchanged; ties are kept.
    """
    if share <= 0 or weight.ndim != 2 or weight.numel() <= SMALL_ELEMENTS:
        return weight
    magnitude = weight.detach().float().abs()
    if magnitude.numel() <= _QUANTILE_LIMIT:
        threshold = float(magnitude.flatten().quantile(share))
    else:
        threshold = float(np.quantile(magnitude.cpu().numpy(), share))
    return torch.where(magnitude < threshold, torch.zeros_like(weight), weight)


def zeroing_cost(
    tensor: QuantizedTensor, weight: npt.NDArray[np.float32], hessian: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Return how much the squared error grows when an entry becomes 0, float32 of the tensor's shape.

    With the Hessian it is exact for each entry alone: ``e H e^T`` grows by ``2 v (e H)_c + v^2 H_cc`` when the value
    ``v`` in column ``c`` goes. After GPTQ that differs from the diagonal, because the errors of a row hold one another
    up.

    Args:
        tensor: the quantised tensor.
        weight: what it approximates.
        hessian: ``[cols, cols]``, the mean of ``x x^T``, for a matrix; without it, the growth of ``e e^T``.
    """
    value = tensor.dequantize()
    aim = weight.reshape(value.shape)
    if hessian is None:
        return value * (2 * aim - value)
    grown: npt.NDArray[np.float32] = value * (2 * ((aim - value) @ hessian) + value * hessian.diagonal())
    return grown


def zeroing_costs(
    tensors: Mapping[str, StoredTensor], weights: Mapping[str, Tensor], hessians: Mapping[str, Tensor]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return :func:`zeroing_cost` of every quantised tensor.

    Args:
        tensors: stored tensors.
        weights: what they approximate, by the same names.
        hessians: mean of ``x x^T`` by module name; tensors without one count their own squared error. The inputs of
            the layers are normalised to a mean square near 1, which makes the two comparable.
    """
    costs = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, QuantizedTensor):
            hessian = hessians.get(name.removesuffix(".weight"))
            usable = hessian is not None and tensor.values.ndim == 2
            costs[name] = zeroing_cost(
                tensor,
                weights[name].detach().float().cpu().numpy(),
                hessian=hessian.float().cpu().numpy() if usable and hessian is not None else None,
            )
    return costs


def prune_to_size(
    tensors: Mapping[str, StoredTensor],
    size: Callable[[Mapping[str, StoredTensor]], int],
    target_bytes: int,
    *,
    costs: Mapping[str, npt.NDArray[np.float32]],
    resolution: int = 1,
) -> tuple[dict[str, StoredTensor], int]:
    """Zero as few +-1 integers as meet a size, cheapest first.

    The order is that of ascending cost, ties by tensor name and position. The number is found by a
    bracketing search on measured sizes: proposals come from the line through the bracket's ends, and every
    second one from its middle. The returned tensors are the ones whose size was measured.

    Args:
        tensors: stored tensors; only those of :class:`QuantizedTensor` are touched. Not modified.
        size: bytes of the complete file, code included if that counts.
        target_bytes: the size to meet, in bytes (a megabyte of the cap is 1,000,000).
        costs: error increase of zeroing each entry, by the name of a quantised tensor.
        resolution: stop when the answer is known to this many entries; 1 for the exact number.

    Returns:
        The tensors after pruning, and the number of entries set to 0.

    Raises:
        InputError: zeroing every +-1 is not enough.
    """
    integers = {n: t for n, t in sorted(tensors.items()) if isinstance(t, QuantizedTensor) and t.values.size}
    values, cost = np.zeros(0, dtype=np.int8), np.zeros(0, dtype=np.float32)
    if integers:
        values = np.concatenate([tensor.values.ravel() for tensor in integers.values()])
        cost = np.concatenate([costs[name].ravel().astype(np.float32) for name in integers])
    ones = np.flatnonzero((values == 1) | (values == -1))
    order = ones[np.argsort(cost[ones], kind="stable")]
    total = int(order.size)

    def pruned(count: int) -> dict[str, StoredTensor]:
        if not count:
            return dict(tensors)
        left = values.copy()
        left[order[:count]] = 0
        result, end = dict(tensors), 0
        for name, tensor in integers.items():
            start, end = end, end + tensor.values.size
            result[name] = replace(tensor, values=left[start:end].reshape(tensor.values.shape))
        return result

    sizes: dict[int, int] = {}
    kept: dict[str, StoredTensor] = {}

    def measure(count: int) -> int:
        nonlocal kept
        tried = pruned(count)
        sizes[count] = size(tried)
        if sizes[count] <= target_bytes:
            kept = tried
        return sizes[count]

    low, high = 0, 0
    if measure(0) > target_bytes:
        high = total
        if measure(total) > target_bytes:
            raise InputError(
                f"zeroing all {total} integers of +-1 leaves {sizes[total]} bytes, above the target of {target_bytes}; "
                "have the steps searched (--fit)"
            )
    halve = False
    while high - low > max(1, resolution):
        span = high - low
        fraction = 0.5
        if not halve and sizes[low] > sizes[high]:
            fraction = (sizes[low] - target_bytes) / (sizes[low] - sizes[high])
        middle = low + min(max(round(span * fraction), 1), span - 1)
        if measure(middle) <= target_bytes:
            high = middle
        else:
            low = middle
        halve = not halve
    return kept, high
