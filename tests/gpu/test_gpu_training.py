"""Training on a GPU: the steps of a CPU up to rounding, resumed and compiled like those that are neither."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from gpu_inputs import DEVICE, SIZE, Inputs

from evalkit.artifact.load import load_artifact
from evalkit.plumbing.ranks import Ranks
from evalkit.recipes import load_recipe
from evalkit.train.data import TrainingTokens, find_shards
from evalkit.train.files import load_tensors
from evalkit.train.folder import TrainingFolder
from evalkit.train.loop import Trainer
from evalkit.train.resolve import resolve
from evalkit.train.run import run_training


def trainer_of(data: Path, folder: Path, **changes: str) -> Trainer:
    settings = SIZE | {key.replace("__", "."): value for key, value in changes.items()}
    config = resolve(load_recipe("tiny"), settings, steps=10)
    shards, _ = find_shards(data, config.data)
    device = torch.device(config.train.device)
    return Trainer(
        config,
        stream=TrainingTokens(shards, vocab_size=config.model.vocab_size),
        validator=None,
        ranks=Ranks(device=device),
        folder=TrainingFolder(path=folder),
    )


def assert_close(found: Trainer, expected: Trainer, tolerance: float) -> None:
    for name, value in expected.masters.items():
        torch.testing.assert_close(found.masters[name].cpu(), value.cpu(), atol=tolerance, rtol=0, msg=name)


def test_a_step_is_that_of_a_cpu(data: Path, tmp_path: Path) -> None:
    # Newton-Schulz in float32: in bfloat16 it turns the last digit of a gradient into the third of an update.
    found, expected = (
        trainer_of(data, tmp_path, train__device=device, optimizer__ns_precision="float32")
        for device in (DEVICE, "cpu")
    )
    losses = [float(trainer.train_step()[0]) for trainer in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert_close(found, expected, 2e-3)


def test_a_compiled_step_is_the_one_as_written(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # traced and differentiated as on a GPU, without its code generation
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    for precision, tolerance in (("float32", 1e-3), ("bfloat16", 2e-2)):
        found, expected = (
            trainer_of(data, tmp_path, train__compile=compiled, train__precision=precision)
            for compiled in ("on", "off")
        )
        losses = [float(trainer.train_step()[0]) for trainer in (found, expected)]
        assert losses[0] == pytest.approx(losses[1], abs=tolerance)


def test_an_interrupted_run_resumes(
    data: Path, tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(out: str) -> str:
        return run_training("tiny", data, tokenizer_path, tmp_path / out, SIZE, steps=8, resume=True).status

    assert train("whole") == "done"
    step = Trainer.train_step

    def interrupted(trainer: Trainer) -> object:
        outcome = step(trainer)
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return outcome

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert train("run") == "interrupted"
    monkeypatch.setattr(Trainer, "train_step", step)
    assert train("run") == "done"
    whole, resumed = (load_tensors(tmp_path / out / "model.pt") for out in ("whole", "run"))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=2e-3, rtol=0, msg=name)


def test_the_artifact_of_a_run_on_the_device_holds_its_weights(inputs: Inputs) -> None:
    artifact = load_artifact(str(inputs.artifact))
    trained = load_tensors(inputs.run / "model.pt")
    assert set(artifact.tensors) == set(trained)
    model = artifact.build(artifact.resolve().config)
    for name, value in model.state_dict().items():
        assert value.device.type == "cpu"
        distance = (value.float() - trained[name].float().view_as(value)).norm() / trained[name].float().norm()
        assert distance < 0.2, name
