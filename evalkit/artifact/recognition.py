"""Tell which published systems an artifact can be of, and which settings its tensors leave open.

An artifact shows names, shapes and storage kinds of its tensors, and no more. It is recognised only where one published
system alone has tensors of these names, at that system's full size and in its storage kinds; everything else is a
candidate, which a user names. What is known of the systems lies in ``published.toml`` and in the recipes.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from evalkit.artifact.infer import Shapes, infer_from_shapes
from evalkit.artifact.tensors import StoredTensor
from evalkit.model.config import ModelConfig
from evalkit.plumbing.errors import InputError
from evalkit.recipes import load_recipe, recipe_names, resolve_layers

_SIZES = frozenset(
    """
    vocab_size num_layers model_dim num_heads num_kv_heads mlp_hidden skip_rows bigram_buckets bigram_dim
    trigram_buckets trigram_dim value_embed_dim smear_width attention_gate_width
    """.split()  # noqa: SIM905
)
_ROLES = {"mlp": ".mlp.fc.weight", "attention": ".attn.c_q.weight", "embedding": "tok_emb.weight"}


class OpenSettings(InputError):
    """Settings that decide the score are neither in the artifact nor given.

    Attributes:
        names: the settings.
    """

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


@dataclass(frozen=True, kw_only=True)
class System:
    """A published system.

    Attributes:
        name: its pull request, such as ``pr849``; also the recipe's name where there is one.
        config: its model at full size.
        seq_len: window in tokens that it is scored with.
        kinds: what its artifact stores, by role; empty where that is not known.
        understood: whether evalkit's model computes what this system's does.
    """

    name: str
    config: ModelConfig
    seq_len: int
    kinds: Mapping[str, str]
    understood: bool

    @property
    def has_recipe(self) -> bool:
        """Whether ``--recipe`` takes its name."""
        return self.name in recipe_names()


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What tensors show: which features there are, and their sizes."""

    features: Mapping[str, Any]
    sizes: Mapping[str, int]


@functools.cache
def published_systems() -> tuple[System, ...]:
    """Return the published systems, recipes first."""
    content = tomllib.loads(resources.files(__package__).joinpath("published.toml").read_text(encoding="utf-8"))
    entries: dict[str, dict[str, Any]] = content["systems"]
    recipes = [name for name in recipe_names() if name == "baseline" or name.startswith("pr")]
    systems = []
    for name in (*recipes, *(name for name in entries if name not in recipes)):
        values = _values(name, entries)
        seq_len, unknown = values.pop("seq_len"), values.pop("unknown", False)
        values["value_embed_layers"] = resolve_layers(values.get("value_embed_layers", ()), values["num_layers"])
        systems.append(
            System(
                name=name,
                config=ModelConfig.from_dict(values),
                seq_len=seq_len,
                kinds=content["kinds"].get(name, {}),
                understood=not unknown,
            )
        )
    return tuple(systems)


