"""Write the reference of the command line as Markdown: ``python -m evalkit.cli.reference > docs/cli.md``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import click

from evalkit.cli.main import COMMANDS, cli
from evalkit.cli.output import output_options


def reference() -> str:
    """Return the page: every command with its arguments, options and examples, taken from the code itself."""
    parts = [
        "# Command line",
        "Generated from the code by `python -m evalkit.cli.reference`; `evalkit COMMAND --help` says the same.",
        "Results go to stdout, everything else to stderr. Every command has these options:",
        _table(["option", "meaning", "default"], [_row(option) for option in output_options()]),
        "Every option is also an environment variable: `EVALKIT_`, the command, the option, in capitals "
        "(`EVALKIT_SCORE_STRIDE=32`, `EVALKIT_DATA_VERIFY_TOKENIZER=fineweb_1024_bpe.model`; `EVALKIT_VERBOSE=1` for "
        "every command). What is typed wins. A repeatable option takes words: "
        "`EVALKIT_SCORE_SET='model.rope_base=50000 mixer.preset=best'`. `--verbose` shows which were used.",
        "Completion of commands and options, in bash (zsh and fish likewise):",
        '```\neval "$(_EVALKIT_COMPLETE=bash_source evalkit)"\n```',
        _table(
            ["exit code", "meaning"],
            [
                ["0", "done; for `check`: no violation found"],
                ["1", "an unexpected failure inside evalkit (a bug); for `doctor`: a self-test failed"],
                ["2", "the input is unusable: one clear line on stderr, nothing written"],
                [
                    "3",
                    "`check`: a violation; `verify`: a contradicted claim; `score` and `run`: over the cap with "
                    "`--enforce-cap`",
                ],
                ["130", "interrupted"],
            ],
        ),
        _table(["command", "what it does"], [[f"[{name}](#evalkit-{name})", text] for name, text in COMMANDS.items()]),
    ]
    context = click.Context(cli, info_name="evalkit")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        if command is not None:
            parts += _describe(f"evalkit {name}", command)
    return "\n\n".join(parts) + "\n"


def _describe(name: str, command: click.Command) -> Iterator[str]:
    yield f"## {name}" if name.count(" ") == 1 else f"### {name}"
    yield inspect.cleandoc(command.help or "")
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    if not isinstance(command, click.Group):
        words = [_argument(p) for p in arguments]
        required = [f"{p.opts[-1]} {_value(p)}" for p in command.params if isinstance(p, click.Option) and p.required]
        yield "```\n" + " ".join([name, *words, *required, "[OPTIONS]"]) + "\n```"
    common = {option.name for option in output_options()}
    rows = [_row(p) for p in command.params if isinstance(p, click.Option) and p.name not in common]
    if rows:
        yield _table(["option", "meaning", "default"], rows)
    if command.epilog and not isinstance(command, click.Group):
        yield "```\n" + command.epilog.replace("\b\n", "") + "\n```"
    if isinstance(command, click.Group):
        for inner, child in command.commands.items():
            yield from _describe(f"{name} {inner}", child)


def _argument(parameter: click.Argument) -> str:
    name = parameter.metavar or (parameter.name or "").upper()
    if parameter.nargs == -1:
        name += "..."
    return name if parameter.required else f"[{name}]"


def _row(option: click.Option) -> list[str]:
    names = ", ".join(f"`{name}`" for name in [*sorted(option.opts, key=len, reverse=True), *option.secondary_opts])
    if not option.is_flag:
        names += f" {_value(option)}"
    help_text = (option.help or "") + (" Repeatable." if option.multiple else "")
    default = option.default if option.show_default and not option.is_flag else ""
    return [names, help_text.strip(), "required" if option.required else _plain(default)]


def _value(option: click.Parameter) -> str:
    if option.metavar:
        return str(option.metavar)
    if isinstance(option.type, click.Choice):
        return "/".join(map(str, option.type.choices))
    return {"integer": "N", "float": "X", "text": "TEXT"}.get(option.type.name, option.type.name.upper())


def _plain(value: Any) -> str:
    return "" if value is None or repr(value).startswith("Sentinel") else str(value)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [header, *rows]]
    return "\n".join([lines[0], "|" + " --- |" * len(header), *lines[1:]])


if __name__ == "__main__":
    print(reference(), end="")
