"""The reports of score and check: what they write they read, all else they refuse, and illegal stays illegal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalkit.legality.report import Finding, LegalityReport
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.typed_json import schema
from evalkit.report.score_report import ScoreReport
from tests.evalkit.reports import invented_report

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "docs" / "schemas"
MOVED = Finding(axiom="causality", position=7, evidence={"nats": 0.5}, message="The score moved.")
STRUCK = invented_report(verdict="illegal", illegal_because="ttt.time_limit stopped the training at position 5")

CONTRACT = {
    "artifact", "config", "tokens_scored", "bytes_scored", "val_loss", "bpb", "stride", "seq_len", "mixer", "ttt",
    "legal", "seconds", "tokens_per_second", "versions",
}  # fmt: skip


def plain(report: ScoreReport | LegalityReport) -> dict[str, Any]:
    """Return a report as it comes out of a file."""
    values: dict[str, Any] = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    return values


def test_a_real_report_comes_back_as_it_was(scored: tuple[Path, Path]) -> None:
    values = json.loads(scored[0].read_text())
    report = ScoreReport.from_dict(values)
    assert plain(report) == values
    assert values.keys() >= CONTRACT | {"mixer_report", "ttt_report", "reliability", "network_bpb"}
    assert values["artifact"].keys() >= {"path", "sha256", "bytes", "format", "compression"}
    assert values["versions"].keys() == {"evalkit", "python", "torch", "numpy", "numba", "sentencepiece"}
    assert "missing" not in values["versions"].values()
    check = LegalityReport(findings=(MOVED,), covered={"audit": {"span": 64}}, uncovered=("a gap",), seconds=0.25)
    assert LegalityReport.from_dict(plain(check)) == check


@pytest.mark.parametrize(
    "check", [LegalityReport(), LegalityReport(uncovered=("a gap",)), LegalityReport(findings=(MOVED,))]
)
def test_what_is_illegal_stays_illegal_whatever_the_check_says(check: LegalityReport) -> None:
    assert STRUCK.checked(check) == STRUCK
    assert STRUCK.legal is False
    with pytest.raises(ValueError, match="the verdict is legal"):
        replace(STRUCK, verdict="legal")
    verdicts = {"legal": True, "unproven": None, "illegal": False}
    checked = invented_report().checked(check)
    assert (checked.verdict, checked.legal) == (check.verdict, verdicts[check.verdict])
    assert checked.illegal_because == ("The score moved." if check.findings else None)


@pytest.mark.parametrize(
    ("report", "change", "said"),
    [
        (STRUCK, {"legal": True}, "says that legal is True, by its other fields it is False"),
        (STRUCK, {"verdict": "legal", "legal": True}, "the verdict is legal, illegal_because is"),
        (invented_report(), {"bpb": 1.0}, "says that bpb is 1.0, by its other fields it is 2.16"),
        (invented_report(), {"val_loss": 1.0}, "says that val_loss is 1.0"),
        (invented_report(), {"nats": float("inf")}, "nats is inf; expected a finite number"),
        (invented_report(), {"tokens_scored": 0}, "whole numbers above 0"),
        (invented_report(), {"tokens": {"names": [3], "sha256": "0"}}, r"tokens: names\[0\] is 3; expected a text"),
        (LegalityReport(findings=(MOVED,)), {"verdict": "legal"}, "says that verdict is 'legal'"),
        (LegalityReport(), {"verdict": "fine"}, "verdict is 'fine'; expected 'legal' or 'illegal' or 'unproven'"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(report: Any, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        type(report).from_dict(plain(report) | change)


def test_the_committed_schemas_are_those_of_the_types() -> None:
    for name, layout in (("score", ScoreReport), ("check", LegalityReport)):
        path = SCHEMAS / f"{name}.schema.json"
        expected = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema(layout)}
        assert json.loads(path.read_text()) == json.loads(json.dumps(expected)), (
            f"the report has changed: raise its format number if it was released, and write {path}: "
            f"json.dumps({expected}, indent=1)"
        )


def damaged(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the report with each key taken away, renamed, and of another type."""
    for name, value in values.items():
        rest = {key: item for key, item in values.items() if key != name}
        if name not in OPTIONAL:
            yield f"without {name}", rest
        yield f"{name} renamed", rest | {f"{name}s": value}
        yield f"{name} of another type", rest | {name: [True]}


OPTIONAL = {"illegal_because", "ranks", "network_nats", "profile", "reliability", "mixer_report", "mixer_config",
            "ttt_report", "ttt_config", "network_stream", "command", "dtype_because", "attention",
            "token_bytes", "unknown_tokens"}  # fmt: skip


def test_schema_and_reader_take_and_refuse_the_same(scored: tuple[Path, Path]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    real = ScoreReport.from_dict(json.loads(scored[0].read_text()))
    check = LegalityReport(findings=(MOVED,), covered={"subject": real.subject()}, uncovered=("a gap",))
    for name, reports in (("score", [real, STRUCK, real.checked(check)]), ("check", [check, LegalityReport()])):
        validator = jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))
        for report in reports:
            values = plain(report)
            validator.validate(values)
            assert type(report).from_dict(values) == report
            for what, changed in damaged(values):
                assert not validator.is_valid(changed), what
                with pytest.raises(InputError):
                    type(report).from_dict(changed)


def test_reading_a_report_imports_neither_torch_nor_the_audits() -> None:
    code = "import sys, evalkit.report.load; print({'torch', 'scipy', 'evalkit.legality.audit'} & set(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SCHEMAS.parents[1]
    )
    assert out.stdout.strip() == "set()"
