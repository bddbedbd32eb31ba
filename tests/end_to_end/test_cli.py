"""The command line as a whole."""

import subprocess
import sys

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "evalkit", *arguments], capture_output=True, text=True, timeout=60)


def test_help_imports_nothing_that_takes_long() -> None:
    code = "import sys; from evalkit.cli.main import run_command; run_command(['--help']); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Score an artifact" in done.stdout
    imported = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert {"evalkit", "click"} <= imported
    assert not imported & {"torch", "numpy", "numba", "scipy", "sentencepiece", "constriction", "matplotlib"}


def test_every_command_that_help_lists_exists() -> None:
    from evalkit.cli.main import COMMANDS, cli

    for name in COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.help, name
        assert command.epilog, f"{name} has no example"


@pytest.mark.parametrize("arguments", [("scor",), ("score", "--wrong"), ("score",)])
def test_usage_errors_exit_with_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_slip_of_the_keyboard_gets_a_suggestion() -> None:
    assert "Did you mean 'score'?" in run("socre").stderr


def test_version() -> None:
    from evalkit import __version__

    assert __version__ in run("--version").stdout
