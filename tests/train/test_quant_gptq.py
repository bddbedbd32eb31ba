"""GPTQ against a float64 reference, against plain rounding, and the collection of its statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_helpers import quantize_rows

from evalkit.model.config import ModelConfig
from evalkit.model.gpt import GPT
from evalkit.plumbing.errors import InputError
from evalkit.train.export.text import check_calibration_shards
from evalkit.train.quantization.gptq import gptq_round
from evalkit.train.quantization.hessian import collect_hessians
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
