"""Pruning before and after quantisation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from evalkit.artifact.native import NativeMetadata, write_native
from evalkit.artifact.tensors import PlainTensor, QuantizedTensor, StoredTensor
from evalkit.plumbing.errors import InputError
from evalkit.train.quantization.pruning import magnitude_prune, prune_to_size, zeroing_cost


def model(seed: int = 0) -> dict[str, StoredTensor]:
    rng = np.random.default_rng(seed)
    return {
        name: QuantizedTensor(
            values=np.clip(np.rint(rng.normal(0, 2, (60, 80))), -16, 15).astype(np.int8),
            scale=rng.uniform(0.01, 0.1, 60).astype(np.float16),
            bits=5,
        )
        for name in ("b", "a")
    } | {"gain": PlainTensor(values=np.ones(5, np.float32), stored="float32")}


def size(tensors: Mapping[str, StoredTensor]) -> int:
    return len(write_native(tensors, NativeMetadata()))


def own_costs(tensors: Mapping[str, StoredTensor]) -> dict[str, np.ndarray]:
    """What zeroing costs where the integers are all there is to know."""
    return {n: zeroing_cost(t, t.dequantize()) for n, t in tensors.items() if isinstance(t, QuantizedTensor)}


def naive(tensors: Mapping[str, StoredTensor], count: int) -> dict[str, StoredTensor]:
    entries = [
        (float(t.scale[r].astype(np.float32) * t.scale[r].astype(np.float32)), name, r, c)
        for name, t in sorted(tensors.items())
        if isinstance(t, QuantizedTensor)
        for r in range(t.values.shape[0])
        for c in range(t.values.shape[1])
        if abs(int(t.values[r, c])) == 1
    ]
    result = {
        n: QuantizedTensor(values=t.values.copy(), scale=t.scale, bits=t.bits) if isinstance(t, QuantizedTensor) else t
        for n, t in tensors.items()
    }
    for _, name, r, c in sorted(entries, key=lambda e: e[0])[:count]:
        result[name].values[r, c] = 0
    return result


def test_reaches_the_target_exactly_and_equals_the_naive_order() -> None:
    tensors = model()
    full = size(tensors)
    target = full - 300
    sizes: list[int] = []

    def counted(held: Mapping[str, StoredTensor]) -> int:
        sizes.append(size(held))
        return sizes[-1]

    pruned, zeroed = prune_to_size(tensors, counted, target, costs=own_costs(tensors))
    assert size(pruned) <= target
    assert size(naive(tensors, zeroed - 1)) > target
    candidates = sum(int((np.abs(t.values) == 1).sum()) for t in tensors.values() if isinstance(t, QuantizedTensor))
    assert 0 < zeroed < candidates
    expected = naive(tensors, zeroed)
    for name in ("a", "b"):
        assert np.array_equal(pruned[name].values, expected[name].values)
        assert np.array_equal(tensors[name].values, model()[name].values)  # the input is as it was
    assert len(sizes) < 2 * np.log2(candidates) + 4


def test_nothing_is_zeroed_when_it_fits_already_and_too_small_a_target_is_refused() -> None:
    tensors = model()
    costs = own_costs(tensors)
    assert prune_to_size(tensors, size, size(tensors), costs=costs)[1] == 0
    with pytest.raises(InputError, match="leaves"):
        prune_to_size(tensors, size, 1000, costs=costs)
    assert prune_to_size({}, lambda _: 5, 5, costs={}) == ({}, 0)


def test_costs_decide_what_goes_first() -> None:
    tensors = model()
    rng = np.random.default_rng(3)
    costs = {name: rng.random((60, 80)).astype(np.float32) for name in ("a", "b")}
    pruned, _ = prune_to_size(tensors, size, size(tensors) - 200, costs=costs, resolution=16)
    gone, stay = [], []
    for name in ("a", "b"):
        ones = np.abs(tensors[name].values) == 1
        zeroed = ones & (pruned[name].values == 0)
        gone.append(costs[name][zeroed])
        stay.append(costs[name][ones & ~zeroed])
    assert np.concatenate(gone).max() < np.concatenate(stay).min()


def test_zeroing_cost_is_the_growth_of_the_squared_error() -> None:
    tensor = model()["a"]
    assert isinstance(tensor, QuantizedTensor)
    rng = np.random.default_rng(4)
    weight = tensor.dequantize() + rng.normal(0, 0.01, tensor.values.shape).astype(np.float32)
    growth = weight**2 - (weight - tensor.dequantize()) ** 2
    assert zeroing_cost(tensor, weight) == pytest.approx(growth, abs=1e-6)
    diagonal = rng.random(80).astype(np.float32)
    assert zeroing_cost(tensor, weight, hessian=np.diag(diagonal)) == pytest.approx(growth * diagonal, abs=1e-5)


def test_zeroing_cost_under_a_full_hessian_is_the_growth_of_the_output_error() -> None:
    tensor = model()["a"]
    assert isinstance(tensor, QuantizedTensor)
    rng = np.random.default_rng(5)
    weight = tensor.dequantize() + rng.normal(0, 0.01, tensor.values.shape).astype(np.float32)
    inputs = rng.normal(size=(200, 80)).astype(np.float32)
    hessian = inputs.T @ inputs / 200
    cost = zeroing_cost(tensor, weight, hessian=hessian)
    error = (weight - tensor.dequantize()).astype(np.float64)
    for r, c in ((0, 0), (1, 17), (2, 79)):
        zeroed = error[r].copy()
        zeroed[c] = weight[r, c]
        growth = zeroed @ hessian @ zeroed - error[r] @ hessian @ error[r]
        assert cost[r, c] == pytest.approx(growth, abs=1e-4)


def test_magnitude_pruning_takes_the_asked_share_of_large_matrices_only() -> None:
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(300, 300, generator=generator)
    pruned = magnitude_prune(large, 0.03)
    assert float((pruned == 0).float().mean()) == pytest.approx(0.03, abs=1e-3)
    kept = pruned != 0
    assert torch.equal(pruned[kept], large[kept])
    assert float(large[~kept].abs().max()) < float(large[kept].abs().min())
    small = torch.randn(512, 128, generator=generator)  # 65,536 elements count as small
    assert magnitude_prune(small, 0.5) is small
