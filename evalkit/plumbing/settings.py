"""``--set SECTION.KEY=VALUE``: the one place where a setting's text becomes a typed value.

    texts = ("ttt.learning_rate=1e-2", "mixer.share=0.01")
    sections = by_section(split_settings(texts), ("model", "ttt", "mixer"))
    config = configured(TTTConfig(), sections["ttt"], "ttt")

Values from TOML and JSON take the same way, so that a recipe, an artifact and the command line agree on what ``yes``
or ``1e3`` means.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from evalkit.plumbing.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)

_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def split_settings(texts: Iterable[str]) -> dict[str, str]:
    """Split ``SECTION.KEY=VALUE`` strings; a later setting of the same key wins.

    Raises:
        InputError: a string has another form.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise InputError(f"--set {text!r}: expected SECTION.KEY=VALUE, for example model.rope_base=50000")
        found[name.strip()] = value.strip()
    return found


def by_section(settings: Mapping[str, Any], sections: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Group ``section.key`` names by section: one dictionary for each of ``sections``.

    Raises:
        InputError: a name has another section, or none.
    """
    grouped: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for name, value in settings.items():
        section, dot, key = name.partition(".")
        if not dot or section not in grouped:
            raise InputError(
                f"--set {name}: there is no section {section!r} here{_near(section, grouped)}; "
                f"the sections are {', '.join(grouped)}"
            )
        grouped[section][key] = value
    return grouped


def configured(base: Config, values: Mapping[str, Any], section: str) -> Config:
    """Return ``base``, a frozen dataclass, with the fields that ``values`` names replaced by typed values.

    Raises:
        InputError: a field is unknown, or its value does not fit its type or the other fields.
    """
    changes = typed_fields(type(base), values, section)
    try:
        return dataclasses.replace(base, **changes)
    except ValueError as error:  # of a package that knows nothing of evalkit's errors
        raise InputError(f"{section}: {error}") from None


def typed_fields(kind: type[DataclassInstance], values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Return ``values`` turned into the types of the fields of the dataclass ``kind``.

    Raises:
        InputError: a field is unknown, or its value does not fit its type.
    """
    hints = _hints(kind)
    for name in values:
        if name not in hints:
            raise InputError(
                f"{section}.{name} is not a setting{_near(name, hints)}; the settings of {section} are "
                f"{', '.join(hints)}"
            )
    return {name: coerce(f"{section}.{name}", value, hints[name]) for name, value in values.items()}


def coerce(name: str, value: Any, hint: Any) -> Any:
    """Turn a value from the command line, TOML or JSON into the type that ``hint`` names.

    Tuples are written with commas, tuples of tuples with semicolons between them (``0.5,0.8,1;0.7,1,1.3``), and
    ``none`` where None is allowed. Numbers are finite.

    Args:
        name: of the setting, for messages.
        value: text, or what TOML and JSON have for it.
        hint: bool, int, float, str, a Literal of strings, a tuple of these, or one of these with None.

    Raises:
        InputError: the value does not fit.
    """
    try:
        return _coerced(value, hint)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{name} is {_shown(value)}; expected {_expected(hint)}") from None


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise an :class:`InputError` that names the setting, its value and what was expected."""
    if not condition:
        raise InputError(f"{name} is {value}; expected {expected}")


def require_choices(config: DataclassInstance, section: str) -> None:
    """Require that every field with a Literal type holds one of its choices."""
    for name, hint in _hints(type(config)).items():
        if get_origin(hint) is Literal:
            value = getattr(config, name)
            require(value in get_args(hint), f"{section}.{name}", value, _expected(hint))


@cache
def _hints(kind: type[DataclassInstance]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _coerced(value: Any, hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError
        return value
    if get_origin(hint) is tuple:
        return _coerced_tuple(value, get_args(hint))
    if hint is str:
        return str(value)
    if hint is bool:
        text = str(value).lower()
        if text not in _TRUE + _FALSE:
            raise ValueError
        return text in _TRUE
    if isinstance(value, bool):
        raise ValueError
    if hint is int and isinstance(value, int):
        return value
    if hint is int and isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
        return int(value)
    number = float(value)
    if not math.isfinite(number) or (hint is int and number != int(number)):
        raise ValueError
    return int(number) if hint is int else number


def _coerced_tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    nested = get_origin(kinds[0]) is tuple
    if isinstance(value, str):
        value = [item.strip() for item in value.split(";" if nested else ",") if item.strip()]
    elif not isinstance(value, list | tuple):
        raise TypeError
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_coerced(item, kinds[0]) for item in value)
    if len(value) != len(kinds):
        raise ValueError
    return tuple(_coerced(item, kind) for item, kind in zip(value, kinds, strict=True))


def _expected(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("none" if kind is type(None) else _expected(kind) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if get_origin(kinds[0]) is tuple:
            return f"groups of {_expected(kinds[0])}, with semicolons between groups"
        count = "" if kinds[-1] is Ellipsis else f"{len(kinds)} "
        plural = {int: "whole numbers", float: "finite numbers"}.get(kinds[0], "names")
        return f"{count}{plural} separated by commas"
    return {bool: "true or false", int: "a whole number", float: "a finite number"}.get(hint, "a text")


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
