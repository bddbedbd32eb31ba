"""Propose settings for a traced model, and keep those with which evalkit's model computes the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from evalkit.artifact.infer import NOT_INFERABLE, parts_from_shapes
from evalkit.plumbing.errors import ArtifactError
from evalkit.source.reference import Reference, rotary_table
from evalkit.source.symbols import Node, Tensor, first_difference
from evalkit.source.trace import LENGTH, Trace
from evalkit.source.values import Object, Stuck

_LENGTHS = (128, 1024, 1025, 2048, 2049, 4096, 4097, 16384)
_TRAIN_LENGTHS = (0, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, kw_only=True)
class Match:
    """Settings of a model, and the operation at which evalkit's model parts from the script's; None where it does not.

    Attributes:
        lines: line of the code that shows a setting, by setting.
    """

    settings: dict[str, Any]
    difference: Node | None
    lines: dict[str, int] = field(default_factory=dict)


def match_model(trace: Trace) -> Match:
    """Work out the settings with which evalkit's model is the traced one.

    Raises:
        Stuck: the model has not the parts that every model of this family has.
    """
    known, rotary_difference = _known(trace)
    shown, difference = _shown(trace), None
    for options in _options(trace, known):
        settings = known | options
        ours = Reference(trace.interpreter.graph, settings, LENGTH).logits()
        if ours is trace.result:
            found = {name: settings[name] for name in NOT_INFERABLE if name in settings}
            if not found["xsa_last_n"]:
                found.pop("xsa_form")
            return Match(settings=found, difference=rotary_difference, lines=shown)
        difference = difference or first_difference(ours, trace.result)
    return Match(settings={}, difference=difference, lines=shown)


def _known(trace: Trace) -> tuple[dict[str, Any], Node | None]:
    """Settings that the constructor's objects show, and where the rotary layers differ from evalkit's."""
    model, shapes = trace.model, trace.parameters
    blocks = model.attributes.get("blocks")
    table = shapes.get("tok_emb.weight")
    if not isinstance(blocks, list) or not blocks or not all(isinstance(b, Object) for b in blocks) or not table:
        raise Stuck(trace.line, "the model has no list of blocks, or no token embedding of a known size")
    attention = [block.attributes.get("attn") for block in blocks]
    gain = shapes.get("blocks.0.attn.q_gain")
    if not all(isinstance(layer, Object) for layer in attention) or not gain:
        raise Stuck(trace.line, "the model's blocks have no attention 'attn' with a gain for each head")
    head_dim = table[1] // gain[0]
    try:
        parts = parts_from_shapes(shapes)
    except ArtifactError as error:
        raise Stuck(trace.line, str(error)) from None
    rotary, difference = _rotary(trace, attention, head_dim)
    known = {
        "skip_rows": 0,
        "attention_gate": "none",
        **parts,
        "num_layers": len(blocks),
        "model_dim": table[1],
        "head_dim": head_dim,
        "layer_order": trace.visits,
        "value_embed_layers": _value_layers(model) if "ve_shared.embed.weight" in shapes else (),
        "xsa_last_n": sum(
            any("xsa" in name and value is True for name, value in layer.attributes.items()) for layer in attention
        ),
        "xsa_form": "projection" if _find(trace.result, "normalize") else "mean",
        "rope_table": "bf16" if trace.bfloat16 and _keeps_frequencies(attention[0]) else "exact",
        **rotary,
    }
    return known, difference


def _options(trace: Trace, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What is left to try: forms that the graph, not the objects, tells apart."""
    slopes = {node.args[1] for node in _find(trace.result, "leaky_relu")}
    activations: list[dict[str, Any]] = [
        {"activation": "leaky_relu2", "leaky_slope": slope} for slope in slopes if isinstance(slope, float)
    ] or [{"activation": "relu2"}]
    caps = {"logit_softcap": _softcap(trace.result)}
    scales = [{"ln_scale": any(_holds(node, 1 / math.sqrt(2)) for node in _find(trace.result, "mul"))}]
    resets = [{"smear_reset_token": -1}] if "smear_width" in known else [{}]
    for node in _find(trace.result, "eq") if "smear_width" in known else ():
        if isinstance(node.args[1], float):
            resets.insert(0, {"smear_reset_token": int(node.args[1])})
    gates: list[dict[str, Any]] = [{}]
    if known["attention_gate"].startswith("window"):
        factor = trace.model.attributes["blocks"][0].attributes["attn"].attributes.get("sparse_attn_gate_scale", 1.0)
        gates = [
            {"attention_gate_source": source, "attention_gate_scale": float(scale)}
            for source, scale in itertools.product(("input", "query"), sorted({1.0, float(factor)}))
        ]
    for form, *rest in itertools.product(_forms(trace, known), activations, scales, resets, gates):
        yield caps | form | {name: value for part in rest for name, value in part.items()}


def _forms(trace: Trace, known: dict[str, Any]) -> list[dict[str, Any]]:
    if "lane_merge" in trace.parameters:
        forms = ["lanes", "lanes_dead_skips"]
    elif "parallel_resid_lambdas" in trace.parameters:
        forms = ["routed", "routed_late_skip"]
    else:
        forms = ["joint"]
    hint = trace.model.attributes.get("parallel_start_layer")
    layers = sorted(range(known["num_layers"]), key=lambda layer: layer != hint)
    made = [{"parallel_form": form, "parallel_start": layer} for layer in layers for form in forms]
    serial = {"parallel_form": "none", "parallel_start": 0}
    return [serial, *made] if forms == ["joint"] else [*made, serial]


