"""GPTQ against a float64 reference, against plain rounding, and the collection of its statistics."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_helpers import quantize_rows

from evalkit.artifact.tensors import QuantizedTensor
from evalkit.model.config import ModelConfig
from evalkit.model.gpt import GPT
from evalkit.plumbing.errors import InputError
from evalkit.train.export.export import quantize_state_dict
from evalkit.train.export.text import check_calibration_shards
from evalkit.train.quantization.gptq import gptq_round
from evalkit.train.quantization.hessian import collect_hessians
from evalkit.train.quantization.plan import QuantizationPlan, TensorRule
from evalkit.train.quantization.rows import integer_limit, round_to_step


def reference(
    weight: npt.NDArray[np.float64],
    hessian: npt.NDArray[np.float64],
    step: npt.NDArray[np.float64],
    bits: int,
    damping: float,
) -> npt.NDArray[np.int64]:
    """The textbook loop: one column at a time, the inverse shrunk by elimination instead of a Cholesky factor."""
    w, h = weight.copy(), hessian.copy()
    dead = np.diag(h) == 0
    w[:, dead] = 0
    mean = np.diag(h)[~dead].mean()
    h[dead, dead] = mean
    order = np.argsort(-np.diag(hessian), kind="stable")
    h = h[np.ix_(order, order)] + damping * mean * np.eye(len(h))
    w = w[:, order]
    inverse = np.linalg.inv(h)
    limit = integer_limit(bits)
    out = np.zeros(w.shape, dtype=np.int64)
    for j in range(w.shape[1]):
        q = np.clip(np.rint(w[:, j] / step), -limit - 1, limit)
        error = (w[:, j] - q * step) / inverse[j, j]
        out[:, order[j]] = q
        w[:, j + 1 :] -= np.outer(error, inverse[j, j + 1 :])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return out


def correlated_inputs(columns: int, tokens: int, seed: int, strength: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + strength * torch.randn(columns, columns, generator=generator) / columns**0.5
    scales = torch.exp(0.7 * torch.randn(columns, generator=generator))
    return torch.randn(tokens, columns, generator=generator) @ mix * scales


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 1 << 20),
    st.sampled_from([2, 9, 40, 150]),  # columns go in blocks of 128
    st.sampled_from([5, 6]),
)
def test_equals_the_float64_reference(seed: int, columns: int, bits: int) -> None:
    x = correlated_inputs(columns, 4 * columns, seed, 1.0)
    x[:, seed % columns] = 0  # a dead input
    weight = torch.randn(6, columns, generator=torch.Generator().manual_seed(seed))
    _, step = quantize_rows(weight, bits)
    hessian = x.T @ x / len(x)
    got = gptq_round(weight, hessian, step, bits).numpy().astype(np.int64)
    expected = reference(weight.double().numpy(), hessian.double().numpy(), step.double().numpy(), bits, 0.01)
    # float32 and float64 may differ where a value lies on the edge between two integers, and from there on
    agree = (got == expected).all(axis=1)
    assert agree.mean() >= 5 / 6
    assert (got[:, seed % columns] == 0).all()


@pytest.mark.parametrize("bits", [5, 6])
@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_beats_rounding_to_nearest_where_inputs_correlate(bits: int, strength: float) -> None:
    x = correlated_inputs(160, 4000, 3, strength)
    weight = torch.randn(64, 160, generator=torch.Generator().manual_seed(4)) * 0.1
    _, step = quantize_rows(weight, bits)
    hessian = x.T @ x / len(x)

    def output_error(values: torch.Tensor) -> float:
        return float(((values.float() * step.float()[:, None] - weight) @ x.T).square().mean())

    nearest = output_error(round_to_step(weight, step, bits))
    values = gptq_round(weight, hessian, step, bits)
    assert output_error(values) < 0.7 * nearest
    assert int(values.min()) >= -integer_limit(bits) - 1
    assert int(values.max()) <= integer_limit(bits)


def test_white_inputs_change_nothing() -> None:
    weight = torch.randn(8, 50, generator=torch.Generator().manual_seed(5))
    values, step = quantize_rows(weight, 6)
    assert torch.equal(gptq_round(weight, torch.eye(50) * 3, step, 6), values)


def test_a_singular_hessian_is_damped_and_a_broken_one_refused() -> None:
    weight = torch.randn(4, 6)
    _, step = quantize_rows(weight, 6)
    x = torch.randn(2, 6)
    assert gptq_round(weight, x.T @ x, step, 6).shape == (4, 6)
    assert gptq_round(weight, torch.zeros(6, 6), step, 6).abs().sum() == 0
    with pytest.raises(InputError, match="finite"):
        gptq_round(weight, torch.full((6, 6), float("nan")), step, 6)
    with pytest.raises(InputError, match="6x6"):
        gptq_round(weight, torch.eye(5), step, 6)
    with pytest.raises(InputError, match="positive definite"):
        gptq_round(weight, torch.eye(6) + 100 * (1 - torch.eye(6)), step, 6)


def test_hessians_are_means_over_the_inputs_and_shared_where_inputs_are() -> None:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=48, num_layers=2, model_dim=32, num_heads=2, num_kv_heads=1, mlp_hidden=64)
    model = GPT(config).eval().requires_grad_(False)
    batches = [torch.randint(48, (1, length)) for length in (5, 16, 9)]
    seen: dict[str, list[torch.Tensor]] = {}
    names = ["blocks.1.attn.c_k", "blocks.1.attn.c_v", "blocks.1.attn.proj", "blocks.0.mlp.fc"]
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: seen.setdefault(name, []).append(x[0].flatten(0, 1))
        )
        for name in names
    ]
    hessians = collect_hessians(model, batches)
    for handle in handles:
        handle.remove()
    model(torch.zeros(1, 4, dtype=torch.long))  # after the collection: not counted, and nothing listens
    assert not any(module._forward_pre_hooks for module in model.modules())
    for name in names:
        x = torch.cat(seen[name]).double()
        assert len(x) == 30
        assert torch.allclose(hessians[name].double(), x.T @ x / 30, rtol=1e-4, atol=1e-6), name
    assert hessians[names[0]] is hessians[names[1]] is hessians["blocks.1.attn.c_q"]
    assert hessians["blocks.0.attn.c_q"] is not hessians["blocks.1.attn.c_q"]
    parts = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")
    assert hessians.keys() == {"tok_emb"} | {f"blocks.{i}.{part}" for i in (0, 1) for part in parts}
    with pytest.raises(InputError, match="no input reached"):
        collect_hessians(model, [])


def test_validation_shards_are_refused(tmp_path: Path) -> None:
    train, val, renamed, original = (
        tmp_path / name for name in ("fineweb_train_000.bin", "fineweb_val_000.bin", "evaluated.bin", "held.bin")
    )
    for path in (train, val, renamed):
        path.write_bytes(path.name.encode())
    original.write_bytes(renamed.read_bytes())
    assert check_calibration_shards([train, renamed], [val]) == []
    with pytest.raises(InputError, match="named like"):
        check_calibration_shards([train, val], [])
    with pytest.raises(InputError, match="SHA-256"):
        check_calibration_shards([renamed], [val, original])
    assert len(check_calibration_shards([val, renamed], [original], force=True)) == 2


def hashed(name: str, count: int) -> np.ndarray:
    """The reference's fill: numbers in [-1, 1) from a hash of the place."""
    h = (np.arange(count, dtype=np.uint64) * 2654435761 + zlib.crc32(name.encode())) & 0xFFFFFFFF
    for _ in range(2):
        h ^= h >> np.uint64(16)
        h = (h * 0x45D9F3B) & 0xFFFFFFFF
    h ^= h >> np.uint64(16)
    return h.astype(np.float64) / 2**31 - 1


