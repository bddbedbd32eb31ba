"""The doctor finds a healthy machine healthy, and says so when a part is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evalkit.cli.main import run_command
from evalkit.verbs import doctor


@pytest.fixture(autouse=True)
def _a_cache_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))


def test_everything_works_here(tmp_path: Path, capsys) -> None:
    assert run_command(["doctor", "--json", str(tmp_path / "d.json")]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "cores", "bfloat16", "attention", "memory", "disk"):
        assert word in text
    tests = json.loads((tmp_path / "d.json").read_text())["tests"]
    assert len(tests) == 4
    assert all(test["passed"] for test in tests)


def test_a_broken_part_is_named_and_the_exit_code_is_1(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("evalkit.codec.fixed.frequencies", lambda row, position: 1 / 0)
    monkeypatch.setattr("evalkit.plumbing.files.write_atomically", lambda path, content: path.write_bytes(b""))
    assert run_command(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  range coder" in out
    assert "FAILED  files" in out
    assert out.count("ok    ") == 2


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", {"no_such_package": "data"})
    assert "pip install 'evalkit[data]'" in doctor.describe_machine()["extras"]
