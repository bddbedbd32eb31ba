"""Work out a model's configuration: from tensor names and shapes, then a recipe, then explicit overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalkit.model.config import ModelConfig, coerce_field
from evalkit.plumbing.errors import ArtifactError, InputError
from evalkit.recipes import Recipe, resolve_layers

if TYPE_CHECKING:
    from evalkit.source.reading import Found

NOT_INFERABLE = (
    "activation",
    "leaky_slope",
    "logit_softcap",
    "ln_scale",
    "rope_base",
    "rope_dims",
    "rope_train_len",
    "rope_table",
    "xsa_last_n",
    "xsa_form",
    "value_embed_layers",
    "layer_order",
    "parallel_form",
    "parallel_start",
    "smear_reset_token",
    "attention_gate_scale",
    "attention_gate_source",
)
"""Settings that no tensor reveals; a recipe supplies them."""

WINDOW_GATES = {"window": "attn_gate_w", "window_doubled": "attn_gate_proj.weight"}
"""Tensor of an attention layer that makes its gate a window's, by the kind of gate."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """A configuration and where each value came from.

    Attributes:
        config: the configuration.
        origins: of each field: ``shapes``, ``recipe NAME``, ``artifact``, ``--set``, ``default``, or a script's line.
        seq_len: window in tokens that the system's own script scores with; 0 where none was read.
    """

    config: ModelConfig
    origins: dict[str, str]
    seq_len: int = 0


def infer_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """Return every setting that tensor names and shapes reveal.

    Raises:
        ArtifactError: the tensors are not those of a model that evalkit knows.
    """
    vocab_size, model_dim = _matrix(shapes, "tok_emb.weight")
    layers = {int(match.group(1)) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))}
    if not layers or layers != set(range(len(layers))):
        raise ArtifactError(f"the artifact's blocks are numbered {sorted(layers)}; expected 0, 1, 2, ... without gaps")
    heads = _shape(shapes, "blocks.0.attn.q_gain", 1)[0]
    if heads < 1 or model_dim % heads:
        raise ArtifactError(f"the artifact has {heads} heads for width {model_dim}; expected a divisor of the width")
    kv_dim, _ = _matrix(shapes, "blocks.0.attn.c_k.weight")
    head_dim = model_dim // heads
    if kv_dim % head_dim:
        raise ArtifactError(f"the artifact's keys are {kv_dim} wide; expected a multiple of the head width {head_dim}")
    return {
        "vocab_size": vocab_size,
        "model_dim": model_dim,
        "num_layers": len(layers),
        "num_heads": heads,
        "num_kv_heads": kv_dim // head_dim,
        "mlp_hidden": _matrix(shapes, "blocks.0.mlp.fc.weight")[0],
        **parts_from_shapes(shapes),
    }


def parts_from_shapes(shapes: Mapping[str, tuple[int, ...] | None]) -> dict[str, Any]:
    """Return which parts a model has besides its blocks, by the names of its tensors, and their sizes where known.

    Raises:
        ArtifactError: a tensor has not the shape that it has in a model that evalkit knows.
    """
    sized = {name: shape for name, shape in shapes.items() if shape is not None}
    found: dict[str, Any] = {
        "tie_embeddings": "lm_head.weight" not in shapes,
        "smear_gate": "smear.gate" in shapes,
        "unet_skips": "skip_weights" in shapes,
        "skip_gates": "skip_gates" in shapes,
    }
    if "skip_weights" in sized:
        found["skip_rows"] = _matrix(sized, "skip_weights")[0]
    if "smear_gate.weight" in sized:
        found["smear_width"] = _matrix(sized, "smear_gate.weight")[1]
    for kind in ("bigram", "trigram"):
        if f"{kind}.embed.weight" in sized:
            found[f"{kind}_buckets"], found[f"{kind}_dim"] = _matrix(sized, f"{kind}.embed.weight")
    if "ve_shared.embed.weight" in sized:
        found["value_embed_dim"] = _matrix(sized, "ve_shared.embed.weight")[1]
    if "blocks.0.attn.attn_gate.weight" in shapes:
        found["attention_gate"] = "sigmoid"
    elif "blocks.0.attn.attn_gate" in shapes:
        found["attention_gate"] = "scalar"
    for kind, name in WINDOW_GATES.items():
        if f"blocks.0.attn.{name}" in sized:
            found |= {"attention_gate": kind, "attention_gate_width": _matrix(sized, f"blocks.0.attn.{name}")[1]}
    if any(name.endswith(".attn.vr_lambda") for name in shapes):
        found["value_residual"] = "first_layer"
    elif "blocks.0.lambda_v" in shapes:
        found["value_residual"] = "x0"
    return found


def resolve_config(
    shapes: Shapes,
    *,
    recipe: Recipe | None = None,
    stored: Mapping[str, Any] | None = None,
    source: Mapping[str, Found] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ResolvedConfig:
    """Combine what shapes reveal with the artifact's own configuration or a recipe, and with overrides.

    Args:
        shapes: shape of every tensor, by model name.
        recipe: supplies :data:`NOT_INFERABLE` settings.
        stored: a configuration that the artifact carries itself; it goes before the recipe.
        source: settings that the system's own script tells; they go before the recipe.
        overrides: settings given by the user, without the ``model.`` prefix; they win over recipe and script, and may
            not contradict what the artifact itself says.

    Raises:
        InputError: an override is unknown, does not fit, or contradicts the artifact's own configuration.
        ArtifactError: the tensors do not fit any configuration.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(settings: Mapping[str, Any], origin: str) -> None:
        for name, value in settings.items():
            values[name] = coerce_field(name, value)
            origins[name] = origin

    if recipe is not None:
        put({name: recipe.model[name] for name in NOT_INFERABLE if name in recipe.model}, f"recipe {recipe.name}")
    if stored is not None:
        put(stored, "artifact")
        _require_agreement(stored, overrides or {})
    inferred = infer_from_shapes(shapes)
    for name, told in (source or {}).items():
        put({name: told.value}, told.origin)
    put(inferred, "shapes")
    put(overrides or {}, "--set")
    value_embed_scales = sum(1 for name in shapes if name.startswith("ve_layer_scales."))
    layers = resolve_layers(values.get("value_embed_layers", ()), values["num_layers"])
    if origins.get("value_embed_layers", "").startswith("recipe") and len(layers) != value_embed_scales:
        # A recipe says which layers for its own count; other counts are the last layers, as in every published system.
        layers = tuple(range(values["num_layers"] - value_embed_scales, values["num_layers"]))
        origins["value_embed_layers"] = "shapes (the last layers)"
    values["value_embed_layers"] = layers
    if len(layers) != value_embed_scales:
        raise InputError(
            f"model.value_embed_layers names {len(layers)} layers; the artifact has value embeddings for "
            f"{value_embed_scales}: give that many with --set model.value_embed_layers=I,J"
        )
    if (
        values.get("layer_order")
        and recipe is not None
        and origins["layer_order"].startswith("recipe")
        and recipe.model["num_layers"] != values["num_layers"]
    ):
        raise InputError(
            f"recipe {recipe.name} visits {recipe.model['num_layers']} blocks in an order of its own; the artifact has "
            f"{values['num_layers']}: give their order with --set model.layer_order=I,J,..."
        )
    config = ModelConfig(**values)
    for name in config.to_dict():
        origins.setdefault(name, "default")
    return ResolvedConfig(config=config, origins=origins)


def _require_agreement(stored: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse ``--set`` where an artifact carries its configuration and says otherwise: it would be another model."""
    for name, value in overrides.items():
        if name in stored and coerce_field(name, value) != (held := coerce_field(name, stored[name])):
            text = ",".join(map(str, held)) if isinstance(held, tuple) else held
            raise InputError(
                f"--set model.{name}={value} contradicts the artifact, which holds its own configuration and says "
                f"{text}: leave it out"
            )


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise ArtifactError(f"the artifact has no tensor {name}; it is not a model that evalkit knows")
    if len(shape) != dimensions or 0 in shape:
        raise ArtifactError(f"tensor {name} has shape {shape}; expected {dimensions} dimensions")
    return shape


def _matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    rows, columns = _shape(shapes, name, 2)
    return rows, columns
