"""From a recipe and the command line to a :class:`~evalkit.train.config.RunConfig`, and back to TOML."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from evalkit.plumbing.errors import InputError
from evalkit.recipes import Recipe
from evalkit.train.config import SECTIONS, RunConfig, coerce
from evalkit.train.scaling import scale_model


def resolve(
    recipe: Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    scale: str | None = None,
    steps: int | None = None,
    max_seconds: float | None = None,
) -> RunConfig:
    """Return the run that a recipe and the command line describe.

    The order is: the recipe, its ``[as_run]`` section if ``train.as_run`` is set, ``scale``, ``overrides``,
    and last ``steps`` and ``max_seconds``. Steps without a clock budget switch the clock off, because the
    recipe's seconds are those of eight GPUs.

    Args:
        recipe: where to start.
        overrides: ``section.key`` to value.
        scale: see :func:`evalkit.train.scaling.scale_model`.
        steps: budget in steps.
        max_seconds: budget in seconds.

    Raises:
        InputError: a key or value is unusable; the message lists the keys there are.
    """
    overrides = dict(overrides or {})
    sections: dict[str, dict[str, Any]] = {
        name: dict(value) for name, value in recipe.sections.items() if isinstance(value, dict)
    }
    as_run = sections.pop("as_run", {})
    wanted = overrides.get("train.as_run", sections.get("train", {}).get("as_run", False))
    if coerce("train.as_run", wanted, bool):
        _apply(sections, {f"{name}.{key}": v for name, values in as_run.items() for key, v in values.items()})
    base = dataclasses.replace(recipe, model=sections["model"])
    if scale is not None:
        base = dataclasses.replace(base, model=scale_model(base.model_config(), scale).to_dict())
    model = base.model_config(**{k.removeprefix("model."): v for k, v in overrides.items() if k.startswith("model.")})
    _apply(sections, {k: v for k, v in overrides.items() if not k.startswith("model.")})
    train = sections.setdefault("train", {})
    if steps is not None:
        train["steps"] = steps
        train["max_seconds"] = 0.0
    if max_seconds is not None:
        train["max_seconds"] = max_seconds
    return RunConfig.from_dict(recipe.name, sections | {"model": model.to_dict()})


def _apply(sections: dict[str, dict[str, Any]], overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        section, dot, name = key.partition(".")
        known = {"model": None, **SECTIONS} | dict.fromkeys(sections)
        if not dot or section not in known:
            raise InputError(f"--set {key} names no setting; keys look like SECTION.KEY, with {', '.join(known)}")
        sections.setdefault(section, {})[name] = value


def to_toml(sections: Mapping[str, Any]) -> str:
    """Return nested mappings of plain values as TOML text."""
    lines: list[str] = []
    for section, values in sections.items():
        if not isinstance(values, Mapping):
            lines.insert(0, f"{section} = {_toml_value(values)}")
            continue
        lines.append(f"\n[{section}]")
        lines.extend(f"{json.dumps(k) if '.' in k else k} = {_toml_value(v)}" for k, v in values.items())
    return "\n".join(lines).lstrip("\n") + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return json.dumps(value)
