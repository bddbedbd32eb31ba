"""What an expression of a script can stand for, and the bounds within which a script is followed."""

from __future__ import annotations

import ast
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

MAX_STEPS = 300_000
MAX_ITEMS = 20_000
MAX_NUMBER = 2**62
MAX_TEXT = 200_000
MAX_CALLS = 60

PLAIN: tuple[type, ...] = (int, float, str, bool, type(None))

Scope: TypeAlias = MutableMapping[str, Any]
"""What names stand for; of a scope inside another, a ``ChainMap`` of both."""


class Stuck(Exception):
    """The script cannot be followed past a line."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


@dataclass(frozen=True)
class Unknown:
    """A value that was not worked out."""

    why: str = ""


@dataclass(frozen=True)
class Library:
    """A name of a library, such as ``torch.nn.functional.relu``."""

    path: str


@dataclass(eq=False)
class Parameter:
    """A learned tensor; it is named once the model is built."""

    shape: tuple[int, ...] | None
    name: str = ""


@dataclass(eq=False)
class Function:
    """A function of the script, or a method bound to an object."""

    node: ast.FunctionDef | ast.Lambda
    scope: Scope
    bound: Any = None
    owner: Class | None = None
    is_property: bool = False


@dataclass(eq=False)
class Class:
    """A class of the script."""

    name: str
    bases: list[Any]
    attributes: dict[str, Any]
    line: int

    def find(self, name: str) -> Any:
        """Return an attribute of the class or of the bases that the script defines; None if there is none."""
        if name in self.attributes:
            return self.attributes[name]
        for base in self.bases:
            if isinstance(base, Class) and (found := base.find(name)) is not None:
                return found
        return None

    def library_base(self) -> str:
        """Return the library class that it derives from in the end, for example ``torch.nn.Linear``."""
        for base in self.bases:
            if isinstance(base, Library):
                return base.path
            if isinstance(base, Class) and (found := base.library_base()):
                return found
        return ""


@dataclass(eq=False)
class Object:
    """An object of one of the script's classes, or a layer of the library."""

    cls: Class | None
    kind: str
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Setting:
    """A hyperparameter: its value, the line that sets it, and the environment variable that could have."""

    value: Any
    line: int
    variable: str | None


@dataclass(eq=False)
class Builtin:
    """A function of the language, or a method of what ``bound`` is."""

    name: str
    bound: Any = None


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, None, or a list or dict of such."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, PLAIN) and is_plain(item) for key, item in value.items())
    return isinstance(value, (*PLAIN, range))


class Return(Exception):
    """A function returns."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value
