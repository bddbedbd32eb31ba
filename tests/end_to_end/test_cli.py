"""The command line as a whole."""

import subprocess
import sys
import time

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "evalkit", *arguments], capture_output=True, text=True, timeout=60)


def test_help_is_instant_and_imports_no_torch() -> None:
    code = (
        "import sys; from evalkit.cli.main import run_command; run_command(['--help']); print('torch' in sys.modules)"
    )
    fastest = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        fastest = min(fastest, time.perf_counter() - started)
    assert done.stdout.endswith("False\n")
    assert "Score an artifact" in done.stdout
    assert fastest < 5.0  # far above the target of 0.3 s: this catches an import, not a slow machine


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