def _softcap(result: Node) -> float:
    """The factor in front of the hyperbolic tangent, or 0 without one; a wrong guess does not match."""
    if result.op == "mul" and any(isinstance(a, Node) and a.op == "tanh" for a in result.args):
        return next((float(a) for a in result.args if isinstance(a, int | float)), 1.0)
    return 1.0 if result.op == "tanh" else 0.0


def _holds(node: Node, constant: float) -> bool:
    return any(not isinstance(a, Node) and math.isclose(float(a), constant, rel_tol=1e-9) for a in node.args)  # type: ignore[arg-type]


def _value_layers(model: Object) -> tuple[int, ...]:
    for name, value in model.attributes.items():
        if "ve_layer" in name and isinstance(value, list) and value and all(type(item) is int for item in value):
            return tuple(value)
    return ()


def _keeps_frequencies(attention: Any) -> bool:
    rotary = attention.attributes.get("rotary")
    return isinstance(rotary, Object) and isinstance(rotary.attributes.get("inv_freq"), Tensor)


def _rotary(trace: Trace, attention: list[Any], head_dim: int) -> tuple[dict[str, Any], Node | None]:
    """Base, dimensions and training length of the rotary layers, which must all be alike and as evalkit's are."""
    graph = trace.interpreter.graph
    layers = [layer.attributes.get("rotary") for layer in attention]
    if not all(isinstance(layer, Object) for layer in layers):
        raise Stuck(trace.line, "the attention layers have no rotary layer 'rotary'")
    tables = {length: _angles(trace, layers[0], length) for length in _LENGTHS}
    shortest = tables[_LENGTHS[0]]
    bases = {node.args[0] for node in _find(shortest, "pow") if not isinstance(node.args[0], Node)}
    spans = [node.args for node in _find(shortest, "arange") if node.args[2] == 2.0]
    if len(bases) != 1 or not spans:
        return {"rope_base": 1e4, "rope_dims": 0, "rope_train_len": 0}, shortest
    base, dims = float(next(iter(bases))), int(spans[0][1])  # type: ignore[arg-type,call-overload]
    lengths = {value for value in layers[0].attributes.values() if type(value) is int and value > 0}
    for train_len in (*_TRAIN_LENGTHS, *sorted(lengths - set(_TRAIN_LENGTHS))):
        if train_len and dims == 2:
            continue
        wanted = {length: rotary_table(graph, base, dims, train_len, length) for length in _LENGTHS}
        if all(wanted[length] is tables[length] for length in _LENGTHS):
            for layer in layers[1:]:
                if any(_angles(trace, layer, length) is not wanted[length] for length in _LENGTHS):
                    return {"rope_base": base, "rope_dims": 0, "rope_train_len": 0}, _angles(trace, layer, LENGTH)
            found = {"rope_base": base, "rope_dims": 0 if dims == head_dim else dims, "rope_train_len": train_len}
            return found, None
    return {"rope_base": base, "rope_dims": dims, "rope_train_len": 0}, tables[4096]


def _angles(trace: Trace, layer: Any, length: int) -> Node:
    """The angles whose cosine and sine a rotary layer returns for a length.

    Raises:
        Stuck: it returns anything else.
    """
    graph = trace.interpreter.graph
    found = []
    for table, name in zip(trace.interpreter.rotary_tables(layer, length), ("cos", "sin"), strict=False):
        node: object = table.node if isinstance(table, Tensor) else None
        if isinstance(node, Node) and node.op == "get" and node.args[1] in [f"{axis}=0:{length}" for axis in range(3)]:
            node = node.args[0]
        if isinstance(node, Node) and node.op == name and isinstance(node.args[0], Node):
            found.append(node.args[0])
    if len(found) != 2 or found[0] is not found[1]:
        return graph.node("unknown", "what the rotary layer computes", 0.0)
    return found[0]


def _shown(trace: Trace) -> dict[str, int]:
    """Lines of the code that shows a form."""
    shown = {}
    for name, ops in (
        ("activation", ("leaky_relu", "relu")),
        ("leaky_slope", ("leaky_relu",)),
        ("xsa_form", ("normalize",)),
        ("logit_softcap", ("tanh",)),
        ("smear_reset_token", ("masked_fill",)),
    ):
        nodes = [node for op in ops for node in _find(trace.result, op)]
        if nodes:
            shown[name] = nodes[0].line
    for name, attribute in (("xsa_last_n", "use_xsa"), ("ln_scale", "ln_scale_factor")):
        shown.setdefault(name, trace.lines.get(attribute, trace.line))
    rotary = trace.model.attributes["blocks"][0].attributes["attn"].attributes.get("rotary")
    if isinstance(rotary, Object) and rotary.cls is not None:
        shown |= dict.fromkeys(("rope_train_len", "rope_table", "rope_base", "rope_dims"), rotary.cls.line)
    return shown


def _find(root: Node, op: str) -> list[Node]:
    seen: set[int] = set()
    stack: list[object] = [root]
    found = []
    while stack:
        item = stack.pop()
        if isinstance(item, tuple):
            stack.extend(item)
        elif isinstance(item, Node) and item.id not in seen:
            seen.add(item.id)
            if item.op == op:
                found.append(item)
            stack.extend(item.args)
    return found
