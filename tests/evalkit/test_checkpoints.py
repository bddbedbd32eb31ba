"""The same weights as training scripts leave them: wrapped, in checkpoints, in old and other files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evalkit.artifact.load import Artifact, load_artifact
from evalkit.plumbing.errors import ArtifactError
from evalkit.tokens.shards import write_shard
from tests.evalkit.conftest import random_state

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return {name: value.detach().clone() for name, value in random_state("baseline").items()}


def loaded(path: Path) -> dict[str, Any]:
    artifact: Artifact = load_artifact(path)
    return {name: tensor.dequantize() for name, tensor in artifact.tensors.items()}


def renamed(weights: Weights, pattern: str, replacement: str) -> Weights:
    return {re.sub(pattern, replacement, name): value for name, value in weights.items()}


EXTRA = {
    "n_averaged": torch.tensor(7),
    "blocks.0.attn.rotary.inv_freq": torch.ones(8),
    "blocks.0.attn.rotary.cos_cached": torch.ones(8),
    "freqs_cis": torch.ones(4, dtype=torch.complex64),
    "blocks.1.attn.causal_mask": torch.ones(4, 4, dtype=torch.bool),
    "position_ids": torch.arange(4),
}
WRAPPINGS = {
    "plain": lambda w: w,
    "compiled": lambda w: renamed(w, "^", "_orig_mod."),
    "distributed, compiled": lambda w: renamed(w, "^", "module._orig_mod."),
    "compiled, distributed": lambda w: renamed(w, "^", "_orig_mod.module."),
    "three deep": lambda w: renamed(w, "^", "module.module._orig_mod."),
    "block by block": lambda w: renamed(w, r"^blocks\.(\d+)\.", r"blocks.\1._orig_mod."),
    "fsdp": lambda w: renamed(w, r"^blocks\.(\d+)\.", r"_fsdp_wrapped_module.blocks.\1._checkpoint_wrapped_module."),
    "averaged": lambda w: renamed(w, "^", "module.") | EXTRA,
    "parameters": lambda w: {name: torch.nn.Parameter(value) for name, value in w.items()},
    "model": lambda w: {"step": 1, "model": w, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "lr": 0.1}},
    "nested": lambda w: {"epoch": 3, "state": {"net": renamed(w, "^", "module."), "best": 1.5}},
    "state_dict": lambda w: {"state_dict": w, "hyper_parameters": {"a": [1, None, "x"]}},
    "other name": lambda w: {"student": w, "args": {"lr": 0.1}},
    "with a number": lambda w: w | {"step": 5},
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 2020"])
@pytest.mark.parametrize("kind", WRAPPINGS)
def test_the_same_weights_however_they_are_wrapped(kind: str, old: bool, weights: Weights, tmp_path: Path) -> None:
    torch.save(WRAPPINGS[kind](weights), tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    found = loaded(tmp_path / "w.pt")
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name], value.numpy()) for name, value in weights.items())


def test_safetensors(weights: Weights, tmp_path: Path) -> None:
    halves = {name: value.bfloat16() for name, value in renamed(weights, "^", "_orig_mod.").items()}
    save_file(halves | {"_orig_mod.n_averaged": torch.tensor(3)}, tmp_path / "w.safetensors")
    found = loaded(tmp_path / "w.safetensors")
    assert all(np.array_equal(found[name], value.bfloat16().float().numpy()) for name, value in weights.items())
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        load_artifact(tmp_path / "cut")


def test_shared_storages_strides_and_damage_in_the_old_format(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    saved = {"blocks.0.a": base[2:8].reshape(2, 3).t(), "blocks.0.b": base.half(), "blocks.0.c": base}
    torch.save(saved, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    found = loaded(tmp_path / "w.pt")
    assert all(np.array_equal(found[name], value.float().numpy()) for name, value in saved.items())
    content = (tmp_path / "w.pt").read_bytes()
    for size in range(15, len(content), 7):
        (tmp_path / "w.pt").write_bytes(content[:size])
        with pytest.raises(ArtifactError):
            load_artifact(tmp_path / "w.pt")


def test_what_is_no_artifact_is_named(weights: Weights, tmp_path: Path) -> None:
    twice = tmp_path / "w.pt"
    torch.save(weights | renamed(weights, "^", "module."), twice)
    with pytest.raises(ArtifactError, match="twice"):
        load_artifact(twice)
    torch.save({"a": weights, "b": weights}, twice)
    with pytest.raises(ArtifactError, match="its keys are a, b"):
        load_artifact(twice)
    torch.save({"format": "evalkit-checkpoint", "masters": weights}, twice)
    with pytest.raises(ArtifactError, match="evalkit export RUN"):
        load_artifact(twice)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"evalkit export .*run -o FILE"):
        load_artifact(tmp_path / "run")
    write_shard(tmp_path / "x.bin", np.array([1, 2]))
    with pytest.raises(ArtifactError, match=r"a shard of tokens, not a model.*quote the pattern"):
        load_artifact(tmp_path / "x.bin")
