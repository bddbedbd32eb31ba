"""Frozen dataclasses to JSON and back, strictly, and the JSON Schema that says the same.

The type hints are the layout: a key for each field, and one for each property that the class lists in ``DERIVED``. A
derived value is written for whoever reads the file, and must agree with the rest when it is read back. A field whose
default is None is left out where it is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from evalkit.plumbing.errors import InputError

T = TypeVar("T")

_PLAIN: dict[type, tuple[str, str]] = {
    bool: ("boolean", "true or false"),
    int: ("integer", "a whole number"),
    float: ("number", "a finite number"),
    str: ("string", "a text"),
}


def refuse_constant(text: str) -> None:
    """Refuse NaN and infinity, which JSON lacks and Python reads: the ``parse_constant`` of :func:`json.loads`."""
    raise ValueError(f"{text} is not JSON")


def to_json(value: Any) -> Any:
    """Return a dataclass, numpy's scalars and arrays, or what JSON holds in the types of JSON.

    Numbers that JSON lacks (NaN, infinity) become None.
    """
    if is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in fields(value)}
        optional = {field.name for field in fields(value) if field.default is None}
        shown = {name: item for name, item in held.items() if item is not None or name not in optional}
        return to_json(shown | {name: getattr(value, name) for name in _derived(value)})
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_versioned(layout: type[T], value: Any, where: str, advice: str) -> T:
    """Return the report that a file holds, after checking that its ``format`` is the one that ``layout`` has.

    ``where`` names the file in messages, and ``advice`` says what to do where the format is another.

    Raises:
        InputError: the format is another, or a field is missing, unknown, of the wrong type or contradicts another.
    """
    (expected,) = get_args(get_type_hints(layout)["format"])
    found = value.get("format") if isinstance(value, dict) else None
    if type(found) is not int or found != expected:
        held = "has no format number" if found is None else f"is of format {found!r:.40}"
        raise InputError(f"{where} {held}; this evalkit reads format {expected}: {advice}")
    result: T = from_json(layout, value, where)
    return result


def from_json(layout: Any, value: Any, where: str) -> Any:
    """Return ``value`` as the type ``layout``.

    Args:
        layout: a dataclass, ``X | None``, a literal, ``tuple[X, ...]``, ``Mapping[str, X]``, a plain type, or ``Any``.
        value: what JSON held.
        where: place of the value, for messages.

    Raises:
        InputError: a field is missing, unknown, of the wrong type, or contradicts another.
    """
    origin, inner = get_origin(layout), get_args(layout)
    if layout is Any:
        return value
    if is_dataclass(layout):
        return _read_dataclass(layout, value, where)
    if origin in (Union, UnionType):
        return None if value is None else from_json(_present(layout), value, where)
    if origin is Literal and any(value == item and type(value) is type(item) for item in inner):
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(from_json(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: from_json(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if layout is float and type(value) in (int, float) and abs(value) < 1e300:
        return float(value)
    if layout in (bool, int, str) and type(value) is layout:
        return value
    raise InputError(f"{where} is {value!r:.60}; expected {_expected(layout)}")


def schema(layout: Any) -> dict[str, Any]:
    """Return the JSON Schema of what :func:`to_json` writes and :func:`from_json` reads."""
    origin, inner = get_origin(layout), get_args(layout)
    if layout is Any:
        return {}
    if is_dataclass(layout):
        hints = dict(_hints(layout))
        return {
            "title": getattr(layout, "__name__", ""),
            "description": (layout.__doc__ or "").split("\n")[0],
            "type": "object",
            "properties": {name: schema(hint) for name, hint in hints.items()},
            "required": [*_required(layout), *_derived(layout)],
            "additionalProperties": False,
        }
    if origin in (Union, UnionType):
        return {"anyOf": [schema(_present(layout)), {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple:
        return {"type": "array", "items": schema(inner[0])}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": schema(inner[1])}
    return {"type": _PLAIN[layout][0]}


def _read_dataclass(layout: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {value!r:.60}; expected an object")
    hints, derived = dict(_hints(layout)), _derived(layout)
    missing = [name for name in (*_required(layout), *derived) if name not in value]
    unknown = [name for name in value if name not in hints]
    if missing or unknown:
        said = f"lacks {', '.join(missing)}" if missing else f"holds {', '.join(unknown):.60}, which nothing reads"
        raise InputError(f"{where} {said}; expected what evalkit of the same version writes")
    read = {name: from_json(hint, value[name], f"{where}: {name}") for name, hint in hints.items() if name in value}
    try:
        result = layout(**{name: item for name, item in read.items() if name not in derived})
        follows = {name: getattr(result, name) for name in derived}
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    for name, expected in follows.items():
        stated = read[name]
        close = isinstance(stated, float) and isinstance(expected, float) and math.isclose(stated, expected)
        if stated != expected and not close:
            raise InputError(f"{where} says that {name} is {stated!r:.40}, by its other fields it is {expected!r:.40}")
    return result


def _hints(layout: Any) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(layout)
    yield from ((field.name, hints[field.name]) for field in fields(layout))
    yield from ((name, get_type_hints(getattr(layout, name).fget)["return"]) for name in _derived(layout))


def _required(layout: Any) -> list[str]:
    return [field.name for field in fields(layout) if field.default is not None]


def _derived(layout: Any) -> tuple[str, ...]:
    return getattr(layout, "DERIVED", ())


def _present(layout: Any) -> Any:
    (present,) = (inner for inner in get_args(layout) if inner is not NoneType)
    return present


def _expected(layout: Any) -> str:
    origin = get_origin(layout)
    if origin is Literal:
        return " or ".join(map(repr, get_args(layout)))
    return {tuple: "a list", Mapping: "an object"}.get(origin) or _PLAIN[layout][1]
