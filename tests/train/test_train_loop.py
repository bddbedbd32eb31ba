import importlib.util
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from train_helpers import SMALL, VOCAB, markov_tokens, write_shard

from evalkit.model.gpt import GPT
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.ranks import Ranks
from evalkit.recipes import load_recipe
from evalkit.train.config import RunConfig
from evalkit.train.data import TrainingTokens, find_shards
from evalkit.train.files import load_tensors
from evalkit.train.folder import TrainingFolder, load_run
from evalkit.train.loop import Trainer, TrainResult
from evalkit.train.metrics import draw_losses, read_metrics
from evalkit.train.objective import Objective
from evalkit.train.resolve import resolve
from evalkit.train.run import run_training, train_model

QUICK = SMALL | {"train.spans": "1", "qat.start_scale": "0.8"}


def settings(steps: int = 12, **keys: str) -> RunConfig:
    return resolve(
        load_recipe("tiny"),
        QUICK | {k.replace("__", "."): v for k, v in keys.items()},
        scale="32x2",
        steps=steps,
    )


def train(config: RunConfig, data: Path, out: Path, *, resume: bool = False) -> TrainResult:
    return train_model(config, data=data, tokenizer=None, out=out, resume=resume)


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.stem}.{n}": v
        for file in sorted(out.glob("*.pt"))
        if file.stem in ("model", "raw", "ema", "swa")
        for n, v in load_tensors(file).items()
    }


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps without interruption."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train(settings(), data, out)
    return out


def test_a_run_learns_and_leaves_what_the_folder_promises(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalkit.train.loop.draw_losses", draw_losses)
    out = tmp_path / "deep" / "run"
    overrides = QUICK | {"train.validate_every": "20"}
    result = run_training("tiny", data, None, out, overrides, scale="64x2", steps=60)
    assert (result.status, result.steps, result.tokens) == ("done", 60, 60 * 256)
    counts = np.bincount(np.concatenate([markov_tokens(6000, 1), markov_tokens(3001, 2)]), minlength=VOCAB) + 1.0
    unigram = -np.log(counts / counts.sum())[markov_tokens(1000, 3)[1:]].mean()
    assert result.validation["raw"].val_loss < unigram - 0.15
    assert result.validation["raw"].val_bpb is None
    for name in (
        "recipe.toml",
        "config.json",
        "checkpoint.pt",
        "metrics.jsonl",
        "model.pt",
        "raw.pt",
        "swa.pt",
        "summary.json",
    ):
        assert (out / name).stat().st_size > 0, name
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    if importlib.util.find_spec("matplotlib"):
        assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["validation"]) == {"raw", "ema", "swa"}
    assert summary["exported"] == "ema"
    events = [line.get("event") for line in read_metrics(out / "metrics.jsonl")]
    assert events.count("qat_start") == 1
    assert events.count("validation") == 2 + 3
    run = load_run(out)
    assert run.kind == "ema"
    GPT(run.config.model).load_state_dict(run.weights)
    assert torch.equal(load_run(out / "raw.pt").weights["skip_weights"], load_run(out, "raw").weights["skip_weights"])


def test_the_recipe_in_the_folder_gives_the_same_weights(finished: Path, data: Path, tmp_path: Path) -> None:
    run_training(str(finished / "recipe.toml"), data, None, tmp_path / "again")
    assert_same(weights_of(finished), weights_of(tmp_path / "again"))


def test_validation_scores_every_target_once(finished: Path, data: Path) -> None:
    run = load_run(finished, "raw")
    model = GPT(run.config.model)
    model.load_state_dict(run.weights)
    model.to_compute_dtype(torch.bfloat16)
    tokens = torch.from_numpy(markov_tokens(1000, 3))
    nats = []
    with torch.inference_mode():
        for start in range(0, 999, 32):
            stop = min(start + 32, 999)
            ids = F.pad(tokens[start:stop], (0, 32 - (stop - start)))
            logits = model(ids[None])[0, : stop - start]
            nats.append(F.cross_entropy(logits, tokens[start + 1 : stop + 1], reduction="none").double())
    direct = torch.cat(nats)
    assert len(direct) == 999
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["validation"]["raw"]["val_nats"] == pytest.approx(direct.mean().item(), abs=2e-3)


