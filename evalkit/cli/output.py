"""What commands say besides their results: ``--quiet``, ``--verbose`` and ``--debug``, the same for every command.

Results go to stdout, everything else to stderr. The rest of evalkit speaks through its logger
(``evalkit/plumbing/log.py``) and knows nothing of the command line.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click
from click.core import ParameterSource

from evalkit.cli.paths import checked_paths
from evalkit.plumbing.log import LOG

QUIET, NORMAL, VERBOSE, TRACEBACKS = logging.WARNING, logging.INFO, logging.DEBUG, 1

_GIVEN = {ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT}


class _Stderr(logging.Handler):
    """Writes to whatever ``sys.stderr`` is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


@contextmanager
def speaking() -> Iterator[None]:
    """Have the logger write to stderr, at first at the normal level; afterwards everything is as before.

    Warnings of libraries speak to programmers: they are shown with ``--verbose`` alone.
    """
    handler, level, show = _Stderr(), LOG.level, warnings.showwarning
    LOG.addHandler(handler)
    LOG.setLevel(NORMAL)
    warnings.showwarning = _tell_warning
    try:
        yield
    finally:
        warnings.showwarning = show
        LOG.removeHandler(handler)
        LOG.setLevel(level)


def _tell_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    LOG.debug("warning of a library: %s: %s (%s, line %d)", category.__name__, message, filename, lineno)


def shows_tracebacks() -> bool:
    """Whether ``--debug`` was given."""
    return LOG.level == TRACEBACKS


def _sets(level: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(context: click.Context, parameter: click.Parameter, given: bool) -> None:
        if given:
            LOG.setLevel(level)

    return callback


def output_options() -> list[click.Option]:
    """Return the options that every command has."""
    kinds = [
        (("--quiet", "-q"), QUIET, "Results and errors only."),
        (
            ("--verbose", "-v"),
            VERBOSE,
            "Also say where settings come from, what was chosen and why, and how long it took.",
        ),
        (("--debug",), TRACEBACKS, "Like --verbose, with tracebacks."),
    ]
    return [
        click.Option(names, is_flag=True, expose_value=False, help=text, callback=_sets(level))
        for names, level, text in kinds
    ]


def prepare(command: click.Command, prefix: str) -> click.Command:
    """Give a command and those inside it the common options and environment variables, once.

    Args:
        command: changed in place.
        prefix: of its environment variables: ``EVALKIT_SCORE`` makes ``--json`` also ``EVALKIT_SCORE_JSON``.
    """
    if any(parameter.name == "verbose" for parameter in command.params):
        return command
    command.params += output_options()
    if command.epilog and command.epilog.startswith("Example"):
        # \b keeps a paragraph's lines as they are: an example must survive copying.
        command.epilog = "\n\n".join(f"\b\n{part}" for part in inspect.cleandoc(command.epilog).split("\n\n"))
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "version":
            parameter.envvar = f"{prefix}_{_long_name(parameter)[2:].replace('-', '_').upper()}"
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            prepare(inner, f"{prefix}_{name.upper()}")
    elif command.callback is not None:
        command.callback = _telling(command.callback)
    return command


def _long_name(option: click.Option) -> str:
    return max(option.opts, key=len)


def _telling(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Look at the paths first; tell where the values of options came from, and in the end how long it took."""

    @functools.wraps(callback)
    def telling(*arguments: Any, **values: Any) -> Any:
        context = click.get_current_context()
        for parameter in context.command.params:
            source = context.get_parameter_source(parameter.name or "")
            if parameter.expose_value and source in _GIVEN:
                name = (parameter.name or "").upper()
                if isinstance(parameter, click.Option):
                    name = _long_name(parameter)
                where = parameter.envvar if source is ParameterSource.ENVIRONMENT else "command line"
                LOG.debug("%s %s (%s)", name, _shown(context.params.get(parameter.name or "")), where)
        began = time.monotonic()
        try:
            return callback(*arguments, **checked_paths(context, values))
        finally:
            LOG.debug("%s took %.2f s", context.command_path, time.monotonic() - began)

    return telling


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
