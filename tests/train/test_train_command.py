"""``evalkit train`` as a user meets it: what it says first, how it goes on, and the whole way to a submission."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
from pathlib import Path

import pytest
from train_helpers import SMALL

from evalkit.cli.main import run_command
from evalkit.train.files import load_tensors, read_json
from evalkit.train.loop import Trainer

KEYS = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]


def train(*arguments: object) -> int:
    return run_command(["train", *map(str, arguments)])


def tokenized(text: Path, tokenizer: Path, folder: Path) -> Path:
    """Return shards of a text's lines, eight to a document, of which the first are for validation.

    Of the text only what every tokenizer can write is kept.
    """
    lines = re.sub(r"[^A-Za-z0-9 .,\n]", "", text.read_text(encoding="utf-8")).split("\n")
    documents = folder / "documents.jsonl"
    texts = (" ".join(lines[i : i + 8]) for i in range(0, len(lines), 8))
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = ["--tokenizer", str(tokenizer), "--out", str(folder / "shards"), "--val-documents", "3"]
    assert run_command(["data", "tokenize", str(documents), *arguments, "--workers", "1"]) == 0
    return folder / "shards"


def test_a_run_says_what_a_step_is_and_how_long_it_takes(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="evalkit")
    assert train("--recipe", "tiny", "--scale", "32x2", "--steps", 2, "--data", data, "--out", tmp_path, *KEYS) == 0
    said = [record.getMessage() for record in caplog.records if "a step has" in record.getMessage()]
    assert len(said) == 1
    assert re.fullmatch(
        r"a step has 256 tokens: 4 micro-batches of 64; the first took [\d.]+ s, so a step takes about [\d.]+ s and "
        r"2 steps about \d+s",
        said[0],
    )


def test_the_hint_of_an_interrupted_run_is_a_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "a run", tmp_path / "whole"
    arguments = ("--recipe", "tiny", "--scale", "32x2", "--steps", 6, "--data", data, *KEYS)
    assert train(*arguments, "--out", whole) == 0
    step = Trainer.train_step

    def stopping(trainer: Trainer) -> object:
        result = step(trainer)
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopping)
        assert train(*arguments, "--out", out) == 130
    hint = capsys.readouterr().err.partition("continue with: ")[2]
    program, *command = shlex.split(hint)
    assert program == "evalkit"
    assert run_command(command) == 0
    ours, other = load_tensors(out / "model.pt"), load_tensors(whole / "model.pt")
    assert all((ours[name] == other[name]).all() for name in other)
    assert read_json(out / "summary.json")["recipe"] == "tiny"


def test_without_a_recipe_there_must_be_a_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--data", data, "--out", tmp_path) == 2
    assert "--recipe is missing; name what to train" in capsys.readouterr().err
    assert train("--data", data, "--out", tmp_path, "--resume") == 2
    assert "holds no run to go on with; start one with --recipe" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_best_goes_the_whole_way_in_one_command(
    tokenizer_path: Path, text_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tokenized(text_path, tokenizer_path, tmp_path)
    code = tmp_path / "train_gpt.py"
    code.write_text("print('score me')\n")
    cap = 60_000
    settings = SMALL | {"model.vocab_size": "384", "train.batch_tokens": "128", "train.spans": "1"}
    assert run_command([
        "run", "--recipe", "best", "--scale", "32x2", "--steps", "3", "--data", str(shards),
        "--tokenizer", str(tokenizer_path), "--out", str(tmp_path / "best"), "--target-bytes", str(cap),
        "--code", str(code), "--submission", str(tmp_path / "records" / "mine"), "--author", "Ada",
        "--limit-tokens", "200", "--budget", "1", "--stride", "32", "--calibration-tokens", "512",
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    ]) == 0  # fmt: skip
    report = json.loads((tmp_path / "best" / "report.json").read_text())
    assert report["recipe"] == "best"
    assert report["export"]["code_bytes"] == code.stat().st_size
    assert report["export"]["total_bytes"] <= cap
    submission = json.loads((tmp_path / "records" / "mine" / "submission.json").read_text())
    assert submission["val_bpb"] == report["stages"]["sliding"]["bpb"]
    assert submission["bytes_total"] == report["export"]["total_bytes"]
    assert (tmp_path / "records" / "mine" / "train_gpt.py").exists()
    # What verify says of the folder: its score stands, and it was not that of the full validation set.
    said = capsys.readouterr().out
    assert re.search(r"^score +holds", said, re.MULTILINE)
    assert re.search(r"^coverage +CONTRADICTED .* scored on 200 tokens", said, re.MULTILINE)


@pytest.mark.parametrize(("recipe", "vocabulary"), [("pr1218", 4096), ("pr1493", 8192)])
def test_other_vocabularies_from_text_to_score(
    recipe: str, vocabulary: int, shared: Path, text_path: Path, tmp_path: Path
) -> None:
    tokenizer = shared / "data" / "tokenizers" / f"fineweb_{vocabulary}_bpe.model"
    shards = tokenized(text_path, tokenizer, tmp_path)
    keys = ("train.batch_tokens=64", "train.spans=1", "train.seq_len=32", "train.precision=float32", "train.device=cpu")
    sets = [part for key in keys for part in ("--set", key)]
    assert train("--recipe", recipe, "--scale", "32x4", "--steps", 3, "--data", shards, "--tokenizer", tokenizer,
                 "--out", tmp_path / "run", *sets) == 0  # fmt: skip
    for container in ("evalkit", "torch-brotli"):
        artifact = tmp_path / container
        assert run_command(["export", str(tmp_path / "run"), "-o", str(artifact), "--container", container,
                            "--data", str(shards), "--calibration-tokens", "64"]) == 0  # fmt: skip
        named = [] if container == "evalkit" else ["--recipe", str(tmp_path / "run" / "recipe.toml")]
        assert run_command(["score", str(artifact), "--tokens", str(shards / "*val*.bin"), "--tokenizer",
                            str(tokenizer), "--seq-len", "32", "--stride", "32", "--limit-tokens", "64",
                            "--json", str(tmp_path / f"{container}.json"), *named]) == 0  # fmt: skip
    own, published = (read_json(tmp_path / f"{name}.json") for name in ("evalkit", "torch-brotli"))
    assert own["config"]["vocab_size"] == vocabulary
    assert own["bpb"] == published["bpb"]