def test_warm_up_leaves_no_trace(data: Path, tmp_path: Path) -> None:
    config = settings()
    ranks = Ranks()
    weights = []
    for warm in (0, 4):
        stream = TrainingTokens(find_shards(data, config.data)[0], vocab_size=VOCAB)
        folder = TrainingFolder(path=tmp_path)
        trainer = Trainer(config, stream=stream, validator=None, ranks=ranks, folder=folder)
        initial = {name: value.detach().clone() for name, value in trainer.masters.items()}
        trainer.warm_up(warm)
        assert_same(initial, {name: value.detach() for name, value in trainer.masters.items()})
        for _ in range(2):
            trainer.train_step()
        weights.append({name: value.detach() for name, value in trainer.masters.items()})
    assert_same(*weights)


LATE_LOOPS = {"model__layer_order": "0,1,1", "schedule__loop_start": "0.6"}


@pytest.mark.parametrize(
    ("keys", "graphs"),
    [
        ({"qat__enabled": "false"}, [(False, True)]),
        ({}, [(False, True), (True, True)]),
        ({"qat__enabled": "false"} | LATE_LOOPS, [(False, False), (False, True)]),
        (LATE_LOOPS, [(False, False), (True, True)]),
        ({"train__warmup_steps": "0"}, []),
        ({"train__compile": "off"}, []),
    ],
)
def test_a_cpu_warms_up_each_graph_once(
    keys: dict[str, str], graphs: list[tuple[bool, bool]], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By rounding and by repeated blocks: each has a graph of torch.compile, which is stood in for here."""
    called: list[tuple[bool, bool]] = []
    first_step: list[int] = []
    call, step = Objective.__call__, Trainer.train_step

    def recorded(objective: Objective, *given: Any, quantised: bool, looped: bool, **more: Any) -> object:
        called.append((quantised, looped))
        return call(objective, *given, quantised=quantised, looped=looped, **more)

    def watched(trainer: Trainer) -> object:
        first_step.append(len(called))
        return step(trainer)

    monkeypatch.setattr(torch, "compile", lambda terms, **_: terms)
    monkeypatch.setattr(Objective, "__call__", recorded)
    monkeypatch.setattr(Trainer, "train_step", watched)
    steps, defaults = 3, {"train__compile": "on"}
    train(settings(steps, **defaults | keys), data, tmp_path / "warm")
    assert called[: first_step[0]] == graphs
    assert len(called) == len(graphs) + steps
    # Weights, optimizers and the order of the data are as if nothing had been warmed up.
    train(settings(steps, **defaults | keys | {"train__warmup_steps": "0"}), data, tmp_path / "cold")
    assert_same(weights_of(tmp_path / "warm"), weights_of(tmp_path / "cold"))
    warm, cold = (flat(load_tensors(tmp_path / name / "checkpoint.pt")["optimizer"]) for name in ("warm", "cold"))
    assert_same(warm, cold)


def flat(state: Mapping[Any, Any], name: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a nested mapping under joined names."""
    tensors: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        tensors |= flat(value, f"{name}.{key}") if isinstance(value, Mapping) else {f"{name}.{key}": value}
    return tensors


def resumed_at(out: Path) -> list[int]:
    """Return the steps at which a run went on from a checkpoint, as far as its log goes back."""
    return [line["step"] for line in read_metrics(out / "metrics.jsonl") if line.get("event") == "resume"]


@pytest.mark.parametrize("layout", ["banks", "matrices"])
def test_an_interrupted_run_resumes_to_the_same_bits(
    layout: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(optimizer__layout=layout)
    train(config, data, tmp_path / "whole")
    out = tmp_path / "run"
    step = Trainer.train_step
    for number, last in ((signal.SIGTERM, 4), (signal.SIGINT, 9)):

        def interrupted(trainer: Trainer, number: int = number, last: int = last) -> object:
            outcome = step(trainer)
            if trainer.step == last:
                os.kill(os.getpid(), number)
            return outcome

        monkeypatch.setattr(Trainer, "train_step", interrupted)
        result = train(config, data, out, resume=True)
        assert (result.status, result.steps) == ("interrupted", last)
        assert not (out / "model.pt").exists()
        with pytest.raises(InputError, match="not finished"):
            load_run(out)
    monkeypatch.setattr(Trainer, "train_step", step)
    assert train(config, data, out, resume=True).status == "done"
    assert resumed_at(out) == [4, 9], "a run that starts over ends with the same weights"
    assert_same(weights_of(tmp_path / "whole"), weights_of(out))
    steps = [line["step"] for line in read_metrics(out / "metrics.jsonl") if "train_nats" in line]
    assert steps == list(range(1, 13))


CHILD = """
import os
import signal
import sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from evalkit.train.loop import Trainer
from evalkit.train.run import run_training

step = Trainer.train_step
for last in map(int, sys.argv[4:]):
    child = os.fork()
    if child == 0:

        def killed(trainer):
            outcome = step(trainer)
            if trainer.step == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return outcome

        Trainer.train_step = killed
        run_training(sys.argv[1], Path(sys.argv[2]), None, Path(sys.argv[3]), resume=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_killed_run_resumes_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    config = settings(train__checkpoint_every="2")
    train(config, data, tmp_path / "whole")
    out, recipe = tmp_path / "run", str(tmp_path / "whole" / "recipe.toml")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, recipe, str(data), str(out), "5", "9"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert list(map(int, done.stdout.split())) == [-signal.SIGKILL] * 2
    assert not (out / "model.pt").exists()
    train(config, data, out, resume=True)
    assert resumed_at(out) == [4, 8]
    assert_same(weights_of(tmp_path / "whole"), weights_of(out))


def test_a_folder_is_not_overwritten_and_not_resumed_with_other_settings(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="already holds a run"):
        train(settings(), data, finished)
    with pytest.raises(InputError, match=r"train\.seed was 1337, now 1"):
        train(settings(train__seed="1"), data, finished, resume=True)
    write_shard(tmp_path / "x_train_0.bin", markov_tokens(900, 1))
    with pytest.raises(InputError, match="other shards"):
        train(settings(), tmp_path, finished, resume=True)
    with pytest.raises(InputError, match="not a run folder"):
        load_run(tmp_path)
    with pytest.raises(InputError, match="too few for one micro-batch"):
        train(settings(train__batch_tokens="1024"), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_one_sentence(finished: Path, data: Path, tmp_path: Path) -> None:
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    whole = (finished / "checkpoint.pt").read_bytes()
    for damaged in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read as a checkpoint"):
            train(settings(), data, tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(data: Path, tmp_path: Path) -> None:
    keys = {"train__checkpoint_every": "1", "optimizer__matrix_lr": "1e37", "optimizer__clip_norm": "0"}
    with pytest.raises(InputError, match="is not finite") as caught:
        train(settings(**keys), data, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert "the last checkpoint is intact" in str(caught.value)
    state = load_tensors(tmp_path / "run" / "checkpoint.pt")
    assert state["step"] >= 1
    assert np.isfinite(state["train_nats"])


def test_a_full_disk_keeps_the_checkpoint(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = settings(train__checkpoint_every="2")
    whole = tmp_path / "whole"
    train(config, data, whole)
    size = (whole / "checkpoint.pt").stat().st_size
    # A first stretch with room, then a limit on file sizes that the checkpoint does not fit under.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    saved = Trainer.save_checkpoint

    def save_then_fill(trainer: Trainer) -> None:
        if trainer.step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
        saved(trainer)

    patch = pytest.MonkeyPatch()
    patch.setattr(Trainer, "save_checkpoint", save_then_fill)
    try:
        with pytest.raises(InputError, match="cannot be written") as caught:
            train(config, data, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
        patch.undo()
    assert "--resume" in str(caught.value)
    assert load_tensors(out / "checkpoint.pt")["step"] == 4
    assert not list(out.glob(".*"))
    train(config, data, out, resume=True)
    assert resumed_at(out) == [4]
    assert_same(weights_of(whole), weights_of(out))


def test_a_clock_budget_ends_the_run_at_rate_zero(data: Path, tmp_path: Path) -> None:
    """By a clock on which every step takes a hundredth of a second."""
    config = resolve(load_recipe("tiny"), QUICK, scale="32x2", max_seconds=0.405)
    ticks = itertools.count()
    trainer = Trainer(
        config,
        stream=TrainingTokens(find_shards(data, config.data)[0], vocab_size=VOCAB),
        validator=None,
        ranks=Ranks(),
        folder=TrainingFolder(path=tmp_path),
        now=lambda: next(ticks) / 100,
    )
    result = trainer.run(resume=False)
    assert result.steps == 41 < config.train.steps
    assert result.seconds == pytest.approx(0.41)
    scales = [line["lr_scale"] for line in read_metrics(tmp_path / "metrics.jsonl") if "lr_scale" in line]
    assert scales[0] == 1.0
    assert scales[-1] < 0.2


def test_spans_leave_the_step_alone(data: Path, tmp_path: Path) -> None:
    """Spans read the same batch shape; what differs is one boundary token a span."""
    with pytest.raises(InputError, match="multiple of train"):
        settings(train__spans="3")
    assert settings(train__spans="8").train.span_tokens == 32
