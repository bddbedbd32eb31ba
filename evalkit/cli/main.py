"""The ``evalkit`` command: a group whose commands are imported when they are called, so that help is instant."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any, NoReturn

import click

from evalkit.cli.output import prepare, shows_tracebacks, speaking
from evalkit.plumbing.compiled import name_cache_folder
from evalkit.plumbing.errors import EvalkitError
from evalkit.plumbing.version import __version__

COMMANDS = {
    "demo": "Train, export, score and check a tiny model on text that every machine has.",
    "train": "Train a base model from a recipe.",
    "score": "Score an artifact in bits per byte.",
    "run": "Train, export, score and check in one go.",
    "check": "Check that a score is legal: causal, normalised, honest about bytes.",
    "compress": "Compress a text with an artifact as the model.",
    "decompress": "Restore a text that compress wrote.",
    "probe": "Audit a program that cannot be imported, from the loss that it reports.",
    "inspect": "Show what is inside an artifact.",
    "export": "Turn a checkpoint into an artifact.",
    "compare": "Compare scores: means, deviations, tests.",
    "data": "Download, tokenise and verify data.",
    "report": "Render a score as one HTML page.",
    "submit": "Write a submission folder from reports.",
    "verify": "Verify that a submission folder tells one story, within the rules.",
    "board": "Put many submissions on one page.",
    "doctor": "Show versions, hardware and a quick self-test.",
}
"""Commands and their one-line help; the module of a command is ``evalkit.cli.NAME_command``."""


_GLOBS = ("--tokens", "--like")
"""Options whose value is a pattern, which shells spread out where it is not quoted."""


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports a command's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return a command."""
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"evalkit.cli.{name}_command").command
        return prepare(command, f"EVALKIT_{name.upper()}")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; suggest one for a slip of the keyboard."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, 1)
            if not close:
                raise
            raise click.UsageError(f"{error.message} Did you mean '{close[0]}'?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 99},
    epilog="Every option is also an environment variable: EVALKIT_SCORE_STRIDE=32 is score --stride 32. "
    "Exit codes: 0 done (check: legal), 1 a bug in evalkit, 2 unusable input, 3 a violation, "
    "a contradicted claim or over the cap.",
)
@click.version_option(__version__, prog_name="evalkit")
def cli() -> None:
    """Score compressed language models in bits per byte, and prove that the score is legal."""


prepare(cli, "EVALKIT")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run_command(sys.argv[1:] if arguments is None else arguments))


def run_command(arguments: list[str]) -> int:
    """Run the command line; return the exit code of the contract."""
    _open_closed_streams()
    name_cache_folder()
    with speaking():
        return _run(arguments)


def _open_closed_streams() -> None:
    """Give closed standard streams to the null device: the next file opened would take their number, and get texts."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "r" if descriptor == 0 else "w", closefd=False))  # noqa: SIM115


def _run(arguments: list[str]) -> int:
    try:
        result: Any = cli.main(args=arguments, prog_name="evalkit", standalone_mode=False)
        sys.stdout.flush()  # a full disk is said here, or by nobody
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        where = f" ({context.command_path} --help shows what there is)" if context else ""
        if "unexpected extra argument" in error.message and any(a.startswith(_GLOBS) for a in arguments):
            where = ": the shell has made several names of one; quote the pattern, as in --tokens 'data/val_*.bin'"
        print(f"evalkit: error: {error.format_message()}{where}", file=sys.stderr)
        return 2
    except (click.Abort, KeyboardInterrupt):
        print("evalkit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; point stdout elsewhere so that Python's own flush stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if shows_tracebacks():
            traceback.print_exc()
        said = f"internal error: {type(error).__name__}: {error} (--debug shows where)"
        if isinstance(error, EvalkitError):
            said = f"error: {error}"
        elif isinstance(error, OSError):
            said = f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
        print(f"evalkit: {said}", file=sys.stderr)
        return 2 if isinstance(error, EvalkitError | OSError) else 1
