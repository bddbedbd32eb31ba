"""The board: entries, the frontier, and the page; and the command line of both commands."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from folders import Made
from scipy import stats

from evalkit.cli.main import run_command
from evalkit.verify.board import Entry, frontier, read_entries
from evalkit.verify.board_page import board_page


def test_the_interval_is_students(made: Made) -> None:
    (entry,) = read_entries([made.write()])
    scores = list(made.bpb.values())
    low, high = stats.t.interval(0.95, 2, sum(scores) / 3, stats.sem(scores))
    assert entry.half_width == pytest.approx((high - low) / 2)
    assert entry.date == "2026-04-01"
    assert entry.size == made.model + len(made.code)
    assert entry.verify == "consistent"


def test_the_frontier_leaves_out_what_is_contradicted() -> None:
    entries = [
        Entry(name="first", date="2026-01-01", scores=(1.2, 1.21), verify="consistent"),
        Entry(name="worse", date="2026-01-02", scores=(1.3,), verify="consistent"),
        Entry(name="false", date="2026-01-03", scores=(0.9,), verify="contradicted"),
        Entry(name="illegal", date="2026-01-03", scores=(0.9,), check="illegal"),
        Entry(name="better", date="2026-01-04", scores=(1.1, 1.11), verify="incomplete"),
        Entry(name="undated", scores=(1.0,)),
    ]
    steps = frontier(entries)
    assert [s.entry.name for s in steps] == ["first", "better"]
    assert steps[0].gain is None
    assert steps[1].gain == pytest.approx(0.1)
    expected = stats.ttest_ind((1.1, 1.11), (1.2, 1.21), equal_var=False, alternative="less").pvalue
    assert steps[1].p == pytest.approx(expected)


def test_the_page_fetches_nothing_and_escapes_names() -> None:
    html = board_page([Entry(name="<img src=x>", date="2026-01-01", scores=(1.2,), why="<b>", verify="consistent")])
    assert "<img" not in html
    assert not re.search(r"""(?:src|href)=["']?(?!data:)[a-z]+:|url\(|@import""", html)


def test_reports_become_entries(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made.write()
    assert (
        run_command(["verify", str(folder), "--json", str(tmp_path / "v.json"), "--html", str(tmp_path / "v.html")])
        == 0
    )
    score = {"bpb": 1.2, "val_loss": 2.0, "artifact": {"bytes": 15_000_000}, "legal": True}
    (tmp_path / "score.json").write_text(json.dumps(score))
    out = tmp_path / "board.html"
    assert (
        run_command(["board", str(folder), str(tmp_path / "v.json"), str(tmp_path / "score.json"), "-o", str(out)]) == 0
    )
    assert "3 entries" in capsys.readouterr().out
    a, b, c = read_entries([folder, tmp_path / "v.json", tmp_path / "score.json"])
    assert (a.name, a.scores, a.size, a.verify) == (b.name, b.scores, b.size, b.verify)
    assert (c.scores, c.size, c.check) == ((1.2,), 15_000_000, "legal")
    assert "train_seed1.log, line" in (tmp_path / "v.html").read_text()


def test_exit_codes(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.eval_ms = 700_000
    assert run_command(["verify", str(made.write())]) == 3
    shown = capsys.readouterr().out
    assert "CONTRADICTED" in shown
    assert "eval_time:700000ms" in shown
    (tmp_path / "other.json").write_text('{"bpb": "x"}')
    assert run_command(["board", str(tmp_path / "other.json"), "-o", str(tmp_path / "b.html")]) == 2
    assert run_command(["verify", str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "b.html").exists()


def test_a_score_that_is_not_finite_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps({"claims": [], "verdict": "consistent", "scores": [math.nan, 1.2, True]})
    )
    (entry,) = read_entries([tmp_path / "a.json"])
    assert entry.scores == (1.2,)
