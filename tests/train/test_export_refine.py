"""Refinement after rounding: what it may change, what it must not, and that it helps."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from train_helpers import write_shard

from evalkit.artifact.layouts import held_values
from evalkit.artifact.tensors import PlainTensor, QuantizedTensor, StoredTensor
from evalkit.model.config import ModelConfig
from evalkit.model.gpt import GPT
from evalkit.plumbing.errors import InputError
from evalkit.recipes import load_recipe
from evalkit.train.export.export import quantize_state_dict
from evalkit.train.export.refine import refine
from evalkit.train.export.text import TrainingText
from evalkit.train.folder import TrainedModel
from evalkit.train.quantization.plan import QuantizationPlan, TensorRule
from evalkit.train.resolve import resolve

PLAN = QuantizationPlan(
    rules=(
        TensorRule(patterns=("*",), format="float16", max_elements=128),
        TensorRule(patterns=("*.mlp.*",), format="int4", min_step=0.25),
        TensorRule(patterns=("*",), format="int5"),
    )
)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=32, num_layers=2, model_dim=32, num_heads=2, num_kv_heads=1, mlp_hidden=64)
    model = GPT(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    return model


def text(step: int) -> Tensor:
    """Rows that count upwards from different starts: easy to learn."""
    return (torch.arange(33)[None] + torch.arange(step, step + 4)[:, None]) % 32


def loss(model: GPT, tensors: Mapping[str, StoredTensor]) -> float:
    state = {
        name: torch.from_numpy(held_values(t)).reshape(model.state_dict()[name].shape) for name, t in tensors.items()
    }
    ids = text(1000)
    logits = torch.func.functional_call(model, state, (ids[:, :-1],))
    return float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def test_it_lowers_the_loss_and_leaves_integers_and_constants(model: GPT) -> None:
    before = quantize_state_dict(model.state_dict(), PLAN)
    after = refine(model.config, before, text, 20, learning_rate=0.02)
    assert loss(model, after) < loss(model, before) - 0.05
    floors = changed = 0
    for name, old in before.items():
        new = after[name]
        assert (new.values.shape, new.values.dtype, new.dtype) == (old.values.shape, old.values.dtype, old.dtype)
        if isinstance(old, QuantizedTensor):
            assert isinstance(new, QuantizedTensor)
            np.testing.assert_array_equal(new.values, old.values)
            assert (new.bits, new.scale.dtype, new.scale.shape) == (old.bits, old.scale.dtype, old.scale.shape)
            if len(set(old.scale.tolist())) == 1:
                floors += 1
                assert len(set(new.scale.tolist())) == 1, f"{name}: one step for all rows costs nothing in the file"
            changed += bool((new.scale != old.scale).any())
        else:
            assert isinstance(new, PlainTensor)
            assert new.stored == old.stored
            if (old.values == old.values.flat[0]).all():
                assert (new.values == new.values.flat[0]).all(), f"{name}: a constant costs nothing in the file"
    assert floors >= 4
    assert changed > 4


def test_no_steps_change_nothing(model: GPT) -> None:
    before = quantize_state_dict(model.state_dict(), PLAN)
    after = refine(model.config, before, text, 0)
    for name, old in before.items():
        assert after[name].values.tobytes() == old.values.tobytes(), name
        if isinstance(old, QuantizedTensor):
            assert after[name].scale.tobytes() == old.scale.tobytes(), name


def test_the_parts_of_the_text_do_not_overlap_and_every_shard_read_is_checked(tmp_path: Path) -> None:
    for i, kind in enumerate(("train_000000", "train_000001", "val_000000")):
        write_shard(tmp_path / f"t_{kind}.bin", np.arange(20_000) % 251 + i)
    config = resolve(load_recipe("tiny"), {"train.seq_len": "64", "model.vocab_size": "384"})
    trained = TrainedModel(config=replace(config), weights={}, kind="raw")
    reader = TrainingText(tmp_path, trained, calibration_tokens=640, refine_steps=2)
    calibration = torch.cat(reader.calibration()).flatten()
    held_out, first, second = reader.held_out(), reader.refinement(0), reader.refinement(1)
    stream = torch.arange(40_000) % 20_000 % 251
    everything = torch.cat([calibration, held_out.flatten(), first.flatten(), second.flatten()])
    assert torch.equal(everything, stream[: len(everything)] + (torch.arange(len(everything)) >= 20_000))
    shutil.copy(tmp_path / "t_val_000000.bin", tmp_path / "t_train_000001.bin")
    TrainingText(tmp_path, trained, calibration_tokens=640)
    with pytest.raises(InputError, match=r"t_train_000001.bin has the SHA-256 of a validation shard"):
        TrainingText(tmp_path, trained, calibration_tokens=640, refine_steps=2)
