"""What ``auto`` stands for: by device, by counts, and by what a resumed run did before."""

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from train_helpers import SMALL

from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_json
from evalkit.plumbing.hardware import MatrixSpeed
from evalkit.plumbing.log import LOG
from evalkit.plumbing.ranks import Ranks
from evalkit.recipes import load_recipe
from evalkit.train import automatic
from evalkit.train.automatic import settle, training_flops_per_token
from evalkit.train.config import RunConfig
from evalkit.train.files import read_json
from evalkit.train.folder import TrainingFolder
from evalkit.train.objective import Objective
from evalkit.train.resolve import resolve
from evalkit.train.run import run_training

SLOW = MatrixSpeed(processor="old", float32=100.0, bfloat16=20.0)
FAST = MatrixSpeed(processor="new", float32=100.0, bfloat16=400.0)
LONG = {"train.batch_tokens": "8192", "train.spans": "1"}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "matrix_speed", lambda device: SLOW)
    monkeypatch.setattr(automatic, "_has_compiler", lambda: True)


def best(overrides: dict[str, str] | None = None, *, steps: int | None = 2000) -> RunConfig:
    return resolve(load_recipe("best"), LONG | (overrides or {}), steps=steps)


def answers(config: RunConfig) -> tuple[str, str, str]:
    return config.train.precision, config.optimizer.ns_precision, config.train.compile


def test_a_cpu_trains_in_what_it_multiplies_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers(settle(best(steps=2), Ranks()))[:2] == ("float32", "float32")
    monkeypatch.setattr(automatic, "matrix_speed", lambda device: FAST)
    assert answers(settle(best(steps=2), Ranks()))[:2] == ("bfloat16", "bfloat16")


def test_a_gpu_trains_in_bfloat16_and_compiles() -> None:
    gpu = dataclasses.replace(Ranks(), device=torch.device("cuda"))
    assert answers(settle(best(steps=2), gpu)) == ("bfloat16", "bfloat16", "on")


@pytest.mark.parametrize(
    ("overrides", "steps", "compiled"),
    [
        ({}, 2000, "on"),
        ({}, 50, "off"),
        ({"train.max_seconds": "600"}, None, "off"),
        ({"train.max_seconds": "7200"}, None, "on"),
    ],
)
def test_a_cpu_compiles_long_runs(overrides: dict[str, str], steps: int | None, compiled: str) -> None:
    assert settle(best(overrides, steps=steps), Ranks()).train.compile == compiled


def test_nothing_is_compiled_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "_has_compiler", lambda: False)
    assert settle(best(), Ranks()).train.compile == "off"


def test_what_is_said_is_done() -> None:
    said = {"train.precision": "bfloat16", "optimizer.ns_precision": "bfloat16", "train.compile": "off"}
    assert answers(settle(best(said), Ranks())) == ("bfloat16", "bfloat16", "off")


def test_a_resumed_run_keeps_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settle(best(), Ranks())
    monkeypatch.setattr(automatic, "matrix_speed", lambda device: FAST)
    monkeypatch.setattr(automatic, "_has_compiler", lambda: False)
    assert answers(settle(best(), Ranks(), before)) == answers(before) == ("float32", "float32", "on")


@pytest.mark.parametrize(("began_on", "compiled"), [("cpu", "on"), (None, "on"), ("cuda", "off")])
def test_compilation_is_settled_anew_on_another_kind_of_device(
    began_on: str | None, compiled: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Precisions stay: they decide the weights."""
    gpu = dataclasses.replace(Ranks(), device=torch.device("cuda"))
    before = settle(best({"train.precision": "bfloat16"}), gpu)
    monkeypatch.setattr(automatic, "_has_compiler", lambda: False)
    with caplog.at_level("INFO", logger=LOG.name):
        assert answers(settle(best(), Ranks(), before, began_on)) == ("bfloat16", "bfloat16", compiled)
    said = [record.getMessage() for record in caplog.records]
    assert [("train.compile is off here" in line, "train.precision stays bfloat16" in line) for line in said] == (
        [(True, True)] if began_on == "cuda" else []
    )


def test_a_gpus_run_goes_on_on_a_cpu(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without its recipe, and with what is asked for; the folder is as a GPU's run left it."""
    out = tmp_path / "run"
    run_training("tiny", data, None, out, SMALL | {"train.checkpoint_every": "1"}, scale="32x2", steps=2)
    identity = read_json(out / "config.json")
    assert identity["device"] == "cpu"
    identity["device"], identity["sections"]["train"]["compile"] = "cuda", "on"
    write_json(out / "config.json", identity)
    asked: list[bool] = []
    monkeypatch.setattr(
        "evalkit.train.loop.Objective",
        lambda *given, compiled: asked.append(compiled) or Objective(*given, compiled=False),
    )
    resume = functools.partial(run_training, data=data, tokenizer=None, out=out, resume=True)
    keys = SMALL | {"train.checkpoint_every": "1"}
    assert resume(None).status == "done"
    assert resume("tiny", overrides=keys, scale="32x2", steps=2).status == "done"
    assert resume(None, overrides={"train.compile": "on"}).status == "done"
    assert asked == [False, False, True]
    with pytest.raises(InputError, match=r"train\.precision was float32, now bfloat16"):
        resume(None, overrides={"train.precision": "bfloat16"})


def test_operations_are_counted_once_for_each_visit() -> None:
    model = best().model
    twice = dataclasses.replace(model, layer_order=(*range(model.num_layers), *range(model.num_layers)))
    head = 6 * model.model_dim * model.vocab_size
    once = training_flops_per_token(model, 1024)
    assert training_flops_per_token(twice, 1024) - head == pytest.approx(2 * (once - head))
    # By hand: two products in the forward pass and four in the backward pass, for every weight of a block.
    blocks = model.num_layers * (2 * 512**2 + 2 * 512 * 256 + 2 * 512 * 1536)
    assert training_flops_per_token(model, 0) == pytest.approx(6 * blocks + head + 6 * model.num_layers * 512)


def test_a_run_is_resumed_in_what_it_began_with(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = SMALL | {"train.precision": "auto", "optimizer.ns_precision": "auto", "train.checkpoint_every": "1"}
    begun = run_training("tiny", data, None, tmp_path / "run", keys, scale="32x2", steps=2)
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr(automatic, "matrix_speed", lambda device: FAST)
    resumed = run_training("tiny", data, None, tmp_path / "run", keys, scale="32x2", steps=2, resume=True)
    assert resumed.train_nats == begun.train_nats
    settings = TrainingFolder(path=tmp_path / "run").settings()
    assert settings is not None
    assert answers(settings)[:2] == ("float32", "float32")
