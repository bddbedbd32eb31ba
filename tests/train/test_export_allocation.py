"""A step for every tensor: the prices of errors, and who gets the bytes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evalkit.artifact.tensors import PlainTensor, QuantizedTensor
from evalkit.model.config import ModelConfig
from evalkit.model.gpt import GPT
from evalkit.train.export.allocation import (
    Choice,
    allocate,
    at_one_price,
    choices,
    estimated_bytes,
    quantize_rows_to,
    row_factors,
)
from evalkit.train.quantization.curvature import collect_curvature
from evalkit.train.quantization.hessian import collect_hessians
from evalkit.train.quantization.plan import QuantizationPlan, TensorRule

NOTHING = PlainTensor(values=np.zeros(0, dtype=np.float16), stored="float16")


def small_model(vocab_size: int = 48) -> GPT:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=vocab_size, num_layers=2, model_dim=32, num_heads=2, num_kv_heads=1, mlp_hidden=64)
    model = GPT(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def batches(vocab_size: int, count: int, length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocab_size, (1, length), generator=generator) for _ in range(count)]


def test_predicted_costs_are_what_errors_do() -> None:
    """Small errors raise the cross-entropy under the model's own distribution by about what is predicted."""
    model = small_model()
    text = batches(48, 64, 16)
    hessians = collect_hessians(model, text)
    curvature = collect_curvature(model, text)
    ids = torch.cat(text)
    before = torch.log_softmax(model(ids), dim=-1)
    generator = torch.Generator().manual_seed(2)
    weights = {n: w.clone() for n, w in model.state_dict().items()}
    ratios = []
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if weight.ndim != 2 or not curvature.knows(module):
            continue
        divergences, predicted = [], []
        for _ in range(6):
            error = 0.01 * torch.randn(weight.shape, generator=generator)
            model.load_state_dict(weights | {name: weight - error})
            after = torch.log_softmax(model(ids), dim=-1)
            divergences.append(float((before.exp() * (before - after)).sum(-1).mean()))
            predicted.append(curvature.cost(module, error, hessians))
        ratios.append(np.mean(predicted) / np.mean(divergences))
    assert len(ratios) == 1 + 2 * 6  # the token table; q, k, v, projection and two of the MLP in each block
    assert all(0.5 < ratio < 2.0 for ratio in ratios), ratios
    assert 0.8 < float(np.median(ratios)) < 1.25


def test_measuring_the_curvature_leaves_the_model_alone() -> None:
    model = small_model()
    before = {n: w.clone() for n, w in model.state_dict().items()}
    first = collect_curvature(model, batches(48, 4, 16))
    again = collect_curvature(model, batches(48, 4, 16))
    assert all(torch.equal(w, before[n]) for n, w in model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(torch.equal(value, again.outputs[n]) for n, value in first.outputs.items())
    assert all(torch.equal(value, again.entries[n]) for n, value in first.entries.items())


choice_lists = st.lists(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0, 10)), min_size=1, max_size=4), min_size=1, max_size=4
)


@settings(max_examples=150, deadline=None)
@given(choice_lists, st.integers(1, 160))
@example([[(1, 0.0)], [(1, 1e-05), (1, 0.0)]], 1)  # nothing fits: still the cheaper of two that are as small
def test_allocations(drawn: list[list[tuple[int, float]]], budget: int) -> None:
    """At one price no other of as many bytes costs less; what is filled up then leaves nothing that would still fit."""
    options = {str(i): [Choice(tensor=NOTHING, n_bytes=n, cost=cost) for n, cost in one] for i, one in enumerate(drawn)}
    smallest = sum(min(n for n, _ in one) for one in drawn)
    chosen, filled = at_one_price(options, budget), allocate(options, budget)
    assert list(chosen) == list(filled) == list(options)
    taken, cost = (sum(c.n_bytes for c in chosen.values()), sum(c.cost for c in chosen.values()))
    for other in itertools.product(*options.values()):
        if sum(c.n_bytes for c in other) <= taken:
            assert sum(c.cost for c in other) >= cost - 1e-9
    filled_bytes = sum(c.n_bytes for c in filled.values())
    assert taken <= max(budget, smallest)
    assert filled_bytes <= max(budget, smallest)
    assert sum(c.cost for c in filled.values()) <= cost
    for name, now in filled.items():
        for choice in options[name]:
            assert choice.cost >= now.cost or filled_bytes - now.n_bytes + choice.n_bytes > budget


def test_more_bytes_never_predict_a_higher_loss() -> None:
    """And a step twice as fine takes about a bit more for every weight."""
    model = small_model()
    text = batches(48, 8, 16)
    state = {n: w for n, w in model.state_dict().items() if n.startswith("blocks.0.mlp.")}
    plan = QuantizationPlan(rules=(TensorRule(patterns=("*",), format="int6", gptq=True),))
    options = choices(state, plan, collect_hessians(model, text), collect_curvature(model, text), (4, 5, 6, 7, 8))
    for name, ways in options.items():
        steps = ways[1:]  # the first is the plan's own
        assert len(steps) > 4
        assert all(coarse.n_bytes < fine.n_bytes for coarse, fine in itertools.pairwise(steps)), name
        assert all(coarse.cost > fine.cost for coarse, fine in itertools.pairwise(steps)), name
        weights = state[name].numel()
        assert (steps[-1].n_bytes - steps[-3].n_bytes) * 8 / weights == pytest.approx(1.0, abs=0.15)
    costs = [sum(c.cost for c in allocate(options, n).values()) for n in (500, 1000, 1500, 2500)]
    assert costs == sorted(costs, reverse=True)


def test_widths_are_those_of_the_container() -> None:
    weight = torch.linspace(-1, 1, 64).view(8, 8)

    def stored(step: float, widths: tuple[int, ...]) -> QuantizedTensor:
        return quantize_rows_to(weight, torch.full((8,), step), widths, None, "float32")

    assert stored(1 / 10, (5, 6, 8)).format == "int5"
    assert stored(1 / 20, (5, 6, 8)).format == "int6"
    assert stored(1 / 50, (5, 6, 8)).format == "int8"
    assert stored(1 / 50, (4, 5, 6, 7, 8)).format == "int7"
    too_fine = stored(1 / 500, (5, 6, 8))  # rows that reach to 1 get the finest step that int8 has for them
    assert too_fine.format == "int8"
    error = np.abs(too_fine.dequantize() - weight.numpy()).max(axis=1)
    assert np.all(error <= np.maximum(too_fine.scale.astype(np.float32), 1 / 500) * 0.51)


def test_rows_whose_errors_cost_four_times_as_much_get_half_the_step() -> None:
    factors = row_factors(torch.tensor([1.0, 4.0, 16.0, 0.0]))
    assert 1.6 < float(factors[0] / factors[1]) <= 2.0
    assert 1.6 < float(factors[1] / factors[2]) <= 2.0
    assert float(factors[3]) < 4.0  # of a row that calibration did not touch, bounded
    quarters = 4 * torch.log2(factors)
    assert torch.allclose(quarters, quarters.round(), atol=1e-5)


def test_estimates_are_entropies() -> None:
    values = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], dtype=np.int8)
    tensor = QuantizedTensor(values=values, scale=np.ones(2, dtype=np.float16), bits=4)
    assert estimated_bytes(tensor) == pytest.approx(8 / 8)  # a bit for each value, nothing for equal scales
    uniform = PlainTensor(values=np.arange(256, dtype=np.uint16), stored="bfloat16")
    assert estimated_bytes(uniform) == pytest.approx(256 * math.log2(256) / 8)