def _values(name: str, entries: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    if name in recipe_names():
        recipe = load_recipe(name)
        return dict(recipe.model) | {"seq_len": recipe.seq_len}
    entry = dict(entries[name])
    return _values(entry.pop("like"), entries) | entry


def traits_of_shapes(shapes: Shapes) -> Traits:
    """Return what an artifact's tensors show.

    Raises:
        ArtifactError: they are not those of a model that evalkit knows.
    """
    found = infer_from_shapes(shapes)
    found["value_embeddings"] = sum(1 for name in shapes if name.startswith("ve_layer_scales."))
    found["lanes"] = "merged" if "lane_merge" in shapes else "routed" if "parallel_resid_lambdas" in shapes else "none"
    return _traits(found)


def traits_of_config(config: ModelConfig) -> Traits:
    """Return what the tensors of a configuration's model show."""
    found: dict[str, Any] = {name: value for name, value in config.to_dict().items() if name in _SIZES | _FEATURES}
    found |= {
        "skip_rows": config.num_skips,
        "value_embeddings": len(config.value_embed_layers),
        "lanes": "routed" if config.is_routed else "merged" if config.has_lanes else "none",
    }
    return _traits(found)


_FEATURES = frozenset(["tie_embeddings", "smear_gate", "unet_skips", "skip_gates", "attention_gate", "value_residual"])


def _traits(found: Mapping[str, Any]) -> Traits:
    features = {name: found.get(name, False) for name in sorted(_FEATURES - {"attention_gate", "value_residual"})}
    features |= {name: found.get(name, "none") for name in ("attention_gate", "value_residual", "lanes")}
    features |= {f"{kind} table": bool(found.get(f"{kind}_buckets")) for kind in ("bigram", "trigram")}
    features |= {"value embeddings": bool(found["value_embeddings"]), "windowed smear": bool(found.get("smear_width"))}
    there = {
        "bigram_dim": features["bigram table"],
        "trigram_dim": features["trigram table"],
        "value_embed_dim": features["value embeddings"],
    }
    sizes = {name: found.get(name, 0) if there.get(name, True) else 0 for name in sorted(_SIZES)}
    sizes["value_embeddings"] = found["value_embeddings"]
    return Traits(features=features, sizes=sizes)


def alike(traits: Traits) -> list[System]:
    """Return the published systems with the same features, at whatever size, by their numbers."""
    found = [s for s in published_systems() if traits_of_config(s.config).features == traits.features]
    return sorted(found, key=lambda system: (len(system.name), system.name))


def candidates(shapes: Shapes, tensors: Mapping[str, StoredTensor]) -> list[System]:
    """Return the published systems that have these tensors at full size, in kinds that are not known to be others."""
    traits = traits_of_shapes(shapes)
    stored = {role: _kinds(tensors, ending) for role, ending in _ROLES.items()}
    return [
        system
        for system in alike(traits)
        if traits_of_config(system.config).sizes == traits.sizes
        and all(stored[role] == {kind} for role, kind in system.kinds.items())
    ]


def _kinds(tensors: Mapping[str, StoredTensor], ending: str) -> set[str]:
    return {tensor.format for name, tensor in tensors.items() if name.endswith(ending)}


def recognised(shapes: Shapes, tensors: Mapping[str, StoredTensor]) -> str | None:
    """Return the recipe of the one published system that can have written an artifact, or None."""
    found = candidates(shapes, tensors)
    if len(found) != 1 or not found[0].has_recipe or len(alike(traits_of_shapes(shapes))) != 1:
        return None
    return found[0].name


def open_settings(shapes: Shapes, given: Mapping[str, Any]) -> list[str]:
    """Return the settings that neither tensors nor ``given`` tell, in the order of the model's configuration."""
    features = traits_of_shapes(shapes).features
    needed = ["activation"]
    if given.get("activation") == "leaky_relu2":
        needed.append("leaky_slope")
    needed += ["logit_softcap", "rope_base", "rope_dims", "rope_train_len", "rope_table", "xsa_last_n"]
    if str(given.get("xsa_last_n", "0")) not in ("0", ""):
        needed.append("xsa_form")
    needed.append("ln_scale")
    if features["value embeddings"]:
        needed.append("value_embed_layers")
    if features["skip_gates"]:
        # No published system repeats blocks, or has parallel residuals, without gates on its skips.
        needed += ["layer_order", "parallel_form"]
        if given.get("parallel_form", "none") != "none":
            needed.append("parallel_start")
    if features["windowed smear"]:
        needed.append("smear_reset_token")
    if str(features["attention_gate"]).startswith("window"):
        needed += ["attention_gate_scale", "attention_gate_source"]
    return [name for name in needed if name not in given]


def differences(systems: Iterable[System], names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Return, for each setting in which systems differ, which of them have which value."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        values: dict[str, list[str]] = {}
        for system in systems:
            if system.understood:
                values.setdefault(shown(getattr(system.config, name)), []).append(system.name)
        if len(values) > 1:
            found[name] = values
    return found


def shown(value: Any) -> str:
    """Return a setting as ``--set`` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def refusal(
    shapes: Shapes, tensors: Mapping[str, StoredTensor], missing: Sequence[str], problems: Sequence[str] | None
) -> str:
    """Return what is open, whose artifact this may be, and what to do.

    ``problems`` kept a script from telling the ``missing`` settings; None where no script was given.
    """
    names = ", ".join(f"model.{name}" for name in missing)
    parts = [f"its tensors do not tell {names}"]
    exact = candidates(shapes, tensors)
    if exact:
        what = "a published system has" if len(exact) == 1 else f"{len(exact)} published systems have"
        parts.append(f"{what} such tensors: {', '.join(system.name for system in exact)}")
        told = differences(exact, missing)
        if told:
            parts.append("they differ in " + "; ".join(f"{name} ({_values_told(v)})" for name, v in told.items()))
    elif similar := alike(traits_of_shapes(shapes)):
        parts.append(f"it has the features of {', '.join(system.name for system in similar)}, at another size")
    else:
        parts.append("no published system that evalkit knows has such tensors")
    recipes = [system.name for system in exact if system.has_recipe]
    ways = [
        f"--recipe {recipes[0] if len(recipes) == 1 else 'NAME'}",
        "--source train_gpt.py (the script that made it)"
        if problems is None
        else "--log (of its run, or a page with its command line) beside --source",
        "--set for each of them",
    ]
    parts += problems or ()
    return "; ".join(parts) + f". Say which with {', '.join(ways[:-1])}, or {ways[-1]}"


def _values_told(values: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{value}: {' '.join(systems)}" for value, systems in values.items())


def check_recipe(shapes: Shapes, name: str, model: Mapping[str, Any]) -> None:
    """Check that an artifact has the features of a recipe's model.

    Raises:
        InputError: it has others; the message says which, and whose they look like.
    """
    values = {key: value for key, value in model.items() if key != "value_embed_layers"}
    layers = resolve_layers(model.get("value_embed_layers", ()), model["num_layers"])
    wanted = traits_of_config(ModelConfig.from_dict(values | {"value_embed_layers": layers})).features
    found = traits_of_shapes(shapes)
    other = [feature for feature, value in found.features.items() if wanted[feature] != value]
    if not other:
        return
    told = ", ".join(f"{feature.replace('_', ' ')} {_yes(found.features[feature])}" for feature in other)
    similar = [system.name for system in alike(found) if system.name != name]
    looks = f"it looks like {' or '.join(similar)}" if similar else "no published system that evalkit knows is like it"
    raise InputError(f"the artifact is not of {name} ({told}): {looks}")


def _yes(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
