"""Work out the expressions of a script."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from evalkit.source import plain
from evalkit.source.fstrings import MARK
from evalkit.source.plain import BUILTINS, items_of, truth
from evalkit.source.symbols import Graph, Tensor
from evalkit.source.tensors import Tensors
from evalkit.source.values import (
    MAX_NUMBER,
    MAX_TEXT,
    PLAIN,
    Builtin,
    Function,
    Library,
    Parameter,
    Scope,
    Stuck,
    Unknown,
)


class Expressions:
    """Works out expressions; calls and assignments are left to whoever derives from it.

    Attributes:
        globals: the script's own names.
        tensors: what is done with tensors.
        graph: what they are computed by.
        _step: counts a step, so that no script is followed for ever.
        _assign: gives a name, an attribute or an element a value.
        attribute: works out ``holder.name``.
        call: works out a call.
        _super: works out a call of a base class's method.
        _variable: returns an environment variable.
    """

    globals: dict[str, Any]
    tensors: Tensors
    graph: Graph

    _step: Callable[[ast.AST], None]
    _assign: Callable[[ast.expr, Any, Scope], None]
    attribute: Callable[[Any, str, ast.AST], Any]
    call: Callable[[Any, list[Any], dict[str, Any], ast.AST], Any]
    _super: Callable[[ast.Call, Mapping[str, Any]], Any]
    _variable: Callable[[Any, Any, ast.AST], Any]

    def value(self, node: ast.expr, scope: Mapping[str, Any]) -> Any:
        """Work out an expression."""
        self._step(node)
        method = getattr(self, f"_of_{type(node).__name__}", None)
        return Unknown(type(node).__name__) if method is None else method(node, scope)

    def _of_Constant(self, node: ast.Constant, scope: Mapping[str, Any]) -> Any:
        value = node.value
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            return Unknown("a number too large")
        if isinstance(value, str) and MARK in value:
            return Unknown("a text")
        return value if isinstance(value, PLAIN) or value is Ellipsis else Unknown("constant")

    def _of_Name(self, node: ast.Name, scope: Mapping[str, Any]) -> Any:
        if node.id in scope:
            return scope[node.id]
        if node.id in self.globals:
            return self.globals[node.id]
        return Builtin(node.id) if node.id in BUILTINS else Unknown(node.id)

    def _of_Tuple(self, node: ast.Tuple, scope: Mapping[str, Any]) -> Any:
        return tuple(self._elements(node.elts, scope))

    def _of_List(self, node: ast.List, scope: Mapping[str, Any]) -> Any:
        return self._elements(node.elts, scope)

    def _of_Set(self, node: ast.Set, scope: Mapping[str, Any]) -> Any:
        items = self._elements(node.elts, scope)
        return set(items) if all(isinstance(item, PLAIN) for item in items) else Unknown("a set")

    def _elements(self, nodes: list[ast.expr], scope: Mapping[str, Any]) -> list[Any]:
        items: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                items.extend(items_of(self.value(node.value, scope), node))
            else:
                items.append(self.value(node, scope))
        return items

    def _of_Dict(self, node: ast.Dict, scope: Mapping[str, Any]) -> Any:
        made: dict[Any, Any] = {}
        for key, item in zip(node.keys, node.values, strict=True):
            name = self.value(key, scope) if key is not None else Unknown("**")
            if not isinstance(name, PLAIN):
                return Unknown("a dict")
            made[name] = self.value(item, scope)
        return made

    def _of_JoinedStr(self, node: ast.JoinedStr, scope: Mapping[str, Any]) -> Any:
        parts = []
        for part in node.values:
            value = self.value(part.value if isinstance(part, ast.FormattedValue) else part, scope)
            if not isinstance(value, PLAIN):
                return Unknown("a text")
            parts.append(str(value))
        return "".join(parts)[:MAX_TEXT]

    def _of_Lambda(self, node: ast.Lambda, scope: Mapping[str, Any]) -> Any:
        return Function(node, dict(scope))

    def _of_NamedExpr(self, node: ast.NamedExpr, scope: Scope) -> Any:
        value = self.value(node.value, scope)
        self._assign(node.target, value, scope)
        return value

    def _of_IfExp(self, node: ast.IfExp, scope: Mapping[str, Any]) -> Any:
        test = truth(self.value(node.test, scope))
        if test is None:
            return Unknown(f"it depends on {ast.unparse(node.test)[:60]!r}")
        return self.value(node.body if test else node.orelse, scope)

    def _of_BoolOp(self, node: ast.BoolOp, scope: Mapping[str, Any]) -> Any:
        stop = isinstance(node.op, ast.Or)
        unknown, value = False, None
        for part in node.values:
            value = self.value(part, scope)
            holds = truth(value)
            if holds is stop:
                return value if not unknown else stop
            unknown = unknown or holds is None
        return Unknown("a condition") if unknown else value

    def _of_UnaryOp(self, node: ast.UnaryOp, scope: Mapping[str, Any]) -> Any:
        value = self.value(node.operand, scope)
        if isinstance(node.op, ast.Not):
            holds = truth(value)
            return Unknown("a condition") if holds is None else not holds
        if isinstance(value, Parameter | Tensor) and isinstance(node.op, ast.USub):
            self.graph.line = node.lineno
            return self.tensors.like(self.graph.neg(self.tensors.node(value)), value)
        if isinstance(value, int | float) and isinstance(node.op, ast.USub | ast.UAdd):
            return -value if isinstance(node.op, ast.USub) else value
        return Unknown("a sign")

    def _of_BinOp(self, node: ast.BinOp, scope: Mapping[str, Any]) -> Any:
        return self.binary(node.op, self.value(node.left, scope), self.value(node.right, scope), node)

    def binary(self, op: ast.operator, left: Any, right: Any, node: ast.AST) -> Any:
        """Return what an operation makes of two values."""
        if isinstance(left, Tensor | Parameter) or isinstance(right, Tensor | Parameter):
            return self.tensors.binary(op, left, right, node)
        return plain.binary(op, left, right)

    def _of_Compare(self, node: ast.Compare, scope: Mapping[str, Any]) -> Any:
        left = self.value(node.left, scope)
        result: Any = True
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.value(comparator, scope)
            result = self._compare(op, left, right, node)
            if truth(result) is not True:
                return result
            left = right
        return result

    def _compare(self, op: ast.cmpop, left: Any, right: Any, node: ast.AST) -> Any:
        is_tensor = isinstance(left, Tensor | Parameter) or isinstance(right, Tensor | Parameter)
        if is_tensor and not isinstance(op, ast.Is | ast.IsNot):
            return self.tensors.compare(op, left, right, node)
        return plain.compare(op, left, right)

    def _of_ListComp(self, node: ast.ListComp, scope: Mapping[str, Any]) -> Any:
        made: list[Any] = []
        self._comprehend(node.generators, dict(scope), lambda inner: made.append(self.value(node.elt, inner)))
        return made

    def _of_GeneratorExp(self, node: ast.GeneratorExp, scope: Mapping[str, Any]) -> Any:
        return self._of_ListComp(node, scope)  # type: ignore[arg-type]

    def _of_SetComp(self, node: ast.SetComp, scope: Mapping[str, Any]) -> Any:
        items = self._of_ListComp(node, scope)  # type: ignore[arg-type]
        return set(items) if all(isinstance(item, PLAIN) for item in items) else Unknown("a set")

    def _of_DictComp(self, node: ast.DictComp, scope: Mapping[str, Any]) -> Any:
        made: dict[Any, Any] = {}

        def put(inner: Scope) -> None:
            key = self.value(node.key, inner)
            if isinstance(key, PLAIN):
                made[key] = self.value(node.value, inner)

        self._comprehend(node.generators, dict(scope), put)
        return made

    def _comprehend(self, generators: list[ast.comprehension], scope: Scope, put: Callable[[Scope], None]) -> None:
        if not generators:
            put(scope)
            return
        first, rest = generators[0], generators[1:]
        for item in items_of(self.value(first.iter, scope), first.iter):
            self._assign(first.target, item, scope)
            tests = [truth(self.value(test, scope)) for test in first.ifs]
            if None in tests:
                raise Stuck(first.iter.lineno, "a selection that only a run would tell")
            if all(tests):
                self._comprehend(rest, scope, put)

    def _of_Subscript(self, node: ast.Subscript, scope: Mapping[str, Any]) -> Any:
        holder = self.value(node.value, scope)
        if isinstance(holder, Library) and holder.path == "os.environ":
            return self._variable(self.value(node.slice, scope), Unknown("unset"), node)
        if isinstance(holder, Tensor | Parameter):
            return self.tensors.take(holder, *self._where(node.slice, holder, scope), node)
        if isinstance(node.slice, ast.Slice):
            bounds = self._bounds(node.slice, scope)
            if isinstance(holder, list | tuple | str | range) and all(b is None or isinstance(b, int) for b in bounds):
                return holder[slice(*bounds)] if bounds[2] != 0 else Unknown("a slice")
            return Unknown("a slice")
        key = self.value(node.slice, scope)
        if isinstance(holder, list | tuple | range | str) and isinstance(key, int):
            if not -len(holder) <= key < len(holder):
                raise Stuck(node.lineno, f"index {key} of {len(holder)}")
            return holder[key]
        if isinstance(holder, dict) and isinstance(key, PLAIN):
            return holder.get(key, Unknown("a key"))
        return Unknown("an element")

    def _bounds(self, part: ast.Slice, scope: Mapping[str, Any]) -> list[Any]:
        return [None if b is None else self.value(b, scope) for b in (part.lower, part.upper, part.step)]

    def _where(
        self, index: ast.expr, holder: Tensor | Parameter, scope: Mapping[str, Any]
    ) -> tuple[str, tuple[int, ...] | None]:
        """Return a subscript in one spelling, empty if it takes everything, and the shape of what it takes."""
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        shape = holder.shape
        words: list[str] = []
        ellipsis = any(isinstance(part, ast.Constant) and part.value is Ellipsis for part in parts)
        taken = [part for part in parts if not (isinstance(part, ast.Constant) and part.value in (None, Ellipsis))]
        taken = [part for part in taken if not (isinstance(part, ast.Name) and self.value(part, scope) is None)]
        last = ellipsis or (shape is not None and len(taken) == len(shape))
        size = shape[-1] if shape else None
        made = None if shape is None else list(shape)
        for place, part in enumerate(taken):
            at_end = last and place == len(taken) - 1
            where = place - len(taken) if ellipsis else place
            if isinstance(part, ast.Slice):
                start, stop, _ = self._bounds(part, scope)
                if not isinstance(start, int | None) or not isinstance(stop, int | None) or part.step is not None:
                    words.append(f"{where}={ast.unparse(part)}?")
                    made = None
                    continue
                if at_end and size is not None:
                    start, stop, _ = slice(start, stop).indices(size)
                    if (start, stop) == (0, size):
                        continue
                    words.append(f"-1={start}:{stop}")
                    if made:
                        made[-1] = stop - start
                elif (start or 0) != 0 or stop is not None:
                    words.append(f"{where}={start or 0}:{'' if stop is None else stop}")
            else:
                value = self.value(part, scope)
                words.append(f"{where}={value if isinstance(value, int) else ast.unparse(part) + '?'}")
                # Leading indices only; behind a slice the shape is left unknown.
                leading = where == place and not any(isinstance(p, ast.Slice) for p in taken[:place])
                made = made[1:] if made and leading else None
        return " ".join(words), None if made is None else tuple(made)

    def _of_Attribute(self, node: ast.Attribute, scope: Mapping[str, Any]) -> Any:
        return self.attribute(self.value(node.value, scope), node.attr, node)

    def _of_Call(self, node: ast.Call, scope: Scope) -> Any:
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call):
            inner = node.func.value.func
            if isinstance(inner, ast.Name) and inner.id == "super":
                return self._super(node, scope)
        function = self.value(node.func, scope)
        if isinstance(function, Unknown):
            return Unknown(function.why)
        arguments = self._elements(node.args, scope)
        keywords: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.value(keyword.value, scope)
            if keyword.arg is not None:
                keywords[keyword.arg] = value
            elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
                keywords |= value
            else:
                raise Stuck(node.lineno, "arguments that only a run would tell")
        return self.call(function, arguments, keywords, node)
