"""``evalkit.load_state``: every kind of file of weights, under plain names, and nothing in it executed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import evalkit
from evalkit.artifact.layouts import held_values
from evalkit.artifact.load import load_artifact

STATE = {"embed.weight": torch.randn(4, 3), "blocks.0.scale": torch.ones(3).half(), "steps": torch.tensor([1, 2])}


def wrapped(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        wrapped(STATE, "_orig_mod."),
        wrapped(STATE, "module._orig_mod."),
        wrapped(STATE, "_orig_mod.module."),
        {re.sub(r"^blocks\.(\d+)\.", r"blocks.\1._orig_mod.", name): value for name, value in STATE.items()},
        wrapped(STATE, "module.") | {"n_averaged": torch.tensor(7)},
        {"step": 1, "model": STATE, "optimizer": {"state": {}}},
        {"state_dict": wrapped(STATE, "module.")},
    ],
    ids=["plain", "compiled", "ddp", "compiled ddp", "block by block", "averaged", "checkpoint", "lightning"],
)
def test_a_checkpoint_comes_back_under_plain_names(saved: dict[str, object], tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "w.pt")
    state = evalkit.load_state(tmp_path / "w.pt")
    assert set(state) == set(STATE)
    for name, value in STATE.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value)


def test_torchs_format_of_before_2020(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    state = evalkit.load_state(tmp_path / "w.pt")
    assert all(torch.equal(state[name], value) for name, value in STATE.items())


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    value = torch.randn(5).bfloat16()
    torch.save({"w": value}, tmp_path / "w.pt")
    assert torch.equal(evalkit.load_state(tmp_path / "w.pt")["w"], value.float())


def test_safetensors(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(wrapped(STATE, "module."), tmp_path / "model.safetensors")
    state = evalkit.load_state(tmp_path / "model.safetensors")
    assert all(torch.equal(state[name], value) for name, value in STATE.items())
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((tmp_path / "model.safetensors").read_bytes()[:-3])
    with pytest.raises(evalkit.InputError, match="not a readable safetensors file"):
        evalkit.load_state(damaged)


@pytest.mark.parametrize("fixture", ["tiny_artifact", "published_artifact"])
def test_an_artifact_comes_back_dequantised(fixture: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(fixture)
    state = evalkit.load_state(path)
    tensors = load_artifact(path).tensors
    assert set(state) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(state[name].numpy(), held_values(tensor))


@pytest.mark.parametrize("system", [333, 344, 592, 634, 849, 1218, 1334, 1394, 1477, 1493, 1529])
def test_every_published_artifact_comes_back_dequantised(system: int, shared: Path) -> None:
    (path,) = (shared / "parity" / str(system) / "small").glob("final_model.*")
    state = evalkit.load_state(path)
    assert state["tok_emb.weight"].dtype == torch.float32
    assert set(state) == set(load_artifact(path).tensors)


def test_arrays_of_numpy(tmp_path: Path) -> None:
    arrays = {"module." + name: value.numpy() for name, value in STATE.items()}
    np.savez(tmp_path / "w.npz", **arrays)
    np.savez_compressed(tmp_path / "c.npz", **arrays)
    for name in ("w.npz", "c.npz"):
        state = evalkit.load_state(tmp_path / name)
        assert set(state) == set(STATE)
        assert all(torch.equal(state[name], value) for name, value in STATE.items())
    np.savez(tmp_path / "o.npz", w=np.array([Bomb()], dtype=object))
    with pytest.raises(evalkit.InputError, match="not a readable file of numpy arrays"):
        evalkit.load_state(tmp_path / "o.npz")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 / 0",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello there, this is no model", "this is no known artifact"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "not a readable torch file"),
    ],
)
def test_other_files_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(evalkit.InputError, match=words):
        evalkit.load_state(tmp_path / "w")


def test_nothing_is_executed(tmp_path: Path) -> None:
    torch.save({"w": Bomb()}, tmp_path / "w.pt")
    with pytest.raises(evalkit.InputError, match=r"refers to \w+\.eval"):
        evalkit.load_state(tmp_path / "w.pt")


def test_the_format_of_before_2020_is_read(tmp_path: Path) -> None:
    saved = {"model": {"module.a": torch.arange(6.0).view(2, 3), "module.b": torch.ones(3, dtype=torch.bfloat16)}}
    torch.save(saved, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    found = evalkit.load_state(tmp_path / "w.pt")
    assert found["a"].equal(saved["model"]["module.a"])
    assert found["b"].equal(torch.ones(3))
