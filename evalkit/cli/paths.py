"""The paths on a command line: which parameter names what, checked for every command before anything is imported.

A path may begin with ``~`` wherever it is quoted. Inputs that are not there are said at once. No output may be one of
the inputs, by whatever name, or another output (:func:`evalkit.plumbing.files.check_outputs`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import check_outputs, expand, no_match


@dataclass(frozen=True)
class Input:
    """A parameter that names what is read.

    Attributes:
        what: the word for it in messages.
        glob: whether it may be a pattern, or a folder of shards.
        words: whether it may be a word that is no path (``bytes``, a recipe's name, ``package.module:FACTORY``).
        stream: whether ``-`` stands for standard input.
        run: whether it is a run folder or a weight file in one: what tells how to read the weights is read as well.
    """

    what: str
    glob: bool = False
    words: bool = False
    stream: bool = False
    run: bool = False

    def files(self, value: str) -> Iterator[Path]:
        """Yield the files and folders that a value names.

        Raises:
            InputError: there are none.
        """
        if self.stream and value == "-":
            return
        if self.words:
            name = value.rpartition(":")[0] if ".py:" in value else value
            if os.path.exists(name):
                yield Path(name)
        elif self.glob:
            found = expand(value)
            if not found:
                raise InputError(no_match(value))
            yield from found
        elif not os.path.exists(value):
            ending = "" if "folder" in self.what else " or is not a file"
            raise InputError(f"{self.what} {value} does not exist{ending}")
        elif self.run:
            yield from run_files(Path(value))
        else:
            yield Path(value)


def run_files(path: Path) -> Iterator[Path]:
    """Yield the files of the run that a folder, or a weight file in it, belongs to; the path alone where it is none."""
    folder = path if path.is_dir() else path.parent
    is_run = (folder / "config.json").exists()
    if path.is_file() or not is_run:
        yield path
    if is_run:  # and not what else lies there: an artifact of an earlier export may be replaced
        yield from (folder / name for name in _RUN)


@dataclass(frozen=True)
class Output:
    """A parameter that names what is written.

    Attributes:
        names: for a folder, the files in it that the command writes over; empty for a file.
    """

    names: tuple[str, ...] = ()


_WEIGHTS = ("model.pt", "raw.pt", "ema.pt", "swa.pt", "checkpoint.pt")
_RUN = ("recipe.toml", "config.json", *_WEIGHTS, "metrics.jsonl", "summary.json")

PARAMETERS: Mapping[str, Input | Output | None] = {
    "artifact": Input("artifact"),
    "artifacts": Input("artifact"),
    "baseline": Input("report"),
    "baseline_nll": Input("per-token file"),
    "check": Input("check"),
    "checks": Input("check"),
    "checkpoint": Input("checkpoint", run=True),
    "code": Input("code file"),
    "data": Input("data folder"),
    "documents": Input("text", stream=True),
    "file": Input("compressed file", stream=True),
    "folder": Input("folder"),
    "forecaster": Input("forecaster", words=True),
    "html_path": Output(),
    "json_path": Output(),
    "like": Input("shards", glob=True),
    "log": Input("log"),
    "logs": Input("log"),
    "module": Input("module", words=True),
    "nll": Input("per-token file"),
    "nll_path": Output(),
    "output": Output(),
    "paths": Input("folder or report"),
    "recipe": Input("recipe", words=True),
    "report": Input("report"),
    "reports": Input("report"),
    "shards": Input("shards", glob=True),
    "source": Input("script"),
    "text": Input("text", stream=True),
    "token_bytes": Input("shards", glob=True),
    "tokenizer": Input("tokenizer", words=True),
    "tokens": Input("shards", glob=True),
    "weights": Input("weights"),
    "probe emit.out": Output(("whole/fineweb_val_000000.bin", "prefix/fineweb_val_000000.bin", "record.json")),
    "run.out": Output(("model.evk", "model.ptz", "report.json", *(f"run/{name}" for name in _RUN))),
    "export.weights": None,
    "run.submission": None,
    "submit.folder": None,
    "train.out": Output(_RUN),
    "out": None,
    "compress.artifact": Input("artifact or text", stream=True),
    "decompress.artifact": Input("artifact or compressed file", stream=True),
}
"""What every parameter with a path names; ``COMMAND.PARAMETER`` goes before ``PARAMETER``. None: a folder to make."""


def role_of(command: str, parameter: click.Parameter) -> Input | Output | None:
    """Return what a parameter names; None if it is no path of interest."""
    name = parameter.name or ""
    return PARAMETERS.get(f"{command}.{name}", PARAMETERS.get(name))


def checked_paths(context: click.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a command's values with ``~`` expanded, after a look at every path.

    Raises:
        InputError: an input is not there, or an output would destroy an input.
    """
    command = context.command_path.partition(" ")[2]
    found = dict(values)
    inputs: list[Path] = []
    outputs: dict[str, str | Path] = {}
    for parameter in context.command.params:
        role = role_of(command, parameter)
        value = values.get(parameter.name or "")
        if not value or role is None:
            continue
        if isinstance(role, Input) and context.get_parameter_source(parameter.name or "") is ParameterSource.DEFAULT:
            continue  # nobody named it, and the command may do without
        many = isinstance(value, tuple)
        paths = tuple(map(os.path.expanduser, value if many else (value,)))
        found[parameter.name or ""] = paths if many else paths[0]
        if isinstance(role, Output) and role.names and values.get("resume"):
            continue  # what is there is gone on with, not written over
        if isinstance(role, Input):
            inputs += [file for path in paths for file in role.files(path)]
            continue
        option = next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])
        names = [Path(paths[0], name) for name in role.names if os.path.exists(Path(paths[0], name))]
        outputs |= {f"{option} ({path.name})": path for path in names} if role.names else {option: paths[0]}
    check_outputs(outputs, inputs)
    return found
