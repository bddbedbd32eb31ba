"""GPTQ against a float64 reference, against plain rounding, and the collection of its statistics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evalkit.plumbing.errors import InputError
from evalkit.train.quantization.calibration import check_calibration_shards
from evalkit.train.quantization.gptq import GptqConfig, gptq_round
from evalkit.train.quantization.hessian import HessianCollector, shared_input_groups
from evalkit.train.quantization.rows import integer_limit, quantize_rows, round_to_step


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The matrices are small: threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reference(
    weight: npt.NDArray[np.float64],
    hessian: npt.NDArray[np.float64],
    step: npt.NDArray[np.float64],
    bits: int,
    damping: float,
    ordered: bool,
) -> npt.NDArray[np.int64]:
    """The textbook loop: one column at a time, the inverse shrunk by elimination instead of a Cholesky factor."""
    w, h = weight.copy(), hessian.copy()
    dead = np.diag(h) == 0
    w[:, dead] = 0
    mean = np.diag(h)[~dead].mean()
    h[dead, dead] = mean
    order = np.argsort(-np.diag(hessian), kind="stable") if ordered else np.arange(len(h))
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
    st.integers(2, 40),
    st.sampled_from([1, 7, 128]),
    st.booleans(),
    st.sampled_from([5, 6]),
)
def test_equals_the_float64_reference(seed: int, columns: int, block: int, ordered: bool, bits: int) -> None:
    x = correlated_inputs(columns, 4 * columns, seed, 1.0)
    x[:, seed % columns] = 0  # a dead input
    weight = torch.randn(6, columns, generator=torch.Generator().manual_seed(seed))
    _, step = quantize_rows(weight, bits)
    hessian = x.T @ x / len(x)
    config = GptqConfig(damping=0.02, block_size=block, activation_order=ordered)
    got = gptq_round(weight, hessian, step, bits, config).numpy().astype(np.int64)
    expected = reference(weight.double().numpy(), hessian.double().numpy(), step.double().numpy(), bits, 0.02, ordered)
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
    descending = output_error(gptq_round(weight, hessian, step, bits))
    in_order = output_error(gptq_round(weight, hessian, step, bits, GptqConfig(activation_order=False)))
    assert descending < 0.7 * nearest
    assert descending < in_order
    values = gptq_round(weight, hessian, step, bits)
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
    with pytest.raises(InputError, match="damping"):
        GptqConfig(damping=0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_q = nn.Linear(6, 4, bias=False)
        self.c_k = nn.Linear(6, 4, bias=False)
        self.proj = nn.Linear(4, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(self.c_q(x) * self.c_k(x))


def test_collector_sums_inputs_in_float32_and_shares_them() -> None:
    torch.manual_seed(0)
    block = Block()
    groups = shared_input_groups(["c_q", "c_k", "proj"])
    assert groups == [["c_q", "c_k"], ["proj"]]
    batches = [torch.randn(2, 5, 6) for _ in range(3)]
    inner = []
    with HessianCollector(block, groups) as collector:
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                block(batch)
            with torch.no_grad():
                q, k = (batch @ w.weight.T for w in (block.c_q, block.c_k))
                inner.append((q * k).reshape(-1, 4))
    block(torch.full((1, 1, 6), 1e9))  # after the collection: not counted
    collector.all_reduce()  # one process: nothing to do
    hessians = collector.hessians()
    flat = torch.cat(batches).reshape(-1, 6).double()
    expected = flat.T @ flat / len(flat)
    assert hessians["c_q"] is hessians["c_k"]
    assert hessians["c_q"].dtype == torch.float32
    # a product rounded to bfloat16 would be off by 4e-3
    assert torch.allclose(hessians["c_q"].double(), expected, rtol=1e-5, atol=1e-6)
    z = torch.cat(inner)
    assert torch.allclose(hessians["proj"], z.T @ z / len(z), rtol=0.05, atol=0.02)
    assert dict(collector.tokens()) == {"c_q": 30, "c_k": 30, "proj": 30}


def test_collector_refuses_unknown_names_and_missing_inputs() -> None:
    with pytest.raises(InputError, match="'nothing'"):
        HessianCollector(Block(), [["nothing"]])
    with HessianCollector(Block(), [["proj"]]) as collector, pytest.raises(InputError, match="no input"):
        collector.hessians()


def test_collector_reduces_over_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    x = torch.cat([torch.load(tmp_path / f"x{rank}.pt", weights_only=True) for rank in range(2)]).reshape(-1, 6)
    for rank in range(2):
        h = torch.load(tmp_path / f"h{rank}.pt", weights_only=True)
        assert torch.allclose(h, x.T @ x / len(x), rtol=1e-5, atol=1e-6)


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(rank)
    x = torch.randn(1 + rank, 5, 6)  # ranks may see different amounts
    block = Block()
    with HessianCollector(block, [["c_q"]]) as collector:
        block(x)
    collector.all_reduce()
    torch.save(x.reshape(-1, 6), f"{folder}/x{rank}.pt")
    torch.save(collector.hessians()["c_q"], f"{folder}/h{rank}.pt")
    torch.distributed.destroy_process_group()


def test_validation_shards_are_refused(tmp_path: Path) -> None:
    train, val, renamed = (tmp_path / n for n in ("fineweb_train_000.bin", "fineweb_val_000.bin", "evaluated.bin"))
    for path in (train, val, renamed):
        path.write_bytes(path.name.encode())
    assert check_calibration_shards([train, renamed]) == []
    with pytest.raises(InputError, match="named like"):
        check_calibration_shards([train, val])
    import hashlib

    digest = hashlib.sha256(renamed.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="SHA-256"):
        check_calibration_shards([renamed], [digest])
    notes = check_calibration_shards([val, renamed], [digest], force=True)
    assert len(notes) == 2
