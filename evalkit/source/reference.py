"""evalkit's model as a graph of operations, to compare a script's forward pass with.

Each method writes down a step that published networks of this family share; together they are what
:class:`evalkit.model.gpt.GPT` computes for a configuration. A script whose graph is the same node computes the same.
Letters are those of :mod:`evalkit.model.block`: x the residual stream, h a lane, n an input after its norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evalkit.artifact.infer import WINDOW_GATES
from evalkit.source.symbols import Graph, Node

ROUTED = ("routed", "routed_late_skip")
_HASH = (36313.0, 27191.0, 51497.0)


class Reference:
    """The forward pass of a configuration.

    Args:
        graph: holds the nodes.
        settings: fields of :class:`~evalkit.model.config.ModelConfig`; ``head_dim`` beside them.
        length: tokens fed.
    """

    def __init__(self, graph: Graph, settings: Mapping[str, Any], length: int) -> None:
        self.graph, self.settings, self.length = graph, settings, length
        graph.line = 0
        self.ids = graph.node("ids")
        self.first_values: Any = None

    def logits(self) -> Node:
        """Return the logits."""
        graph, settings = self.graph, self.settings
        x = self._stack(self._embedding())
        head = "tok_emb.weight" if settings.get("tie_embeddings", True) else "lm_head.weight"
        logits = self._linear(graph.node("rms", x), head)
        cap = settings["logit_softcap"]
        return graph.mul(cap, graph.node("tanh", graph.div(logits, cap))) if cap else logits  # type: ignore[return-value]

    def _linear(self, x: Any, name: str) -> Node:
        return self.graph.node("linear", x, self.graph.param(name))

    def _get(self, name: str, *indices: int) -> Node:
        where = " ".join(f"{place}={index}" for place, index in enumerate(indices))
        return self.graph.node("get", self.graph.param(name), where)

    def _embedding(self) -> Any:
        graph, settings = self.graph, self.settings
        x: Any = graph.node("embed", graph.param("tok_emb.weight"), self.ids)
        if width := settings.get("smear_width", 0):
            x = self._windowed_smear(x, width)
        for kind, order in (("bigram", 2), ("trigram", 3)):
            if buckets := settings.get(f"{kind}_buckets", 0):
                x = graph.add(x, self._table(kind, self._hash(buckets, order)))
        x = graph.node("rms", x)
        if settings.get("smear_gate"):
            gate = graph.node("sigmoid", graph.param("smear.gate"))
            start = graph.node("zeros_like", graph.node("get", x, "1=0:1"))
            previous = graph.node("cat", (start, graph.node("get", x, "1=0:-1")), 1.0)
            x = graph.add(graph.mul(graph.sub(1.0, gate), x), graph.mul(gate, previous))
        return x

    def _windowed_smear(self, x: Any, width: int) -> Node:
        graph = self.graph
        read = graph.node("get", x, f"1=1: -1=0:{width}")
        gate = graph.mul(graph.param("smear_lambda"), graph.node("sigmoid", self._linear(read, "smear_gate.weight")))
        if (token := self.settings.get("smear_reset_token", -1)) >= 0:
            starts = graph.node("eq", graph.node("get", self.ids, "-1=1:2048"), float(token))
            gate = graph.node("masked_fill", gate, starts, 0.0)
        rest = graph.add(graph.node("get", x, "1=1:"), graph.mul(gate, graph.node("get", x, "1=0:-1")))
        return graph.node("cat", (graph.node("get", x, "1=0:1"), rest), 1.0)

    def _hash(self, buckets: int, order: int) -> Node:
        graph, modulus = self.graph, float(buckets - 1)
        end = self.length
        mixed: Any = graph.mul(_HASH[0], graph.node("get", self.ids, f"-1={order - 1}:{end}"))
        for back in range(1, order):
            piece = graph.node("get", self.ids, f"-1={order - 1 - back}:{end - back}")
            mixed = graph.node("bitwise_xor", mixed, graph.mul(_HASH[back], piece))
        rest = graph.node("mod", mixed, modulus)
        start = "-1=0" if order == 2 else f"-1=0:{order - 1}"
        empty = graph.node("empty_like", self.ids)
        return graph.node("set", graph.node("set", empty, start, modulus), f"-1={order - 1}:{end}", rest)

    def _table(self, kind: str, rows: Node) -> Any:
        graph = self.graph
        h: Any = graph.node("embed", graph.param(f"{kind}.embed.weight"), rows)
        if self.settings[f"{kind}_dim"] != self.settings["model_dim"]:
            h = self._linear(h, f"{kind}.proj.weight")
        return graph.mul(h, graph.param(f"{kind}.scale"))

    def _stack(self, x0: Any) -> Any:
        graph, settings = self.graph, self.settings
        order = settings["layer_order"]
        encoder, form, start = len(order) // 2, settings["parallel_form"], settings["parallel_start"]
        rows = settings["skip_rows"] or encoder
        skips: list[Any] = []
        x, lanes = x0, None
        for place, i in enumerate(order):
            row = place - encoder
            splits = form in ("lanes", "lanes_dead_skips") and row >= 0 and i >= start
            splits = splits or (form in ROUTED and i >= start)
            if lanes is None and splits and form == "routed_late_skip":
                lanes = (x, x)
            if row >= 0 and settings["unet_skips"] and row < rows and skips:
                skip = skips.pop()
                if lanes is None:
                    x = self._skip(x, skip, row)
                elif form != "lanes_dead_skips":
                    lanes = (self._skip(lanes[0], skip, row), lanes[1])
            if lanes is None and splits:
                lanes = (x, x)
            if lanes is not None:
                lanes = self._routed(i, lanes, x0) if form in ROUTED else self._lanes(i, lanes, x0)
            else:
                x = self._block(i, x, x0, joint=form == "joint" and i >= start)
            if row < 0:
                skips.append(x)
        if lanes is None:
            return x
        if form in ROUTED:
            return graph.mul(0.5, graph.add(*lanes))
        merge = graph.param("lane_merge")
        return graph.add(graph.mul(merge, lanes[0]), graph.mul(graph.sub(1.0, merge), lanes[1]))

    def _skip(self, x: Any, skip: Any, row: int) -> Any:
        graph = self.graph
        scaled = graph.mul(self._get("skip_weights", row), skip)
        if not self.settings["skip_gates"]:
            return graph.add(x, scaled)
        return graph.lerp(scaled, x, graph.node("sigmoid", self._get("skip_gates", row)))

    def _mix(self, i: int, x: Any, x0: Any) -> Any:
        graph, name = self.graph, f"blocks.{i}.resid_mix"
        return graph.add(graph.mul(self._get(name, 0), x), graph.mul(self._get(name, 1), x0))

    def _normed(self, i: int, x: Any) -> Any:
        scale = 1.0 / math.sqrt(i + 1) if self.settings["ln_scale"] else 1.0
        return self.graph.mul(self.graph.node("rms", x), scale)

    def _attended(self, i: int, h: Any) -> Any:
        return self.graph.mul(self.graph.param(f"blocks.{i}.attn_scale"), self._attention(i, self._normed(i, h)))

    def _mlp(self, i: int, h: Any) -> Any:
        graph = self.graph
        z = self._linear(self._normed(i, h), f"blocks.{i}.mlp.fc.weight")
        if self.settings["activation"] == "relu2":
            a = graph.node("relu", z)
        else:
            a = graph.node("leaky_relu", z, self.settings["leaky_slope"])
        out = self._linear(graph.node("square", a), f"blocks.{i}.mlp.proj.weight")
        return graph.mul(graph.param(f"blocks.{i}.mlp_scale"), out)

    def _block(self, i: int, x: Any, x0: Any, *, joint: bool) -> Any:
        graph = self.graph
        h = self._mix(i, x, x0)
        attended = self._attended(i, h)
        if joint:
            out = graph.add(h, attended, self._mlp(i, h))
        else:
            h = graph.add(h, attended)
            out = graph.add(h, self._mlp(i, h))
        if self.settings.get("value_residual") == "x0":
            out = graph.add(out, graph.mul(graph.param(f"blocks.{i}.lambda_v"), x0))
        return out

    def _lanes(self, i: int, lanes: tuple[Any, Any], x0: Any) -> tuple[Any, Any]:
        graph = self.graph
        h = self._mix(i, lanes[0], x0)
        return graph.add(h, self._attended(i, h)), graph.add(lanes[1], self._mlp(i, lanes[1]))

    def _routed(self, i: int, lanes: tuple[Any, Any], x0: Any) -> tuple[Any, Any]:
        graph = self.graph
        sources = (self._attended(i, self._mix(i, lanes[0], x0)), self._mlp(i, lanes[1]))
        made = []
        for k in (0, 1):
            kept = graph.mul(self._get("parallel_resid_lambdas", i, k), lanes[k])
            routes = [
                graph.mul(graph.node("get", self._get("parallel_post_lambdas", i, j), f"0={k}"), sources[j])
                for j in (0, 1)
            ]
            made.append(graph.add(kept, *routes))
        return made[0], made[1]

    def _rope(self, i: int, x: Any) -> Any:
        graph, width = self.graph, self.settings["head_dim"]
        rotated = self.settings["rope_dims"] or width
        cos, sin = (graph.node(f"rotary_{part}", f"blocks.{i}.attn.rotary") for part in ("cos", "sin"))
        turned = x if rotated >= width else graph.node("get", x, f"-1=0:{rotated}")
        half = rotated // 2
        a, b = graph.node("get", turned, f"-1=0:{half}"), graph.node("get", turned, f"-1={half}:{rotated}")
        first = graph.add(graph.mul(a, cos), graph.mul(b, sin))
        second = graph.add(graph.mul(-1.0, a, sin), graph.mul(b, cos))
        turned = graph.node("cat", (first, second), -1.0)
        if rotated >= width:
            return turned
        return graph.node("cat", (turned, graph.node("get", x, f"-1={rotated}:{width}")), -1.0)

    def _attention(self, i: int, n: Any) -> Node:
        graph, settings, name = self.graph, self.settings, f"blocks.{i}.attn"
        query = self._linear(n, f"{name}.c_q.weight")
        q = graph.mul(self._rope(i, graph.node("rms", query)), graph.param(f"{name}.q_gain"))
        k = self._rope(i, graph.node("rms", self._linear(n, f"{name}.c_k.weight")))
        v: Any = self._linear(n, f"{name}.c_v.weight")
        if i in (layers := settings["value_embed_layers"]):
            h: Any = graph.node("embed", graph.param("ve_shared.embed.weight"), self.ids)
            h = self._linear(h, "ve_shared.proj.weight")
            scale = graph.param(f"ve_layer_scales.{list(layers).index(i)}")
            v = graph.add(v, graph.mul(h, graph.param("ve_shared.scale"), scale))
        raw = v
        if settings.get("value_residual") == "first_layer":
            if self.first_values is None:
                self.first_values = v
            else:
                weight = f"{name}.vr_lambda"
                v = graph.add(graph.mul(self._get(weight, 0), self.first_values), graph.mul(self._get(weight, 1), v))
        y: Any = graph.node("attention", q, k, v)
        if i >= settings["num_layers"] - settings["xsa_last_n"]:
            if settings["xsa_form"] == "mean":
                y = graph.sub(y, graph.div(raw, float(self.length)))
            else:
                unit = graph.node("normalize", raw)
                y = graph.sub(y, graph.mul(graph.node("sum", graph.mul(y, unit), "-1"), unit))
        return self._linear(self._gated(i, y, n, query), f"{name}.proj.weight")

    def _gated(self, i: int, y: Any, n: Any, query: Any) -> Any:
        graph, settings, name = self.graph, self.settings, f"blocks.{i}.attn.attn_gate"
        gate = settings.get("attention_gate", "none")
        if gate == "scalar":
            return graph.mul(y, graph.param(name))
        if gate == "sigmoid":
            logits = graph.add(self._linear(n, f"{name}.weight"), graph.param(f"{name}.bias"))
            return graph.mul(y, graph.node("sigmoid", logits))
        if gate in ("window", "window_doubled"):
            read = query if settings.get("attention_gate_source") == "query" else n
            width = settings["attention_gate_width"]
            if width < settings["model_dim"]:
                read = graph.node("get", read, f"-1=0:{width}")
            weight = f"blocks.{i}.attn.{WINDOW_GATES[gate]}"
            logits = graph.mul(settings["attention_gate_scale"], self._linear(read, weight))
            factor = 2.0 if gate == "window_doubled" else 1.0
            return graph.mul(factor, y, graph.node("sigmoid", logits))
        return y


def rotary_table(graph: Graph, base: float, dims: int, train_len: int, length: int) -> Node:
    """Return the angles of a rotary layer that is fed ``length`` tokens: positions times frequencies."""
    graph.line = 0
    if train_len and length > train_len:
        base *= (length / train_len) ** (dims / (dims - 2))
    steps = graph.div(graph.node("arange", 0.0, float(dims), 2.0), float(dims))
    frequencies = graph.div(1.0, graph.power(base, steps))
    return graph.node("outer", graph.node("arange", 0.0, float(length), 1.0), frequencies)
