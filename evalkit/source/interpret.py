"""Work out what a training script's classes build and compute, from its syntax tree, without executing any of it.

Numbers, strings, lists and objects of the script's own classes are worked out; tensors become nodes of a
:class:`~evalkit.source.symbols.Graph`; everything else is :class:`~evalkit.source.values.Unknown`. A branch that
hangs on something unknown stops the reading with its line, since what follows would be a guess. This module follows
statements; :mod:`~evalkit.source.expressions` works out expressions, :mod:`~evalkit.source.calls` calls.
"""

from __future__ import annotations

import ast
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from evalkit.source.calls import Calls
from evalkit.source.plain import items_of, truth
from evalkit.source.symbols import Tensor
from evalkit.source.values import (
    MAX_STEPS,
    Class,
    Function,
    Library,
    Object,
    Return,
    Scope,
    Setting,
    Stuck,
    Unknown,
)


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class Interpreter(Calls):
    """Follows one script.

    Args:
        tree: the script.
        environment: environment variables of the run, as far as they are known.
        forced: values of hyperparameters, by attribute name, that go before the script's defaults.
    """

    def __init__(
        self, tree: ast.Module, *, environment: Mapping[str, str] | None = None, forced: Mapping[str, Any] | None = None
    ) -> None:
        set_elsewhere = {
            target.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Attribute)
            and not (isinstance(target.value, ast.Name) and target.value.id == "self")
        }
        super().__init__(environment or {}, set_elsewhere)
        self.forced = dict(forced or {})
        self.settings: dict[str, Setting] = {}
        self._steps = 0
        for statement in tree.body:
            self._top_level(statement)

    def _top_level(self, statement: ast.stmt) -> None:
        """Take in imports, constants, classes and functions; leave out what acts."""
        try:
            if isinstance(statement, ast.Try):
                for inner in statement.body:
                    self._top_level(inner)
            elif isinstance(statement, ast.If):
                test = truth(self.value(statement.test, self.globals))
                for inner in (statement.body if test else statement.orelse) if test is not None else ():
                    self._top_level(inner)
            elif not isinstance(statement, ast.Expr | ast.For | ast.While | ast.With):
                self._statement(statement, self.globals)
        except (Stuck, Return, _Break, _Continue):
            for target in ast.walk(statement):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    self.globals[target.id] = Unknown(f"line {statement.lineno}")

    def run(self, body: list[ast.stmt], scope: Scope) -> None:
        """Follow statements."""
        for statement in body:
            self._statement(statement, scope)

    def _statement(self, node: ast.stmt, scope: Scope) -> None:
        self._step(node)
        method = getattr(self, f"_do_{type(node).__name__}", None)
        if method is None:
            raise Stuck(node.lineno, f"a statement of kind {type(node).__name__}")
        method(node, scope)

    def _step(self, node: ast.AST) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise Stuck(getattr(node, "lineno", 0), "more steps than a model's constructor and forward pass need")

    def _do_Pass(self, node: ast.stmt, scope: Scope) -> None:
        pass

    _do_Global = _do_Nonlocal = _do_Assert = _do_Delete = _do_Pass

    def _do_Expr(self, node: ast.Expr, scope: Scope) -> None:
        if not isinstance(node.value, ast.Constant):
            self.value(node.value, scope)

    def _do_Import(self, node: ast.Import, scope: Scope) -> None:
        for alias in node.names:
            name = alias.asname or alias.name.split(".")[0]
            scope[name] = Library(alias.name if alias.asname else name)

    def _do_ImportFrom(self, node: ast.ImportFrom, scope: Scope) -> None:
        for alias in node.names:
            scope[alias.asname or alias.name] = Library(f"{node.module}.{alias.name}")

    def _do_FunctionDef(self, node: ast.FunctionDef, scope: Scope) -> None:
        names = {ast.unparse(decorator) for decorator in node.decorator_list}
        scope[node.name] = Function(node, scope, is_property="property" in names)
        if "staticmethod" in names:
            scope[node.name].bound = "static"

    def _do_ClassDef(self, node: ast.ClassDef, scope: Scope) -> None:
        attributes: dict[str, Any] = {}
        made = Class(node.name, [self.value(base, scope) for base in node.bases], attributes, node.lineno)
        sets = {name for item in node.body for name in _names_set(item)}
        is_settings = bool(sets & {"num_layers", "model_dim", "n_layer"}) or "hyperparam" in node.name.lower()
        inner = ChainMap(attributes, scope)
        for item in node.body:
            self.read = []
            try:
                self._statement(item, inner)
            except Stuck as stuck:
                attributes |= dict.fromkeys(_names_set(item), Unknown(f"line {stuck.line}: {stuck.reason}"))
            for name in _names_set(item) if is_settings else ():
                self._note_setting(name, attributes, item.lineno)
        for value in attributes.values():
            if isinstance(value, Function):
                value.owner = made
        scope[node.name] = made

    def _note_setting(self, name: str, attributes: dict[str, Any], line: int) -> None:
        if name in self.forced:
            attributes[name] = self.forced[name]
        variable = self.read[0] if self.read else None
        self.settings[name] = Setting(attributes.get(name), line, variable)

    def _do_Return(self, node: ast.Return, scope: Scope) -> None:
        raise Return(None if node.value is None else self.value(node.value, scope))

    def _do_Raise(self, node: ast.Raise, scope: Scope) -> None:
        raise Stuck(node.lineno, "the script raises an error here with these settings")

    def _do_Break(self, node: ast.stmt, scope: Scope) -> None:
        raise _Break

    def _do_Continue(self, node: ast.stmt, scope: Scope) -> None:
        raise _Continue

    def _do_Assign(self, node: ast.Assign, scope: Scope) -> None:
        value = self.value(node.value, scope)
        for target in node.targets:
            self._assign(target, value, scope)

    def _do_AnnAssign(self, node: ast.AnnAssign, scope: Scope) -> None:
        if node.value is not None:
            self._assign(node.target, self.value(node.value, scope), scope)

    def _do_AugAssign(self, node: ast.AugAssign, scope: Scope) -> None:
        present = self.value(node.target, scope)
        if isinstance(present, list) and isinstance(node.op, ast.Add):
            other = self.value(node.value, scope)
            if isinstance(other, list | tuple | range):
                present.extend(other)
                return
        self._assign(node.target, self.binary(node.op, present, self.value(node.value, scope), node), scope)

    def _assign(self, target: ast.expr, value: Any, scope: Scope) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            self._unpack(target, value, scope)
        elif isinstance(target, ast.Attribute):
            holder = self.value(target.value, scope)
            if isinstance(holder, Object | Class):
                holder.attributes[target.attr] = value
        elif isinstance(target, ast.Subscript):
            holder = self.value(target.value, scope)
            if isinstance(holder, dict | list):
                key = self.value(target.slice, scope)
                if isinstance(key, int | str) and (isinstance(holder, dict) or -len(holder) <= key < len(holder)):  # type: ignore[operator]
                    holder[key] = value  # type: ignore[index]
            elif isinstance(holder, Tensor) and isinstance(target.value, ast.Name):
                where = self._where(target.slice, holder, scope)[0]
                scope[target.value.id] = Tensor(
                    self.graph.node("set", holder.node, where, self.tensors.operand(value, target)), holder.shape
                )

    def _unpack(self, target: ast.Tuple | ast.List, value: Any, scope: Scope) -> None:
        count = len(target.elts)
        items = list(value) if isinstance(value, tuple | list | range) else [Unknown("unpacked")] * count
        if len(items) != count:
            raise Stuck(target.lineno, f"{len(items)} values for {count} names")
        for element, item in zip(target.elts, items, strict=True):
            self._assign(element, item, scope)

    def _do_If(self, node: ast.If, scope: Scope) -> None:
        test = truth(self.value(node.test, scope))
        if test is None:
            if all(isinstance(statement, ast.Raise) for statement in node.body) and not node.orelse:
                return
            raise Stuck(node.lineno, f"it depends on {ast.unparse(node.test)[:80]!r}, which only a run would tell")
        self.run(node.body if test else node.orelse, scope)

    def _do_For(self, node: ast.For, scope: Scope) -> None:
        for item in items_of(self.value(node.iter, scope), node):
            self._assign(node.target, item, scope)
            if not self._goes_on(node.body, scope):
                return
        self.run(node.orelse, scope)

    def _do_While(self, node: ast.While, scope: Scope) -> None:
        while True:
            self._step(node)
            test = truth(self.value(node.test, scope))
            if test is None:
                raise Stuck(node.lineno, "a loop that only a run would end")
            if not test or not self._goes_on(node.body, scope):
                return

    def _goes_on(self, body: list[ast.stmt], scope: Scope) -> bool:
        """Follow a round of a loop; return whether there may be another."""
        try:
            self.run(body, scope)
        except _Break:
            return False
        except _Continue:
            pass
        return True

    def _do_With(self, node: ast.With, scope: Scope) -> None:
        self.run(node.body, scope)

    def _do_Try(self, node: ast.Try, scope: Scope) -> None:
        self.run(node.body, scope)
        self.run(node.orelse, scope)
        self.run(node.finalbody, scope)


def _names_set(statement: ast.stmt) -> list[str]:
    targets: list[ast.expr] = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]
