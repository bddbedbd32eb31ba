"""What a forward pass computes, as a graph of operations on named tensors.

Two passes that compute the same are one node of a :class:`Graph`: sums and products are flattened, sorted and folded,
and what only moves or recasts numbers (views, transposes, dtypes) leaves no trace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from operator import attrgetter

Arg = "Node | float | int | str | None | tuple[Arg, ...]"


@dataclass(frozen=True, eq=False)
class Node:
    """An operation, its arguments, and the line of the script that made it first (0: none)."""

    op: str
    args: tuple[object, ...]
    line: int
    id: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of a traced pass: what computes it, and its shape where that is known."""

    node: Node
    shape: tuple[int, ...] | None = None


@dataclass
class Graph:
    """Nodes, one for each different computation."""

    nodes: dict[tuple[object, ...], Node] = field(default_factory=dict)
    line: int = 0
    max_nodes: int = 400_000

    def node(self, op: str, *args: object) -> Node:
        """Return the node of an operation; equal arguments give the same node.

        Raises:
            OverflowError: the graph grows past its bound.
        """
        key = (op, *map(_key, args))
        found = self.nodes.get(key)
        if found is None:
            if len(self.nodes) >= self.max_nodes:
                raise OverflowError(f"more than {self.max_nodes:,} operations")
            found = self.nodes[key] = Node(op, args, self.line, len(self.nodes))
        return found

    def param(self, name: str) -> Node:
        """Return the node of a stored tensor."""
        return self.node("param", name)

    def add(self, *terms: Node | float) -> Node | float:
        """Return a sum."""
        return self._fold("add", terms, 0.0)

    def mul(self, *factors: Node | float) -> Node | float:
        """Return a product."""
        return self._fold("mul", factors, 1.0)

    def neg(self, x: Node | float) -> Node | float:
        """Return -x."""
        return self.mul(-1.0, x)

    def sub(self, a: Node | float, b: Node | float) -> Node | float:
        """Return a - b."""
        return self.add(a, self.neg(b))

    def div(self, a: Node | float, b: Node | float) -> Node | float:
        """Return a / b."""
        return self.mul(a, self.power(b, -1.0))

    def power(self, base: Node | float, exponent: Node | float) -> Node | float:
        """Return base ** exponent."""
        if not isinstance(base, Node) and not isinstance(exponent, Node):
            value: float = float(base) ** float(exponent)
            return value
        if exponent == 1:
            return base
        if exponent == 2:
            return self.node("square", base)
        return self.node("pow", base, exponent)

    def lerp(self, a: Node | float, b: Node | float, weight: Node | float) -> Node | float:
        """Return (1 - weight) a + weight b."""
        return self.add(self.mul(self.sub(1.0, weight), a), self.mul(weight, b))

    def _fold(self, op: str, items: tuple[Node | float, ...], unit: float) -> Node | float:
        constant, parts = unit, []
        stack = list(reversed(items))
        while stack:
            item = stack.pop()
            if isinstance(item, Node) and item.op == op:
                stack.extend(reversed(item.args))  # type: ignore[arg-type]
            elif isinstance(item, Node):
                parts.append(item)
            else:
                constant = constant + item if op == "add" else constant * item
        if not math.isclose(constant, unit, rel_tol=1e-12, abs_tol=1e-12):
            # A factor into a sum is left alone: nothing is multiplied out, in both of two passes alike.
            parts = [*sorted(parts, key=attrgetter("id")), constant]  # type: ignore[list-item]
        else:
            parts.sort(key=attrgetter("id"))
        if not parts:
            return unit
        return parts[0] if len(parts) == 1 else self.node(op, *parts)


def _key(argument: object) -> object:
    if isinstance(argument, Node):
        return ("node", argument.id)
    if isinstance(argument, bool) or argument is None or isinstance(argument, str):
        return argument
    if isinstance(argument, int | float):
        return ("number", f"{float(argument):.10g}")
    if isinstance(argument, tuple):
        return tuple(map(_key, argument))
    raise TypeError(f"a node cannot hold {type(argument).__name__}")


def first_difference(ours: Node, theirs: Node) -> Node:
    """Return the innermost node of ``theirs`` at which two different graphs part, walking both from their results."""
    while True:
        if ours.op != theirs.op or len(ours.args) != len(theirs.args):
            return theirs
        pairs = [
            (a, b)
            for a, b in zip(ours.args, theirs.args, strict=True)
            if (a.id if isinstance(a, Node) else _key(a)) != (b.id if isinstance(b, Node) else _key(b))
        ]
        if ours.op in ("add", "mul"):  # sorted by age: what they share is not what differs
            mine, other = set(map(_key, ours.args)), set(map(_key, theirs.args))
            left = [a for a in ours.args if _key(a) not in other]
            right = [b for b in theirs.args if _key(b) not in mine]
            pairs = list(zip(left, right, strict=False))
            if len(left) != len(right):
                return theirs
        for a, b in pairs:
            if isinstance(a, Node) and isinstance(b, Node):
                ours, theirs = a, b
                break
        else:
            return theirs
