"""From a recipe and the command line to a :class:`~evalkit.train.config.RunConfig`, and back to TOML."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from evalkit.model.config import ModelConfig
from evalkit.plumbing.settings import by_section, coerce, require, typed_fields
from evalkit.recipes import Recipe
from evalkit.train.config import SECTIONS, RunConfig, TrainConfig
from evalkit.train.scaling import scale_batch, scale_model


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
    recipe's seconds are those of eight GPUs. A ``scale`` takes the tokens of a step with it, unless ``overrides`` has
    them: the recipe's would keep two cores busy for minutes a step.

    Args:
        recipe: where to start.
        overrides: ``section.key`` to value.
        scale: see :func:`evalkit.train.scaling.scale_model`.
        steps: budget in steps.
        max_seconds: budget in seconds.

    Raises:
        InputError: a key or value is unusable; the message lists the keys there are.
    """
    sections: dict[str, dict[str, Any]] = {
        name: dict(value) for name, value in recipe.sections.items() if isinstance(value, dict)
    }
    as_run = sections.pop("as_run", {})
    given = by_section(overrides or {}, dict.fromkeys(("model", *SECTIONS, *sections)))
    wanted = given["train"].get("as_run", sections.get("train", {}).get("as_run", False))
    if coerce("train.as_run", wanted, bool):
        sections = {name: sections.get(name, {}) | as_run.get(name, {}) for name in {**sections, **as_run}}
    base = dataclasses.replace(recipe, model=sections["model"])
    full = base.model_config()
    if scale is not None:
        base = dataclasses.replace(base, model=scale_model(full, scale).to_dict())
    model = base.model_config(**given.pop("model"))
    batch_given = "batch_tokens" in given["train"]
    sections |= {name: sections.get(name, {}) | values for name, values in given.items() if values}
    train = sections.setdefault("train", {})
    if scale is not None and not batch_given:
        train["batch_tokens"] = _scaled_batch(train, full, scale_model(full, scale))
    if steps is not None:
        train["steps"] = steps
        train["max_seconds"] = 0.0
    if max_seconds is not None:
        require(max_seconds > 0, "--max-seconds", max_seconds, "more than 0 seconds; leave it out for the recipe's own")
        train["max_seconds"] = max_seconds
    return RunConfig.from_dict(recipe.name, sections | {"model": model.to_dict()})


def _scaled_batch(train: Mapping[str, Any], full: ModelConfig, scaled: ModelConfig) -> int:
    names = ("batch_tokens", "spans", "seq_len")
    values = {name: train.get(name, getattr(TrainConfig, name)) for name in names}
    typed = typed_fields(TrainConfig, values, "train")
    return scale_batch(typed["batch_tokens"], typed["spans"], typed["seq_len"], full, scaled)


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
