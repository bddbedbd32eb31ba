"""Processes share the windows; every one of them ends with the numbers of one process."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalkit.cli.main import run_command
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.ranks import Ranks
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.score import score
from evalkit.verbs.session import open_session

PROCESSES = """
import json, sys
from pathlib import Path
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.session import open_session
from evalkit.plumbing.ranks import Ranks
from evalkit.verbs.score import score_session

def work(folder):
    ranks = Ranks.from_environment()
    with ranks.joined("cpu"):
        for name, options in json.loads((folder / "options.json").read_text()).items():
            report = score_session(open_session(ScoreOptions(**options)).shared_among(ranks))
            report.save_nll(str(folder / f"{name}-{ranks.rank}.npz"))
            kept = {key: getattr(report, key) for key in ("nats", "bpb", "ledger_sha256", "ranks")}
            (folder / f"{name}-{ranks.rank}.json").write_text(json.dumps(kept))

# What torchrun --standalone does, with processes that are forked after everything has been imported.
once = {"min_nodes": 1, "max_nodes": 1, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
elastic_launch(LaunchConfig(nproc_per_node=2, start_method="fork", run_id="test", **once), work)(Path(sys.argv[1]))
"""


@pytest.fixture
def options(tiny_artifact: Path, tokenizer_path: Path, text_path: Path) -> ScoreOptions:
    return ScoreOptions(
        artifact=str(tiny_artifact),
        tokenizer=str(tokenizer_path),
        text=str(text_path),
        seq_len=64,
        stride=16,
        limit_tokens=400,
        dtype="float32",
    )


def test_two_processes_score_the_bits_of_one(options: ScoreOptions, tmp_path: Path) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps({"text": "A few words. " * n}) + "\n" for n in (1, 9, 2, 12, 3, 20)))
    learning = {"ttt": {"chunk_tokens": "256", "batch_sequences": "3"}}
    runs = {
        "plain": options,
        "hedge": replace(options, mixer="hedge", threads=2),
        "documents": replace(options, text=str(documents), context="documents", threads=2),
        "learning": replace(options, mixer="hedge", ttt=True, settings=learning),
    }
    in_one = {name: score(run) for name, run in runs.items()}
    (tmp_path / "options.json").write_text(json.dumps({name: asdict(run) for name, run in runs.items()}))
    subprocess.run(
        [sys.executable, "-c", PROCESSES, str(tmp_path)],
        check=True, timeout=240, capture_output=True, cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"PYTHONPATH": "."},
    )  # fmt: skip
    for name, alone in in_one.items():
        for rank in range(2):
            values = json.loads((tmp_path / f"{name}-{rank}.json").read_text())
            assert values.pop("ranks") == 2
            assert values == {key: getattr(alone, key) for key in values}
            np.testing.assert_array_equal(np.load(tmp_path / f"{name}-{rank}.npz")["nll"], alone.nll)
    assert alone.ttt_report is not None
    assert alone.ttt_report["steps"] > 0


@given(total=st.integers(0, 50), count=st.integers(1, 9))
def test_slices_cover_everything_once_and_evenly(total: int, count: int) -> None:
    slices = [Ranks(rank=rank, count=count).slice(total) for rank in range(count)]
    assert [i for part in slices for i in part] == list(range(total))
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_one_process_shares_with_itself() -> None:
    pieces = [torch.full((n, 2), float(n)) for n in (3, 1, 2)]
    shared = list(Ranks().share([3, 1, 2], lambda own: pieces[own.start : own.stop], torch.empty(0, 2)))
    assert all(torch.equal(a, b) for a, b in zip(shared, pieces, strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"context": "streaming"}, "nothing to share"),
        ({"mixer": "published"}, "nothing to share"),
        ({"ttt": True, "settings": {"ttt": {"time_limit": "5"}}}, r"ttt\.time_limit"),
    ],
)
def test_what_cannot_be_shared_is_refused(options: ScoreOptions, change: dict[str, object], words: str) -> None:
    session = open_session(replace(options, **change))  # type: ignore[arg-type]
    assert session.shared_among(Ranks()) is session
    with pytest.raises(InputError, match=words):
        session.shared_among(Ranks(rank=1, count=2))


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "two", "WORLD_SIZE": "4"}, "RANK='two', WORLD_SIZE='4', LOCAL_RANK=None"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE='x'"),
        ({"RANK": "0"}, "WORLD_SIZE=None"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4, WORLD_SIZE=4"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
    ],
)
def test_a_damaged_environment_is_one_sentence(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words) as caught, Ranks.from_environment().joined("cpu"):
        pass
    assert "\n" not in str(caught.value)


def test_commands_say_the_same_of_a_damaged_environment(
    options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "x")
    text = ["--text", str(options.text), "--tokenizer", options.tokenizer]
    said = []
    for command in (
        ["score", str(options.artifact), *text],
        ["check", str(options.artifact), *text],
        ["train", "--recipe", "tiny", "--data", str(tmp_path), "--out", str(tmp_path / "run")],
    ):
        assert run_command(command) == 2
        said.append(capsys.readouterr().err)
    assert "WORLD_SIZE='x'" in said[0]
    assert said == said[:1] * 3
    assert not (tmp_path / "run").exists()


def test_check_works_on_the_first_process_alone(
    options: ScoreOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["check", "--no-model", "--mixer", "hedge", "--text", str(options.text), "--tokenizer", options.tokenizer]
    command += ["--max-tokens", "200", "--budget", "inf"]
    verdicts = []
    for environment in ({}, {"RANK": "0", "WORLD_SIZE": "2"}, {"RANK": "1", "WORLD_SIZE": "2"}):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert run_command(command) == 0
        verdicts.append(capsys.readouterr().out.partition(" (")[0])
    assert verdicts == ["verdict: legal", "verdict: legal", ""]
