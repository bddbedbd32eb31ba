"""The documentation's examples run, its command lines parse, its links lead somewhere, its reference is current."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from evalkit.cli.main import COMMANDS, cli
from evalkit.cli.reference import reference

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
BLOCK = re.compile(r"(?P<mark><!-- not run[^>]*-->\s*)?^```console\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
RUN = [
    "data.md",
    "forecasters.md",
    "python.md",
    "scaling.md",
    "your-own-model.md",
    pytest.param("tutorial.md", marks=pytest.mark.slow),
]
"""Pages whose console blocks run as they stand, each page in a folder of its own."""


def blocks(page: Path) -> list[tuple[bool, str]]:
    """Return (whether it runs, text) of each console block."""
    text = page.read_text(encoding="utf-8")
    return [(match["mark"] is None, match["body"]) for match in BLOCK.finditer(text)]


def command_lines(page: Path) -> list[str]:
    """Return the evalkit command lines in the fenced blocks of a page, continuation lines joined."""
    text = page.read_text(encoding="utf-8")
    bodies = "\n".join(re.findall(r"^```(?:console)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    lines = bodies.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        match = re.match(r"(?:[A-Z_]+=\S+ )*(?:if )?(?:torchrun .* -m )?(evalkit .*)", line.strip())
        if match and "..." not in line and "[" not in line and re.match(r"evalkit [a-z]", match[1]):
            found.append(match[1])
    return found


@pytest.mark.parametrize("name", RUN)
def test_examples_run(name: str, forked_evalkit: list[str], tmp_path: Path) -> None:
    script = "\n".join(body for runs, body in blocks(ROOT / "docs" / name) if runs)
    assert "evalkit" in script
    programs = tmp_path / "bin"
    programs.mkdir()
    for program, command in (("evalkit", forked_evalkit), ("python3", [sys.executable])):
        (programs / program).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (programs / program).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=work, env=environment, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_parse(page: Path) -> None:
    for line in command_lines(page):
        words = shlex.split(line.split(" > ")[0].split("; then")[0], comments=True)[1:]
        context = click.Context(cli, info_name="evalkit")
        command: click.Command | None = cli
        while isinstance(command, click.Group) and words:
            command = command.get_command(context, words.pop(0))
        assert command is not None, line
        if "--help" in words:
            continue
        try:
            command.make_context(str(command.name), words)
        except click.ClickException as error:
            pytest.fail(f"{page.name}: {line}: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_reference_is_current() -> None:
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == reference(), "run python -m evalkit.cli.reference > docs/cli.md"
    for name in COMMANDS:
        assert f"## evalkit {name}\n" in written


def test_every_example_of_help_parses() -> None:
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        text = re.sub(r"\n {4,}", " ", command.epilog or "")
        examples = re.findall(r"^ *(?:torchrun .* -m )?evalkit (.*)$", text, re.MULTILINE)
        assert examples, name
        for example in examples:
            words = shlex.split(example)
            target: click.Command | None = cli
            while isinstance(target, click.Group):
                target = target.get_command(click.Context(cli), words.pop(0))
            assert target is not None
            target.make_context("example", words)
