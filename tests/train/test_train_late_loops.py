"""Blocks that repeat from a part of the run on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from train_helpers import SMALL, VOCAB

from evalkit.model.gpt import GPT
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.ranks import Ranks
from evalkit.recipes import load_recipe
from evalkit.train.config import RunConfig, ScheduleConfig
from evalkit.train.data import TrainingTokens, find_shards
from evalkit.train.files import load_tensors
from evalkit.train.folder import TrainingFolder
from evalkit.train.loop import LoopStart, Trainer
from evalkit.train.metrics import read_metrics
from evalkit.train.objective import unlooped
from evalkit.train.resolve import resolve
from evalkit.train.run import train_model
from evalkit.train.schedules import Clock

LATER = ("pr1218", "pr1334", "pr1394", "pr1477", "pr1493", "pr1529")
QUICK = SMALL | {"train.spans": "1"}


def settings(recipe: str = "pr1493", steps: int = 8, **keys: str) -> RunConfig:
    overrides = QUICK | {key.replace("__", "."): value for key, value in keys.items()}
    return resolve(load_recipe(recipe), overrides, scale="32x4", steps=steps)


def trainer(config: RunConfig, data: Path, folder: Path) -> Trainer:
    stream = TrainingTokens(find_shards(data, config.data)[0], vocab_size=VOCAB)
    return Trainer(config, stream=stream, validator=None, ranks=Ranks(), folder=TrainingFolder(path=folder))


def run(config: RunConfig, data: Path, out: Path, *, resume: bool = False) -> dict[str, torch.Tensor]:
    train_model(config, data=data, tokenizer=None, out=out, resume=resume)
    return {f"{kind}.{n}": v for kind in ("model", "raw") for n, v in load_tensors(out / f"{kind}.pt").items()}


@pytest.mark.parametrize("recipe", LATER)
def test_later_recipes_learn_with_their_own_optimizer(recipe: str, data: Path, tmp_path: Path) -> None:
    config = settings(recipe, steps=16)
    assert config.optimizer.row_normalise == (recipe != "pr1218")
    assert config.averaging.export == "ema"
    assert (config.schedule.loop_start > 0) == bool(config.model.layer_order) == (recipe != "pr1218")
    one = trainer(config, data, tmp_path)
    nats = [float(one.train_step()[0]) for _ in range(config.train.steps)]
    assert nats[-1] < nats[0] - 0.1


def test_the_order_begins_at_its_fraction_of_the_steps(data: Path, tmp_path: Path) -> None:
    config = settings(schedule__loop_start="0.5")
    late = trainer(config, data, tmp_path)
    never = trainer(settings(schedule__loop_start="1.0"), data, tmp_path)
    without = trainer(settings(model__layer_order="", model__skip_rows="4", schedule__loop_start="0"), data, tmp_path)
    always = trainer(settings(schedule__loop_start="0"), data, tmp_path)
    assert config.model.num_skips == 4
    losses = {name: [float(t.train_step()[0]) for _ in range(6)]
              for name, t in {"late": late, "never": never, "without": without, "always": always}.items()}  # fmt: skip
    assert losses["never"] == losses["without"] != losses["always"]
    assert losses["late"][:4] == losses["without"][:4]
    assert losses["late"][4] != losses["without"][4]
    assert late.loop_start == LoopStart(step=4, ruled_by="steps")


def test_a_pass_without_repeats_uses_the_same_weights() -> None:
    model = settings().model
    assert unlooped(model).passes == (0, 1, 2, 3) != model.passes
    shapes = [{n: v.shape for n, v in GPT(m).state_dict().items()} for m in (model, unlooped(model))]
    assert shapes[0] == shapes[1]
    for recipe in LATER:
        full = load_recipe(recipe).model_config()
        assert unlooped(full).num_skips == full.num_skips, recipe


def test_the_clock_rules_where_there_is_one(data: Path, tmp_path: Path) -> None:
    overrides = QUICK | {"schedule.loop_start": "0.5"}
    config = resolve(load_recipe("pr1493"), overrides, scale="32x4", steps=1000, max_seconds=10)
    one = trainer(config, data, tmp_path)
    one.clock.seconds = 4.9
    one.train_step()
    assert one.loop_start is None
    one.clock.seconds = 5.0
    one.train_step()
    assert one.loop_start == LoopStart(step=1, ruled_by="clock")


def test_the_run_folder_says_when_and_by_what(data: Path, tmp_path: Path) -> None:
    run(settings(schedule__loop_start="0.5"), data, tmp_path / "a")
    events = [line for line in read_metrics(tmp_path / "a" / "metrics.jsonl") if line.get("event") == "loop_start"]
    assert events == [{"step": 4, "event": "loop_start", "ruled_by": "steps"}]
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["loop_start"] == {"step": 4, "ruled_by": "steps"}
    run(settings("pr1218", steps=2), data, tmp_path / "b")
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["loop_start"] is None


@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_stopped_run_goes_on_to_the_same_bits(
    stop_at: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(schedule__loop_start="0.5", optimizer__ns_coefficients="polar_express")
    whole = run(config, data, tmp_path / "whole")
    step = Trainer.train_step

    def stopping(self: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
        result = step(self)
        if self.step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopping)
        assert train_model(config, data=data, tokenizer=None, out=tmp_path / "cut").status == "interrupted"
    resumed = run(config, data, tmp_path / "cut", resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    events = [line.get("step") for line in read_metrics(tmp_path / "cut" / "metrics.jsonl")
              if line.get("event") == "loop_start"]  # fmt: skip
    assert events == [4]


def test_the_decay_may_be_a_fraction_of_the_run() -> None:
    def scale(fraction_done: float, warmdown: float) -> float:
        config = settings("pr1218", steps=1000)
        clock = Clock(RunConfig(**vars(config) | {"schedule": ScheduleConfig(warmdown_fraction=warmdown)}))
        return clock.lr_scale(round(1000 * fraction_done))

    assert [scale(f, 0.667) for f in (0.333, 0.5, 0.9)] == pytest.approx([1.0, 0.749625, 0.149925], abs=1e-6)
    assert scale(0.5, 0.72) == pytest.approx(0.694444, abs=1e-6)
    assert scale(0.2, 0.72) == 1.0


@pytest.mark.parametrize("key", ["loop_start", "warmdown_fraction"])
def test_fractions_are_at_most_one(key: str) -> None:
    with pytest.raises(InputError, match=rf"schedule.{key} is 1.5; expected in \[0, 1\]"):
        ScheduleConfig(**{key: 1.5})
