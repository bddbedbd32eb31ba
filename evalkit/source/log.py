"""Read what a run's log says of its settings: printed hyperparameters, and environment variables of a command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.plumbing.errors import InputError
from evalkit.source.script import MAX_LOG_BYTES, read_bounded

_VARIABLE = re.compile(r"(?<![\w$])([A-Z][A-Z0-9_]+)=[\"']?([\w.,+/-]+)(?![\w.,+/({=-])")
_WHOLE_LINE = re.compile(r"\s{0,8}([A-Za-z_]\w*):\s*(\S(?:.*\S)?)\s*")
_PAIRS = re.compile(r"\s*(?:[A-Za-z_][\w.]*:\S+\s*)+")
_PAIR = re.compile(r"([A-Za-z_]\w*):(\S+)")
_WORD = re.compile(r"[\w.,+-]+")
_TYPES = frozenset(["int", "float", "str", "bool", "tuple", "list", "dict", "Tensor", "None"])
_MAX_LINE = 4_000


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A value and where a log prints it."""

    value: Any
    origin: str


@dataclass(frozen=True, kw_only=True)
class RunLog:
    """Lines of a log, or of another text that tells what ran.

    Attributes:
        label: the file's name.
        lines: its lines, with their numbers.
        model_parameters: the count that it prints; 0 where it prints none.
    """

    label: str
    lines: tuple[tuple[int, str], ...] = field(repr=False)
    model_parameters: int

    def environment(self, variables: Mapping[str, int]) -> tuple[dict[str, Printed], set[str]]:
        """Return environment variables that the script reads and the log sets, and those that it sets differently."""
        found = [
            (match.group(1), Printed(value=match.group(2), origin=f"{self.label}:{number}"))
            for number, line in self.lines
            if "=" in line
            for match in _VARIABLE.finditer(line)
            if match.group(1) in variables
        ]
        return _agreed(found)

    def values(self, defaults: Mapping[str, Any]) -> tuple[dict[str, Printed], set[str]]:
        """Return printed hyperparameters, and the names of those that are printed with different values.

        Args:
            defaults: hyperparameters of the script; a value counts where it fits the type of its default.
        """
        found = []
        for number, line in self.lines:
            if ":" not in line:
                continue
            pairs = _PAIR.findall(line) if _PAIRS.fullmatch(line) else []
            if not pairs and (match := _WHOLE_LINE.fullmatch(line)):
                pairs = [(match.group(1), match.group(2))]
            for name, text in pairs:
                if name in defaults and (value := _like(defaults[name], text)) is not None:
                    found.append((name, Printed(value=value, origin=f"{self.label}:{number}")))
        return _agreed(found)


def _agreed(found: list[tuple[str, Printed]]) -> tuple[dict[str, Printed], set[str]]:
    values: dict[str, Printed] = {}
    disputed = set()
    for name, printed in found:
        if name in values and values[name].value != printed.value:
            disputed.add(name)
        values.setdefault(name, printed)
    return {name: printed for name, printed in values.items() if name not in disputed}, disputed


def _like(default: Any, text: str) -> Any:
    """Return a printed value as the type of the default; None if it is not one."""
    try:
        if isinstance(default, bool):
            return {"True": True, "False": False, "1": True, "0": False}.get(text)
        if isinstance(default, int):
            return int(text) if len(text) < 20 else None
        if isinstance(default, float):
            return float(text)
    except ValueError:
        return None
    if isinstance(default, str) and _WORD.fullmatch(text) and text.rstrip(",") not in _TYPES:
        return text
    return None


def read_log(path: str) -> RunLog:
    """Read a log.

    Raises:
        InputError: it is no regular file, or larger than 64 MiB.
    """
    data = read_bounded(path, "--log", MAX_LOG_BYTES)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding, errors="replace")
    except UnicodeError as error:
        raise InputError(f"--log {path} is no text ({error}); expected the log of a run") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if len(line) <= _MAX_LINE]
    counts = {int(n.replace(",", "")) for n in re.findall(r"(?m)^\s*model_params:\s*([\d,]{1,20})\s*$", text)}
    return RunLog(
        label=Path(path).name,
        lines=tuple(lines),
        model_parameters=counts.pop() if len(counts) == 1 else 0,
    )
