"""Layers of ``torch.nn``: their parameters, and what they compute."""

from __future__ import annotations

import ast
from typing import Any

from evalkit.source.symbols import Tensor
from evalkit.source.tensors import Tensors
from evalkit.source.values import Object, Parameter, Unknown


def make_module(path: str, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """Return a layer, a list of layers or a parameter of ``torch.nn``."""
    if name in ("ModuleList", "ParameterList", "Sequential"):
        items = arguments[0] if arguments else []
        return list(items) if isinstance(items, list | tuple) else [] if not arguments else Unknown(name)
    if name in ("ModuleDict", "ParameterDict"):
        return dict(arguments[0]) if arguments and isinstance(arguments[0], dict) else {}
    if name in ("Parameter", "Buffer"):
        content = arguments[0] if arguments else keywords.get("data")
        return Parameter(content.shape if isinstance(content, Tensor) else None)
    made = Object(None, path)
    build_layer(made, path, arguments, keywords)
    return made


def build_layer(made: Object, path: str, arguments: list[Any], keywords: dict[str, Any]) -> None:
    """Give an object the parameters that a layer of the library has."""
    kind = path.rsplit(".", 1)[-1]
    made.kind = path
    values = dict(enumerate(arguments)) | keywords

    def number(place: int, name: str) -> int | None:
        found = values.get(place, values.get(name))
        return found if isinstance(found, int) else None

    if kind == "Linear":
        rows, columns = number(1, "out_features"), number(0, "in_features")
        shape = None if rows is None or columns is None else (rows, columns)
        made.attributes["weight"] = Parameter(shape)
        bias = values.get("bias", values.get(2, True))
        made.attributes["bias"] = None if bias is False else Parameter(None if rows is None else (rows,))
        made.attributes["in_features"], made.attributes["out_features"] = columns, rows
    elif kind == "Embedding":
        rows, columns = number(0, "num_embeddings"), number(1, "embedding_dim")
        made.attributes["weight"] = Parameter(None if rows is None or columns is None else (rows, columns))


def apply_layer(tensors: Tensors, holder: Object, arguments: list[Any], node: ast.AST) -> Any:
    """Return what a layer of the library computes."""
    kind = holder.kind.rsplit(".", 1)[-1]
    weight, bias = holder.attributes.get("weight"), holder.attributes.get("bias")
    if not arguments or not isinstance(weight, Parameter):
        return arguments[0] if kind == "Identity" and arguments else Unknown(holder.kind)
    if kind == "Linear":
        bias = bias if isinstance(bias, Parameter) else None
        return tensors.function("linear", [arguments[0], weight, bias], {}, node)
    if kind == "Embedding":
        return tensors.function("embedding", [arguments[0], weight], {}, node)
    return Unknown(holder.kind)
