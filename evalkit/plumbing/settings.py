"""``--set SECTION.KEY=VALUE``: overrides from the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from evalkit.plumbing.errors import InputError


def parse_settings(settings: Iterable[str], sections: Iterable[str] = ("model",)) -> dict[str, dict[str, str]]:
    """Split ``SECTION.KEY=VALUE`` strings by section.

    Returns:
        One dict for each of ``sections``; a later setting of the same key wins.

    Raises:
        InputError: a setting has another form or another section.
    """
    parsed: dict[str, dict[str, str]] = {section: {} for section in sections}
    for setting in settings:
        name, equals, value = setting.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or not key:
            raise InputError(f"--set {setting!r}: expected SECTION.KEY=VALUE, for example model.rope_base=50000")
        if section not in parsed:
            raise InputError(f"--set {setting!r}: there is no section {section!r} here; sections: {', '.join(parsed)}")
        parsed[section][key] = value.strip()
    return parsed


def replace_fields(config: Any, values: Mapping[str, str], section: str) -> Any:
    """Return a frozen dataclass with some fields replaced by values from the command line.

    Args:
        config: the dataclass instance; its present values decide what a field's text is turned into.
        values: field name to text.
        section: name of the section, for messages.

    Raises:
        InputError: a field is unknown, or its text does not fit its type.
    """
    known = [field.name for field in dataclasses.fields(config)]
    changes = {}
    for name, text in values.items():
        if name not in known:
            raise InputError(f"{section}.{name} is not a setting; the settings are {', '.join(known)}")
        changes[name] = _parse_like(getattr(config, name), text, f"{section}.{name}")
    try:
        return dataclasses.replace(config, **changes)
    except ValueError as error:
        raise InputError(f"{section}: {error}") from None


def _parse_like(present: object, text: str, name: str) -> Any:
    try:
        if isinstance(present, bool):
            return {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}[text.lower()]
        if isinstance(present, int):
            return int(text)
        if isinstance(present, float):
            return float(text)
        if isinstance(present, tuple):
            items = [item.strip() for item in text.split(",") if item.strip()]
            return tuple(float(item) if present and isinstance(present[0], float) else item for item in items)
        if present is None and text.lower() == "none":
            return None
        return text
    except (ValueError, KeyError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(present), "another value")
        raise InputError(f"{name} is {text!r}; expected {expected}") from None
