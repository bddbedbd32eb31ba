"""Submission folders: every number comes from a report or a file."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.cli.main import run_command
from evalkit.legality.report import Finding
from evalkit.report.load import read_report, read_token_scores
from evalkit.verbs.command_line import score_words
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.session import open_session
from evalkit.verify.verify import verify_folder
from tests.evalkit.reports import check_of, write_check, write_report


@pytest.fixture
def seeds(scored: tuple[Path, Path], tmp_path: Path, rng: np.random.Generator) -> list[str]:
    saved = read_report(scored[0])
    scores = read_token_scores(scored[0].with_suffix(".npz"), saved)
    return [
        str(write_report(tmp_path / f"s{i}.json", saved.report, scores.nll + rng.uniform(0, 0.01), scores.num_bytes))
        for i in range(3)
    ]


def arguments(folder: Path, reports: list[str], *more: str) -> list[str]:
    named = [word for report in reports for word in ("--report", report)]
    return ["submit", str(folder), *named, "--name", "Nine layers", "--author", "Ada", "--github-id", "ada", *more]


def test_folder_has_what_the_challenge_asks_for(
    seeds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "train_gpt.py"
    code.write_text("print('train')\n")
    log = tmp_path / "train.log"
    log.write_text("step 1\n")
    folder = tmp_path / "records" / "mine"
    assert run_command(arguments(folder, seeds, "--code", str(code), "--log", str(log))) == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"submission.json", "README.md", "evalkit.log", "train_gpt.py", "train.log",
                     "score-1.json", "score-2.json", "score-3.json"}  # fmt: skip
    values = json.loads((folder / "submission.json").read_text())
    reports = [read_report(path).report for path in seeds]
    assert values["val_bpb"] == statistics.fmean(r.bpb for r in reports)
    assert values["val_loss_sd"] == statistics.stdev(r.val_loss for r in reports)
    assert reports[0].artifact is not None
    size = Path(reports[0].artifact.path).stat().st_size
    assert values["bytes_total"] == size + code.stat().st_size
    assert values["bytes_code"] == code.stat().st_size
    assert values["legal"] is None
    for key in ("author", "github_id", "name", "blurb", "date"):
        assert values[key]
    readme = (folder / "README.md").read_text()
    assert f"{values['val_bpb']:.6f}" in readme
    assert f"{values['bytes_total']:,}" in readme
    everything = "".join(path.read_text() for path in folder.iterdir())
    assert str(tmp_path.parent) not in everything  # no paths of this machine
    claims = {claim.claim: claim.status for claim in verify_folder(folder).claims}
    assert (claims["score"], claims["files"]) == ("holds", "holds")
    assert claims["coverage"] == "contradicted"  # a few thousand tokens are not the validation set
    assert "verdict  contradicted" in capsys.readouterr().out  # verify ends the command


def test_what_cannot_be_submitted_is_refused_and_nothing_written(seeds: list[str], tmp_path: Path, capsys) -> None:
    folder = tmp_path / "mine"

    def refused(*words: str, reports: list[str] | None = None) -> str:
        assert run_command(arguments(folder, reports or seeds, *words)) == 2
        assert not folder.exists()
        assert not list(tmp_path.glob(".mine*"))
        return str(capsys.readouterr().err)

    big = tmp_path / "big.py"
    big.write_bytes(bytes(16_000_000))
    assert "over the cap" in refused("--code", str(big))
    moved = Finding(axiom="causality", position=7, evidence={}, message="The score moved.")
    check = write_check(tmp_path / "check.json", check_of(Path(seeds[0]), moved))
    assert "illegal (The score moved.); it cannot be submitted" in refused(*["--check", check] * 3)
    assert "1 --check files for 3 reports" in refused("--check", check)
    other = tmp_path / "other.ptz"
    other.write_bytes(b"other")
    assert "is not the artifact" in refused(*["--artifact", str(other)] * 3)
    values = json.loads(Path(seeds[0]).read_text()) | {"stride": 17}
    (tmp_path / "x.json").write_text(json.dumps(values))
    assert "are one run; name each run once" in refused(reports=[seeds[0], seeds[1], seeds[0]])
    assert "differ in stride" in refused(reports=[seeds[0], str(tmp_path / "x.json")])
    (tmp_path / "README.md").write_text("x")
    assert "different file names" in refused("--code", str(tmp_path / "README.md"))


def test_an_existing_folder_is_left_alone(seeds: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "precious").write_text("x")
    assert run_command(arguments(folder, seeds)) == 2
    assert [path.name for path in folder.iterdir()] == ["precious"]


def test_the_printed_line_scores_it_again_to_the_last_bit(
    scored: tuple[Path, Path], tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    report, shard = read_report(scored[0]).report, scored[1]
    assert report.artifact is not None
    folder, files = tmp_path / "submission", tmp_path / "files"
    assert run_command(arguments(folder, [str(scored[0])])) == 0
    printed = capsys.readouterr().out
    (line,) = re.findall(r"^evalkit score .*$", (folder / "README.md").read_text(), re.MULTILINE)
    assert f"score again  {line}" in printed
    assert str(tmp_path.parent) not in line
    for word in ("--mixer hedge", "--ttt", "--set ttt.chunk_tokens=256", "--seq-len 128", "--stride 64"):
        assert word in line
    renamed = tmp_path / "renamed.evk"
    shutil.copy(report.artifact.path, renamed)
    other = arguments(tmp_path / "other", [str(scored[0])], "--artifact", str(renamed))
    assert run_command(other) == 0
    assert f"score again  {line.replace(Path(report.artifact.path).name, 'renamed.evk')}" in capsys.readouterr().out
    files.mkdir()
    for path in (Path(report.artifact.path), shard, tokenizer_path):
        shutil.copy(path, files)
    monkeypatch.chdir(files)
    assert run_command([*shlex.split(line)[1:], "--json", "again.json"]) == 0
    again = read_report("again.json").report
    assert (again.nats, again.bpb, again.ledger_sha256) == (report.nats, report.bpb, report.ledger_sha256)


@pytest.mark.parametrize("change", [
    {"limit_tokens": 300}, {"stride": 32}, {"dtype": "bfloat16"}, {"context": "streaming"}, {"seq_len": None},
    {"mixer": "hedge", "settings": {"mixer": {"eta": "0.5"}}}, {"recipe": "pr849"}, {"threads": 2},
    {"batch_windows": 3}, {"tokens": None, "text": "a folder/a text.txt"}, {"reliability": 5},
    {"artifact": None, "mixer": "hedge"},
])  # fmt: skip
def test_every_option_of_a_run_is_in_its_line(
    change: dict[str, Any], tiny_artifact: Path, tokenizer_path: Path, scored: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("a folder").mkdir()
    Path("a folder/a text.txt").write_text("A text of some words, to be scored.")
    plain = ScoreOptions(artifact=str(tiny_artifact), tokenizer=str(tokenizer_path), tokens=str(scored[1]))
    session = open_session(replace(plain, **change))
    words = score_words(session)
    assert words is not None
    asked: list[ScoreOptions] = []
    monkeypatch.setattr("evalkit.verbs.session.open_session", lambda options: asked.append(options) or 1 / 0)
    assert run_command(list(words[1:])) == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    repeated = open_session(asked[0])
    assert repeated.identity() == session.identity()
    given = {name: value for name, value in change.items() if value is not None and name != "settings"}
    assert {name: getattr(asked[0], name) for name in given} == given
