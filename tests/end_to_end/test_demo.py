"""The README's one command, shortened: everything that it prints and leaves behind."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from evalkit.data.verify import VerifyOptions, verify
from evalkit.plumbing.errors import InputError
from evalkit.train.loop import Trainer
from evalkit.verbs.demo import _MODEL, CHECK, run_demo
from evalkit.verbs.run import RunReport, describe

pytestmark = pytest.mark.slow

README = Path(__file__).resolve().parents[2] / "README.md"


def small(out: Path) -> RunReport:
    """Run a demo of fewer steps, tokens and audited positions, which measures its losses on less text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_MODEL, "train.val_tokens", "1024")
        patch.setattr("evalkit.train.export.text.HELD_OUT_TOKENS", 2048)
        return run_demo(out, 4, check=replace(CHECK, max_tokens=140, decode_tokens=16), limit_tokens=300)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunReport]:
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, small(out)


def readme_rows() -> dict[str, list[str]]:
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (sliding[^|]*?) +\|(.*)\|$", text.split("<!-- demo table -->")[1].split("```")[1], re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def test_every_row_of_the_readme_is_there_and_legal(demo: tuple[Path, RunReport]) -> None:
    stages = demo[1].stages
    assert list(stages) == list(readme_rows())
    assert [stage.verdict for stage in stages.values()] == ["legal"] * 4
    assert [row[-1] for row in readme_rows().values()] == ["legal"] * 4
    assert stages["sliding-mixer"].bpb < stages["sliding"].bpb


def test_a_busy_machine_prints_the_same_table(
    demo: tuple[Path, RunReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, and with the same audits behind every verdict, where any two looks at the clock lie minutes apart."""
    looks = itertools.count()

    def jumping(clock: Callable[[], float]) -> Callable[[], float]:
        return lambda: clock() + 100 * next(looks)

    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, jumping(getattr(time, name)))
    monkeypatch.setitem(Trainer.__init__.__kwdefaults__, "now", time.perf_counter)
    again = small(tmp_path / "out")
    assert next(looks) > 1000
    assert again.artifact["sha256"] == demo[1].artifact["sha256"]
    for name, stage in demo[1].stages.items():
        other = again.stages[name]
        assert (other.bpb, other.val_loss, other.verdict) == (stage.bpb, stage.val_loss, stage.verdict)
        checks = [json.loads((out / f"check-{name}.json").read_text()) for out in (demo[0], tmp_path / "out")]
        for check in checks:
            assert check["covered"]["audit"]["cut_short"] == []
            check.pop("seconds")
            check["covered"].pop("budget")  # which names the file
            for facts in check["covered"].values():
                facts.pop("seconds", None)
        assert checks[0] == checks[1]


def test_the_readme_shows_what_the_demo_prints() -> None:
    stages = {
        name: SimpleNamespace(
            bpb=float(cells[0]),
            val_loss=float(cells[1]),
            tokens_scored=int(cells[2].replace(",", "")),
            tokens_per_second=float(cells[3].replace(",", "")),
            verdict=cells[4],
        )
        for name, cells in readme_rows().items()
    }
    assert describe(stages) in README.read_text(encoding="utf-8")


def test_what_it_leaves_is_one_run(demo: tuple[Path, RunReport]) -> None:
    out, report = demo
    assert (out / "model.evk").stat().st_size == report.artifact["bytes"]
    assert json.loads((out / "report.json").read_text())["stages"].keys() == report.stages.keys()
    assert all(json.loads((out / f"check-{name}.json").read_text())["verdict"] for name in report.stages)
    with pytest.raises(InputError, match="already holds a demo"):
        run_demo(out, 10)


def test_no_validation_text_is_trained_on(demo: tuple[Path, RunReport]) -> None:
    out = demo[0]
    result = verify(VerifyOptions(shards=(str(out / "data"),), tokenizer=out / "tokenizer.model"))
    assert result.findings == []
    assert result.counts["overlap"]["ngrams_in_training"] == 0
