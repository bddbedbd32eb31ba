"""Recipes: everything about a published system that its artifact does not tell, as one TOML file each.

The ``[model]`` section is the full-size architecture. Scoring takes from it only what tensor shapes cannot reveal
(:data:`evalkit.artifact.infer.NOT_INFERABLE`); training takes all of it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from evalkit.model.config import ModelConfig, coerce_field
from evalkit.plumbing.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named recipe.

    Attributes:
        name: for example ``pr849``.
        model: the ``[model]`` section.
        sections: every section, for those that read more than the model.
    """

    name: str
    model: dict[str, Any]
    sections: dict[str, Any] = field(default_factory=dict)

    @property
    def seq_len(self) -> int:
        """Window length in tokens that the system is scored with."""
        return int(self.sections.get("scoring", {}).get("seq_len", 2048))

    def model_config(self, **overrides: Any) -> ModelConfig:
        """Return the full-size configuration, with some fields replaced."""
        values = {name: coerce_field(name, value) for name, value in (self.model | overrides).items()}
        layers = values.get("value_embed_layers", ())
        values["value_embed_layers"] = resolve_layers(layers, values["num_layers"])
        return ModelConfig(**values)


def resolve_layers(layers: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Turn negative layer indices into positive ones, as in Python's indexing."""
    return tuple(layer + num_layers if layer < 0 else layer for layer in layers)


def recipe_names() -> list[str]:
    """The recipes that come with evalkit, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(path.name.removesuffix(".toml") for path in files if path.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """Load a recipe by name, or from a ``.toml`` file.

    Raises:
        InputError: no such recipe, or the file is not valid TOML with a ``[model]`` section.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"recipe file {name} does not exist")
        text, name = path.read_text(encoding="utf-8"), path.stem
    elif name in recipe_names():
        text = resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise InputError(f"there is no recipe {name!r}; the recipes are {', '.join(recipe_names())}, or a .toml file")
    try:
        sections = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {name} is not valid TOML: {error}") from None
    if not isinstance(sections.get("model"), dict):
        raise InputError(f"recipe {name} has no [model] section")
    return Recipe(name=name, model=sections["model"], sections=sections)