def reference_case() -> tuple[torch.Tensor, torch.Tensor]:
    w = 0.05 * (np.arange(6)[:, None] + 1) * hashed("gptq.w", 1200).reshape(6, 200)
    y = hashed("gptq.x", 80_000).reshape(400, 200) * (1 + np.arange(200) % 5)
    x = y.copy()
    x[:, 1:] += 0.6 * y[:, :-1]
    x[:, 17] = 0
    x = x.astype(np.float32).astype(np.float64)
    return torch.from_numpy(w.astype(np.float32)), torch.from_numpy((x.T @ x).astype(np.float32))


@pytest.mark.parametrize(
    ("bits", "deviations", "steps", "row_sums", "total", "first", "error"),
    [
        (6, 12.85, [0.01258087, 0.02365112, 0.03521729, 0.04833984, 0.05999756, 0.07305908],
         [-25, -36, -50, -52, -13, -7], 2531, [-3, 2, 1, -2, -2, 4, 3, 2], 180.4026),
        (8, 20.0, [0.00477982, 0.00898743, 0.01338196, 0.01837158, 0.02279663, 0.02777100],
         [-74, -99, -130, -116, -44, -20], 6597, [-8, 3, 4, -6, -5, 10, 6, 8], 27.0121),
    ],
)  # fmt: skip
def test_a_clip_by_deviation_gives_the_published_integers(
    bits: int, deviations: float, steps: list[float], row_sums: list[int], total: int, first: list[int], error: float
) -> None:
    weight, hessian = reference_case()
    assert float(hessian[0, 0]) == pytest.approx(137.38588)
    assert float(hessian.trace()) == pytest.approx(390987.16)
    plan = QuantizationPlan(rules=(TensorRule(patterns=("*",), format=f"int{bits}", deviations=deviations, gptq=True),))
    stored = quantize_state_dict({"m.weight": weight}, plan, {"m": hessian})["m.weight"]
    assert isinstance(stored, QuantizedTensor)
    values = stored.values.astype(int)
    assert stored.scale.tolist() == pytest.approx(steps, abs=1e-8)
    assert values.sum(axis=1).tolist() == row_sums
    assert np.abs(values).sum() == total
    assert values[0, :8].tolist() == first
    left = weight.double() - torch.from_numpy(stored.dequantize()).double()
    assert float((left @ hessian.double() * left).sum()) == pytest.approx(error, abs=1e-3)


