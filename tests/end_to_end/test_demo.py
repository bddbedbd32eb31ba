"""The README's one command, shortened: everything that it prints and leaves behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from evalkit.data.verify import VerifyOptions, verify
from evalkit.plumbing.errors import InputError
from evalkit.verbs.demo import run_demo
from evalkit.verbs.run import RunReport, describe

pytestmark = pytest.mark.slow

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunReport]:
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run_demo(out, 10, check_seconds=0.5, limit_tokens=800)


def readme_rows() -> dict[str, list[str]]:
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (sliding[^|]*?) +\|(.*)\|$", text.split("<!-- demo table -->")[1].split("```")[1], re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def test_every_row_of_the_readme_is_there_and_nothing_is_illegal(demo: tuple[Path, RunReport]) -> None:
    stages = demo[1].stages
    assert list(stages) == list(readme_rows())
    assert all(stage.verdict in ("legal", "unproven") for stage in stages.values())
    assert stages["sliding-mixer"].bpb < stages["sliding"].bpb


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
