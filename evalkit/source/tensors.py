"""What operators, methods and functions make of tensors: nodes of a graph, with shapes as far as they are known."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

from evalkit.artifact.layouts import BANKS, bank_row
from evalkit.source.symbols import Graph, Node, Tensor
from evalkit.source.values import Builtin, Parameter, Unknown

# What only moves numbers about or recasts them.
_KEEPS = frozenset(
    """
    to float bfloat16 half double type_as contiguous reshape view transpose permute unsqueeze squeeze expand
    expand_as flatten unflatten clone detach long int type cuda repeat_interleave requires_grad_ view_as movedim
    cpu bool numpy
    """.split()  # noqa: SIM905
)
_UNARY = frozenset(
    """
    sigmoid tanh relu silu gelu exp log sqrt rsqrt cos sin abs square softplus sign erf
    """.split()  # noqa: SIM905
)

_OF_ONE_TENSOR = frozenset(("normalize", "zeros_like", "empty_like", "ones_like", "full_like"))
_OPERATORS: dict[type, str] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.Pow: "power"}
"""Operators that a graph folds."""


class Tensors:
    """Operations on tensors, which become nodes of a graph.

    Args:
        graph: takes the nodes.
        visited: called at each attention, whose order tells in which order blocks are visited.
    """

    def __init__(self, graph: Graph, visited: Callable[[], None]) -> None:
        self.graph = graph
        self._visited = visited

    def operand(self, value: Any, node: ast.AST) -> Node | float:
        """Return a value as an operation takes it; what was not worked out is a node that says so."""
        if isinstance(value, Tensor | Parameter):
            return self.node(value)
        if isinstance(value, bool | int | float):
            return float(value)
        why = value.why if isinstance(value, Unknown) else type(value).__name__
        return self.graph.node("unknown", why, float(getattr(node, "lineno", 0)))

    def node(self, value: Tensor | Parameter) -> Node:
        """Return the node of a tensor."""
        if isinstance(value, Tensor):
            return value.node
        return self.graph.param(value.name or f"unnamed {id(value)}")

    def like(self, node: Node | float, like: Any) -> Any:
        """Return a node as a tensor with the shape of another; a number stays one."""
        return _tensor(node, like.shape if isinstance(like, Tensor) else None)

    def binary(self, op: ast.operator, left: Any, right: Any, node: ast.AST) -> Any:
        """Return what an operator makes of two values, at least one of them a tensor."""
        self.graph.line = getattr(node, "lineno", 0)
        a, b = self.operand(left, node), self.operand(right, node)
        graph = self.graph
        made: Node | float
        if type(op) in _OPERATORS:
            made = getattr(graph, _OPERATORS[type(op)])(a, b)
        elif isinstance(op, ast.MatMult):
            weight = b.args[0] if isinstance(b, Node) and b.op == "transposed" else graph.node("transposed", b)
            made = graph.node("linear", a, weight)
        else:
            made = graph.node(type(op).__name__.lower(), a, b)
        shapes = [value.shape for value in (left, right) if isinstance(value, Tensor | Parameter)]
        known = [shape for shape in shapes if shape is not None]
        # With one shape unknown the other may be the smaller of the two, spread over it.
        return _tensor(made, max(known, key=len) if len(known) == len(shapes) else None)

    def attribute(self, holder: Tensor | Parameter, name: str) -> Any:
        """Return an attribute of a tensor."""
        if name == "shape":
            return holder.shape if holder.shape is not None else Unknown("a shape")
        if name == "ndim":
            return len(holder.shape) if holder.shape is not None else Unknown("a rank")
        if name in ("T", "mT"):
            self.graph.line = 0
            return Tensor(self.graph.node("transposed", self.node(holder)))
        if name == "data":
            return holder
        if name in ("dtype", "device", "grad", "is_cuda"):
            return Unknown(name)
        return Builtin(name, holder)

    def call(self, name: str, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        """Work out a function of ``torch`` or ``torch.nn.functional``, by its last name."""
        if name in ("is_grad_enabled", "is_compiling", "is_autocast_enabled", "is_available", "is_initialized"):
            return False if name == "is_grad_enabled" else Unknown(name)
        if name in ("no_grad", "enable_grad", "inference_mode", "autocast", "compile", "device", "Generator"):
            return arguments[0] if name == "compile" and arguments else Unknown(name)
        if name in ("ones", "zeros", "empty", "full", "randn", "rand"):
            sizes = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else arguments
            shape = tuple(sizes) if all(isinstance(n, int) for n in sizes) else None
            content = {"ones": 1.0, "zeros": 0.0}.get(name)
            if name == "full" and len(arguments) > 1 and isinstance(arguments[1], int | float):
                content = float(arguments[1])
            return Tensor(
                self.graph.node(name if content is None else "filled", str(shape) if content is None else content),
                shape,
            )
        if name == "tensor":
            content = arguments[0] if arguments else None
            shape = () if isinstance(content, int | float) else (len(content),) if isinstance(content, list) else None
            return Tensor(self.graph.node("constant", str(content)[:200]), shape)
        if name == "stack" and arguments and isinstance(arguments[0], list | tuple):
            parts = [self.operand(item, node) for item in arguments[0]]
            inner = [item.shape for item in arguments[0] if isinstance(item, Tensor)]
            shape = (len(parts), *inner[0]) if inner and inner[0] is not None else None
            return Tensor(self.graph.node("stack", tuple(parts)), shape)
        if name == "arange":
            numbers = [a for a in arguments if isinstance(a, int | float)]
            if len(numbers) == len(arguments) and numbers:
                start, stop, step = (
                    (0, *numbers, 1) if len(numbers) == 1 else (*numbers, 1) if len(numbers) == 2 else numbers
                )
                size = max(math.ceil((stop - start) / step), 0) if step else 0
                return Tensor(self.graph.node("arange", float(start), float(stop), float(step)), (size,))
            return Tensor(self.graph.node("arange", *(self.operand(a, node) for a in arguments)))
        if name in ("cat", "concat"):
            return self._cat(arguments, keywords, node)
        if name == "scaled_dot_product_attention":
            return self.attention(arguments, keywords, node, causal=keywords.get("is_causal"))
        if not arguments:
            return Unknown(name)
        return self.function(name, arguments, keywords, node)

    def _cat(self, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        parts = arguments[0] if arguments else keywords.get("tensors")
        if not isinstance(parts, list | tuple):
            return Unknown("cat")
        dim = keywords.get("dim", arguments[1] if len(arguments) > 1 else 0)
        shapes = [part.shape if isinstance(part, Tensor) else None for part in parts]
        shape = None
        if all(s is not None for s in shapes) and dim == -1 and all(shapes):
            shape = (*shapes[0][:-1], sum(s[-1] for s in shapes))  # type: ignore[index,misc]
        elif isinstance(parts[0], Tensor):
            shape = next((s for s in shapes if s), None) if dim == 1 else None
        return Tensor(self.graph.node("cat", tuple(self.operand(p, node) for p in parts), float(dim)), shape)

    def attention(self, arguments: list[Any], keywords: dict[str, Any], node: ast.AST, *, causal: Any) -> Any:
        """Work out attention; every setting but a causal mask makes it another operation."""
        names = ("query", "key", "value")
        given = [*arguments, *(keywords[n] for n in names[len(arguments) :] if n in keywords)]
        if len(given) < 3:
            return Unknown("attention")
        plain = causal is True and len(given) == 3
        for key, neutral in (("attn_mask", None), ("scale", None), ("dropout_p", 0.0), ("softmax_scale", None)):
            plain = plain and keywords.get(key, neutral) == neutral
        plain = plain and keywords.get("window_size", (-1, -1)) in ((-1, -1), None)
        op = "attention" if plain else f"attention {sorted(keywords)}"
        self._visited()
        shape = given[0].shape if isinstance(given[0], Tensor) else None
        return Tensor(self.graph.node(op, *(self.operand(a, node) for a in given[:3])), shape)

    def function(self, name: str, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        """Work out a function of a tensor, or a method of it (the tensor comes first)."""
        x, rest = arguments[0], arguments[1:]
        graph, shape = self.graph, x.shape if isinstance(x, Tensor) else None
        graph.line = getattr(node, "lineno", 0)

        def given(place: int, name: str, default: Any = None) -> Any:
            return rest[place] if place < len(rest) else keywords.get(name, default)

        if name in _KEEPS:
            return self._moved(name, x, rest)
        a = self.operand(x, node)
        if (name in _UNARY and not rest) or name in _OF_ONE_TENSOR:
            return Tensor(graph.node(name, a), shape)
        if name == "square_" or (name == "pow" and rest):
            exponent = 2.0 if name == "square_" else self.operand(rest[0], node)
            return self.like(graph.power(a, exponent), x)
        if name == "leaky_relu":
            return Tensor(graph.node("leaky_relu", a, self.operand(given(0, "negative_slope", 0.01), node)), shape)
        if name == "rms_norm":
            weight, eps = given(1, "weight"), given(2, "eps")
            made: Node | float = graph.node("rms", a) if eps is None else graph.node("rms", a, self.operand(eps, node))
            return self.like(made if weight is None else graph.mul(made, self.operand(weight, node)), x)
        if name == "linear":
            weight, bias = given(0, "weight"), given(1, "bias")
            made = graph.node("linear", a, self.operand(weight, node))
            made = made if bias is None else graph.add(made, self.operand(bias, node))
            rows = weight.shape[0] if isinstance(weight, Tensor | Parameter) and weight.shape else None
            return _tensor(made, (*shape[:-1], rows) if shape and rows is not None else None)
        if name == "embedding" and isinstance(table := given(0, "weight"), Tensor | Parameter):
            columns = table.shape[-1] if table.shape else None
            made = graph.node("embed", self.node(table), a)
            return Tensor(made, (*shape, columns) if shape and columns else None)
        if name == "lerp" and len(rest) == 2:
            made = graph.lerp(a, self.operand(rest[0], node), self.operand(rest[1], node))
            return self.like(made, x if shape else rest[0])
        if name in ("add", "mul", "sub", "div") and len(rest) == 1 and not keywords:
            made = getattr(graph, name)(a, self.operand(rest[0], node))
            return self.like(made, x)
        if name == "neg":
            return self.like(graph.neg(a), x)
        if name == "cross_entropy":
            return Tensor(graph.node("cross_entropy", a))
        if name in ("outer", "bitwise_xor", "masked_fill", "where", "roll"):
            words = [self.operand(value, node) for value in rest]
            other = rest[0].shape if rest and isinstance(rest[0], Tensor) else None
            if name == "outer":
                shape = (shape[0], other[0]) if shape and other else None
            return Tensor(graph.node(name, a, *words), shape)
        if name in ("sum", "mean"):
            return Tensor(graph.node(name, a, str(given(0, "dim"))))
        if name == "pad" and given(0, "pad") == (0, 0, 1, 0) and _is_all_but_last(a):
            # A row of zeros before all positions but the last: each position's predecessor.
            start = graph.node("zeros_like", graph.node("get", a.args[0], "1=0:1"))  # type: ignore[union-attr]
            return Tensor(graph.node("cat", (start, a), 1.0), shape)
        if name == "pad":
            return Tensor(graph.node("pad", a, str(given(0, "pad"))), shape)
        if name == "size":
            return self._size(x, rest)
        if name == "dim":
            return len(shape) if shape is not None else Unknown("a rank")
        if name == "numel":
            return math.prod(shape) if shape is not None else Unknown("a size")
        if name.endswith("_"):
            return x  # in place: initial values, which training replaces
        return Tensor(graph.node(f"call {name}", a, *(self.operand(v, node) for v in rest)))

    def _size(self, x: Any, rest: list[Any]) -> Any:
        shape = x.shape if isinstance(x, Tensor | Parameter) else None
        if not rest:
            return shape if shape is not None else Unknown("a shape")
        if shape is None or not isinstance(rest[0], int) or not -len(shape) <= rest[0] < len(shape):
            return Unknown("a size")
        return shape[rest[0]]

    def _moved(self, name: str, x: Any, rest: list[Any]) -> Any:
        if not isinstance(x, Tensor | Parameter):
            return x
        node, shape = self.node(x), x.shape
        sizes = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
        if name in ("reshape", "view", "expand"):
            known = all(isinstance(n, int) for n in sizes)
            if known and sizes.count(-1) == 1 and shape and name != "expand":
                rest_size = math.prod(n for n in sizes if n != -1)
                total = math.prod(shape)
                sizes = [total // rest_size if n == -1 and rest_size else n for n in sizes]
            shape = tuple(sizes) if known and all(n >= 0 for n in sizes) else None
        elif name == "transpose" and shape and len(sizes) == 2 and all(isinstance(n, int) for n in sizes):
            order = list(shape)
            if all(-len(order) <= n < len(order) for n in sizes):
                order[sizes[0]], order[sizes[1]] = order[sizes[1]], order[sizes[0]]
            shape = tuple(order)
        elif name == "unsqueeze" and shape and sizes and isinstance(sizes[0], int):
            place = sizes[0] if sizes[0] >= 0 else len(shape) + 1 + sizes[0]
            shape = (*shape[:place], 1, *shape[place:])
        elif name in ("permute", "flatten", "squeeze", "unflatten", "movedim", "repeat_interleave"):
            shape = (*shape[:-1], shape[-1]) if shape and name == "repeat_interleave" else None
        return Tensor(node, shape)

    def compare(self, op: ast.cmpop, left: Any, right: Any, node: ast.AST) -> Any:
        """Return what a comparison gives, one of whose sides is a tensor."""
        if isinstance(op, ast.In | ast.NotIn):
            return Unknown("membership")
        self.graph.line = getattr(node, "lineno", 0)
        a, b = self.operand(left, node), self.operand(right, node)
        return Tensor(self.graph.node(type(op).__name__.lower(), a, b), getattr(left, "shape", None))

    def take(self, holder: Tensor | Parameter, where: str, shape: tuple[int, ...] | None, node: ast.Subscript) -> Any:
        """Return what a subscript takes, given in one spelling; a row of a bank is the matrix that it holds."""
        if not where:
            return Tensor(self.node(holder), shape)
        if isinstance(holder, Parameter) and holder.name in BANKS and holder.shape and where.startswith("0="):
            row, rows = where[2:], holder.shape[0]
            if row.isdigit() and int(row) < rows and rows % len(BANKS[holder.name]) == 0:
                return Tensor(self.graph.param(bank_row(holder.name, int(row), rows)), holder.shape[1:])
        self.graph.line = node.lineno
        return Tensor(self.graph.node("get", self.node(holder), where), shape)


def _tensor(made: Node | float, shape: tuple[int, ...] | None) -> Any:
    return Tensor(made, shape) if isinstance(made, Node) else made


def _is_all_but_last(node: Node | float) -> bool:
    return isinstance(node, Node) and node.op == "get" and node.args[1] == "1=0:-1"
