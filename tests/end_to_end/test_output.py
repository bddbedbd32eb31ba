"""--quiet, --verbose, --debug and environment variables, which every command has."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from evalkit.cli.main import COMMANDS, cli, run_command
from evalkit.cli.output import prepare, speaking
from evalkit.plumbing.log import LOG
from tests.evalkit.reports import invented_report


def commands() -> Iterator[tuple[str, click.Command]]:
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", child) for inner, child in command.commands.items())


def test_every_command_has_them_and_every_option_its_variable() -> None:
    for path, command in commands():
        options = [p for p in command.params if isinstance(p, click.Option)]
        assert {"--quiet", "--verbose", "--debug"} <= {name for o in options for name in o.opts}, path
        for option in options:
            long = max(option.opts, key=len)
            assert option.envvar == f"EVALKIT_{path} {long[2:]}".replace(" ", "_").replace("-", "_").upper()


@pytest.fixture
def report(tmp_path: Path) -> Path:
    (tmp_path / "r.json").write_text(json.dumps(invented_report().to_dict()))
    return tmp_path / "r.json"


def test_verbose_tells_where_a_value_came_from_and_leaves_stdout_alone(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["compare", str(report)]) == 0
    plain = capsys.readouterr()
    assert plain.err == ""
    monkeypatch.setenv("EVALKIT_COMPARE_JSON", str(tmp_path / "c.json"))
    assert run_command(["compare", str(report), "-v"]) == 0
    told = capsys.readouterr()
    assert told.out == plain.out
    assert f"REPORTS {report} (command line)" in told.err
    assert f"--json {tmp_path / 'c.json'} (EVALKIT_COMPARE_JSON)" in told.err
    assert "evalkit compare took" in told.err
    assert (tmp_path / "c.json").exists()


@pytest.mark.parametrize("arguments", [["--debug", "compare"], ["compare", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["compare", "missing.json"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert run_command([*arguments, "missing.json"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_variable_called_version_is_nobodys(monkeypatch: pytest.MonkeyPatch, report: Path) -> None:
    monkeypatch.setenv("EVALKIT_VERSION", "0.1.0")
    assert run_command(["compare", str(report)]) == 0


def test_levels_are_set_for_the_call_alone() -> None:
    levels = []

    @click.command()
    def command() -> None:
        levels.append(LOG.level)

    before = LOG.level
    for flags in ([], ["-q"], ["-v"], ["--debug"]):
        with speaking():
            prepare(command, "EVALKIT_X").main(flags, standalone_mode=False)
    assert levels == [logging.INFO, logging.WARNING, logging.DEBUG, 1]
    assert LOG.level == before
    assert LOG.handlers == []