def test_a_clip_by_deviation_against_brute_force() -> None:
    # A row's best integers, for the step that the rule gives it: of all 7^4 rows, none has a lower output error.
    weight, hessian = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4)
    plan = QuantizationPlan(rules=(TensorRule(patterns=("*",), format="int8", deviations=64.0, gptq=True),))
    stored = quantize_state_dict({"m.weight": weight}, plan, {"m": hessian})["m.weight"]
    assert isinstance(stored, QuantizedTensor)
    for row, values, scale in zip(weight, stored.values, stored.scale, strict=True):
        mean = row.double().mean()
        deviation = ((row.double() - mean) ** 2).sum().div(3).sqrt()  # n - 1
        assert float(scale) == pytest.approx(64 * float(deviation) / 127, rel=1e-3)
        grid = torch.tensor(list(itertools.product(range(-6, 7), repeat=4)))
        errors = (row - grid * float(scale)).square().sum(dim=1)
        assert values.tolist() == grid[errors.argmin()].tolist()


def test_a_constant_row_has_a_step_all_the_same() -> None:
    plan = QuantizationPlan(rules=(TensorRule(patterns=("*",), format="int6", deviations=12.85, gptq=True),))
    stored = quantize_state_dict({"m.weight": torch.zeros(2, 8)}, plan, {"m": torch.eye(8)})["m.weight"]
    assert np.isfinite(stored.dequantize()).all()
    assert not stored.dequantize().any()
