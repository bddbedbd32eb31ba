"""Work out what a training script's classes build and compute, from its syntax tree, without executing any of it.

Numbers, strings, lists and objects of the script's own classes are worked out; tensors become nodes of a
:class:`~evalkit.source.symbols.Graph`; everything else is :class:`Unknown`. A branch that hangs on something unknown
stops the reading with its line, since what follows would be a guess.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from evalkit.source.fstrings import MARK
from evalkit.source.symbols import Graph, Node, Tensor

_MAX_STEPS = 300_000
_MAX_ITEMS = 20_000
_MAX_NUMBER = 2**62
_MAX_TEXT = 200_000
_MAX_CALLS = 60


BANKS = {
    "qo_bank": ("attn.c_q.weight", "attn.proj.weight"),
    "kv_bank": ("attn.c_k.weight", "attn.c_v.weight"),
    "mlp_up_bank": ("mlp.fc.weight",),
    "mlp_down_bank": ("mlp.proj.weight",),
}
"""Matrices of all layers in one tensor, and what its halves hold."""


def bank_row(bank: str, row: int, rows: int) -> str:
    """Return the name that an artifact gives a row of a bank."""
    layers = rows // len(BANKS[bank])
    return f"blocks.{row % layers}.{BANKS[bank][row // layers]}"


class Stuck(Exception):
    """The script cannot be followed past a line."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


@dataclass(frozen=True)
class Unknown:
    """A value that was not worked out."""

    why: str = ""


@dataclass(frozen=True)
class Library:
    """A name of a library, such as ``torch.nn.functional.relu``."""

    path: str


@dataclass(eq=False)
class Parameter:
    """A learned tensor; it is named once the model is built."""

    shape: tuple[int, ...] | None
    name: str = ""


@dataclass(eq=False)
class Function:
    """A function of the script, or a method bound to an object."""

    node: ast.FunctionDef | ast.Lambda
    scope: dict[str, Any]
    bound: Any = None
    owner: Class | None = None
    is_property: bool = False


@dataclass(eq=False)
class Class:
    """A class of the script."""

    name: str
    bases: list[Any]
    attributes: dict[str, Any]
    line: int

    def find(self, name: str) -> Any:
        """Return an attribute of the class or of the bases that the script defines; None if there is none."""
        if name in self.attributes:
            return self.attributes[name]
        for base in self.bases:
            if isinstance(base, Class) and (found := base.find(name)) is not None:
                return found
        return None

    def library_base(self) -> str:
        """Return the library class that it derives from in the end, for example ``torch.nn.Linear``."""
        for base in self.bases:
            if isinstance(base, Library):
                return base.path
            if isinstance(base, Class) and (found := base.library_base()):
                return found
        return ""


@dataclass(eq=False)
class Object:
    """An object of one of the script's classes, or a layer of the library."""

    cls: Class | None
    kind: str
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Setting:
    """A hyperparameter: its value, the line that sets it, and the environment variable that could have."""

    value: Any
    line: int
    variable: str | None


class _Return(Exception):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


@dataclass(eq=False)
class _Builtin:
    name: str
    bound: Any = None


_BUILTINS = frozenset(
    """
    int float bool str len range list tuple dict set max min abs sum sorted enumerate zip reversed round any all
    isinstance hasattr getattr setattr print super type map filter iter next repr divmod pow frozenset object id
    callable property staticmethod classmethod vars
    """.split()  # noqa: SIM905
)
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitXor: operator.xor,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_PLAIN: tuple[type, ...] = (int, float, str, bool, type(None))
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
_IGNORED_METHODS = frozenset({"_init_weights", "init_weights", "reset_parameters"})


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, None, or a list or dict of such."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, _PLAIN) and is_plain(item) for key, item in value.items())
    return isinstance(value, (*_PLAIN, range))


class Interpreter:
    """Follows one script.

    Args:
        tree: the script.
        environment: environment variables of the run, as far as they are known.
        forced: values of hyperparameters, by attribute name, that go before the script's defaults.
    """

    def __init__(
        self, tree: ast.Module, *, environment: Mapping[str, str] | None = None, forced: Mapping[str, Any] | None = None
    ) -> None:
        self.graph = Graph()
        self.environment = dict(environment or {})
        self.forced = dict(forced or {})
        self.settings: dict[str, Setting] = {}
        self.variables: dict[str, int] = {}
        self.visits: list[int] = []
        # Attributes that a run gives other values than constants, so that a default says nothing of them.
        self.set_elsewhere = {
            target.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Attribute)
            and not (isinstance(target.value, ast.Name) and target.value.id == "self")
        }
        self.globals: dict[str, Any] = {"__name__": "script", "__file__": Unknown("__file__")}
        self._steps = 0
        self._calls = 0
        self._stack: list[Object] = []
        self._read: list[str] = []
        for statement in tree.body:
            self._top_level(statement)

    # Statements

    def _top_level(self, statement: ast.stmt) -> None:
        """Take in imports, constants, classes and functions; leave out what acts."""
        try:
            if isinstance(statement, ast.Try):
                for inner in statement.body:
                    self._top_level(inner)
            elif isinstance(statement, ast.If):
                test = self._truth(self.value(statement.test, self.globals))
                for inner in (statement.body if test else statement.orelse) if test is not None else ():
                    self._top_level(inner)
            elif not isinstance(statement, ast.Expr | ast.For | ast.While | ast.With):
                self._statement(statement, self.globals)
        except (Stuck, _Return, _Break, _Continue):
            for target in ast.walk(statement):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    self.globals[target.id] = Unknown(f"line {statement.lineno}")

    def run(self, body: list[ast.stmt], scope: dict[str, Any]) -> None:
        """Follow statements."""
        for statement in body:
            self._statement(statement, scope)

    def _statement(self, node: ast.stmt, scope: dict[str, Any]) -> None:
        self._step(node)
        method = getattr(self, f"_do_{type(node).__name__}", None)
        if method is None:
            raise Stuck(node.lineno, f"a statement of kind {type(node).__name__}")
        method(node, scope)

    def _step(self, node: ast.AST) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise Stuck(getattr(node, "lineno", 0), "more steps than a model's constructor and forward pass need")

    def _do_Pass(self, node: ast.stmt, scope: dict[str, Any]) -> None:
        pass

    _do_Global = _do_Nonlocal = _do_Assert = _do_Delete = _do_Pass

    def _do_Expr(self, node: ast.Expr, scope: dict[str, Any]) -> None:
        if not isinstance(node.value, ast.Constant):
            self.value(node.value, scope)

    def _do_Import(self, node: ast.Import, scope: dict[str, Any]) -> None:
        for alias in node.names:
            name = alias.asname or alias.name.split(".")[0]
            scope[name] = Library(alias.name if alias.asname else name)

    def _do_ImportFrom(self, node: ast.ImportFrom, scope: dict[str, Any]) -> None:
        for alias in node.names:
            scope[alias.asname or alias.name] = Library(f"{node.module}.{alias.name}")

    def _do_FunctionDef(self, node: ast.FunctionDef, scope: dict[str, Any]) -> None:
        names = {ast.unparse(decorator) for decorator in node.decorator_list}
        scope[node.name] = Function(node, scope, is_property="property" in names)
        if "staticmethod" in names:
            scope[node.name].bound = "static"

    def _do_ClassDef(self, node: ast.ClassDef, scope: dict[str, Any]) -> None:
        attributes: dict[str, Any] = {}
        made = Class(node.name, [self.value(base, scope) for base in node.bases], attributes, node.lineno)
        sets = {target.id for item in node.body for target in _targets(item) if isinstance(target, ast.Name)}
        is_settings = bool(sets & {"num_layers", "model_dim", "n_layer"}) or "hyperparam" in node.name.lower()
        inner = _Layered(attributes, scope)
        for item in node.body:
            self._read = []
            try:
                self._statement(item, inner)
            except Stuck as stuck:
                for target in _targets(item):
                    if isinstance(target, ast.Name):
                        attributes[target.id] = Unknown(f"line {stuck.line}: {stuck.reason}")
            for target in _targets(item):
                if is_settings and isinstance(target, ast.Name):
                    self._note_setting(target.id, attributes, item.lineno)
        for value in attributes.values():
            if isinstance(value, Function):
                value.owner = made
        scope[node.name] = made

    def _note_setting(self, name: str, attributes: dict[str, Any], line: int) -> None:
        if name in self.forced:
            attributes[name] = self.forced[name]
        variable = self._read[0] if self._read else None
        self.settings[name] = Setting(attributes.get(name), line, variable)

    def _do_Return(self, node: ast.Return, scope: dict[str, Any]) -> None:
        raise _Return(None if node.value is None else self.value(node.value, scope))

    def _do_Raise(self, node: ast.Raise, scope: dict[str, Any]) -> None:
        raise Stuck(node.lineno, "the script raises an error here with these settings")

    def _do_Break(self, node: ast.stmt, scope: dict[str, Any]) -> None:
        raise _Break

    def _do_Continue(self, node: ast.stmt, scope: dict[str, Any]) -> None:
        raise _Continue

    def _do_Assign(self, node: ast.Assign, scope: dict[str, Any]) -> None:
        value = self.value(node.value, scope)
        for target in node.targets:
            self._assign(target, value, scope)

    def _do_AnnAssign(self, node: ast.AnnAssign, scope: dict[str, Any]) -> None:
        if node.value is not None:
            self._assign(node.target, self.value(node.value, scope), scope)

    def _do_AugAssign(self, node: ast.AugAssign, scope: dict[str, Any]) -> None:
        present = self.value(_as_load(node.target), scope)
        if isinstance(present, list) and isinstance(node.op, ast.Add):
            other = self.value(node.value, scope)
            if isinstance(other, list | tuple | range):
                present.extend(other)
                return
        self._assign(node.target, self._binary(node.op, present, self.value(node.value, scope), node), scope)

    def _assign(self, target: ast.expr, value: Any, scope: dict[str, Any]) -> None:
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
                    self.graph.node("set", holder.node, where, self._operand(value, target)), holder.shape
                )

    def _unpack(self, target: ast.Tuple | ast.List, value: Any, scope: dict[str, Any]) -> None:
        count = len(target.elts)
        items = list(value) if isinstance(value, tuple | list | range) else [Unknown("unpacked")] * count
        if len(items) != count:
            raise Stuck(target.lineno, f"{len(items)} values for {count} names")
        for element, item in zip(target.elts, items, strict=True):
            self._assign(element, item, scope)

    def _do_If(self, node: ast.If, scope: dict[str, Any]) -> None:
        test = self._truth(self.value(node.test, scope))
        if test is None:
            if _only_raises(node.body) and not node.orelse:
                return
            raise Stuck(node.lineno, f"it depends on {ast.unparse(node.test)[:80]!r}, which only a run would tell")
        self.run(node.body if test else node.orelse, scope)

    def _do_For(self, node: ast.For, scope: dict[str, Any]) -> None:
        items = self._items(self.value(node.iter, scope), node)
        for item in items:
            self._assign(node.target, item, scope)
            try:
                self.run(node.body, scope)
            except _Break:
                return
            except _Continue:
                continue
        self.run(node.orelse, scope)

    def _items(self, value: Any, node: ast.AST) -> list[Any]:
        if isinstance(value, dict):
            value = list(value)
        if not isinstance(value, list | tuple | range | str | set):
            raise Stuck(getattr(node, "lineno", 0), "a loop over something that only a run would tell")
        if len(value) > _MAX_ITEMS:
            raise Stuck(getattr(node, "lineno", 0), f"a loop of {len(value):,} rounds")
        return list(value)

    def _do_While(self, node: ast.While, scope: dict[str, Any]) -> None:
        while True:
            self._step(node)
            test = self._truth(self.value(node.test, scope))
            if test is None:
                raise Stuck(node.lineno, "a loop that only a run would end")
            if not test:
                return
            try:
                self.run(node.body, scope)
            except _Break:
                return
            except _Continue:
                continue

    def _do_With(self, node: ast.With, scope: dict[str, Any]) -> None:
        self.run(node.body, scope)

    def _do_Try(self, node: ast.Try, scope: dict[str, Any]) -> None:
        self.run(node.body, scope)
        self.run(node.orelse, scope)
        self.run(node.finalbody, scope)

    # Expressions

    def value(self, node: ast.expr, scope: Mapping[str, Any]) -> Any:
        """Work out an expression."""
        self._step(node)
        method = getattr(self, f"_of_{type(node).__name__}", None)
        return Unknown(type(node).__name__) if method is None else method(node, scope)

    def _of_Constant(self, node: ast.Constant, scope: Mapping[str, Any]) -> Any:
        value = node.value
        if isinstance(value, int) and abs(value) > _MAX_NUMBER:
            return Unknown("a number too large")
        if isinstance(value, str) and MARK in value:
            return Unknown("a text")
        return value if isinstance(value, _PLAIN) or value is Ellipsis else Unknown("constant")

    def _of_Name(self, node: ast.Name, scope: Mapping[str, Any]) -> Any:
        if node.id in scope:
            return scope[node.id]
        if node.id in self.globals:
            return self.globals[node.id]
        return _Builtin(node.id) if node.id in _BUILTINS else Unknown(node.id)

    def _of_Tuple(self, node: ast.Tuple, scope: Mapping[str, Any]) -> Any:
        return tuple(self._elements(node.elts, scope))

    def _of_List(self, node: ast.List, scope: Mapping[str, Any]) -> Any:
        return self._elements(node.elts, scope)

    def _of_Set(self, node: ast.Set, scope: Mapping[str, Any]) -> Any:
        items = self._elements(node.elts, scope)
        return set(items) if all(isinstance(item, _PLAIN) for item in items) else Unknown("a set")

    def _elements(self, nodes: list[ast.expr], scope: Mapping[str, Any]) -> list[Any]:
        items: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                items.extend(self._items(self.value(node.value, scope), node))
            else:
                items.append(self.value(node, scope))
        return items

    def _of_Dict(self, node: ast.Dict, scope: Mapping[str, Any]) -> Any:
        made: dict[Any, Any] = {}
        for key, item in zip(node.keys, node.values, strict=True):
            name = self.value(key, scope) if key is not None else Unknown("**")
            if not isinstance(name, _PLAIN):
                return Unknown("a dict")
            made[name] = self.value(item, scope)
        return made

    def _of_JoinedStr(self, node: ast.JoinedStr, scope: Mapping[str, Any]) -> Any:
        parts = []
        for part in node.values:
            value = self.value(part.value if isinstance(part, ast.FormattedValue) else part, scope)
            if not isinstance(value, _PLAIN):
                return Unknown("a text")
            parts.append(str(value))
        return "".join(parts)[:_MAX_TEXT]

    def _of_Lambda(self, node: ast.Lambda, scope: Mapping[str, Any]) -> Any:
        return Function(node, dict(scope))

    def _of_NamedExpr(self, node: ast.NamedExpr, scope: dict[str, Any]) -> Any:
        value = self.value(node.value, scope)
        self._assign(node.target, value, scope)
        return value

    def _of_IfExp(self, node: ast.IfExp, scope: Mapping[str, Any]) -> Any:
        test = self._truth(self.value(node.test, scope))
        if test is None:
            return Unknown(f"it depends on {ast.unparse(node.test)[:60]!r}")
        return self.value(node.body if test else node.orelse, scope)

    def _of_BoolOp(self, node: ast.BoolOp, scope: Mapping[str, Any]) -> Any:
        stop = isinstance(node.op, ast.Or)
        unknown, value = False, None
        for part in node.values:
            value = self.value(part, scope)
            truth = self._truth(value)
            if truth is stop:
                return value if not unknown else stop
            unknown = unknown or truth is None
        return Unknown("a condition") if unknown else value

    def _of_UnaryOp(self, node: ast.UnaryOp, scope: Mapping[str, Any]) -> Any:
        value = self.value(node.operand, scope)
        if isinstance(node.op, ast.Not):
            truth = self._truth(value)
            return Unknown("a condition") if truth is None else not truth
        if isinstance(value, Parameter | Tensor) and isinstance(node.op, ast.USub):
            self.graph.line = node.lineno
            return self._tensor(self.graph.neg(self._node(value)), value)
        if isinstance(value, int | float) and isinstance(node.op, ast.USub | ast.UAdd):
            return -value if isinstance(node.op, ast.USub) else value
        return Unknown("a sign")

    def _of_BinOp(self, node: ast.BinOp, scope: Mapping[str, Any]) -> Any:
        return self._binary(node.op, self.value(node.left, scope), self.value(node.right, scope), node)

    def _binary(self, op: ast.operator, left: Any, right: Any, node: ast.AST) -> Any:
        if isinstance(left, Tensor | Parameter) or isinstance(right, Tensor | Parameter):
            return self._tensor_binary(op, left, right, node)
        if isinstance(left, int | float) and isinstance(right, int | float):
            return self._number(op, left, right)
        if isinstance(op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right if len(left) + len(right) <= _MAX_ITEMS else Unknown("a long list")
        if isinstance(op, ast.Add) and isinstance(left, tuple) and isinstance(right, tuple):
            return left + right if len(left) + len(right) <= _MAX_ITEMS else Unknown("a long tuple")
        if isinstance(op, ast.Add) and isinstance(left, str) and isinstance(right, str):
            return (left + right) if len(left) + len(right) <= _MAX_TEXT else Unknown("a long text")
        if isinstance(op, ast.Mult) and isinstance(left, list | str) and isinstance(right, int):
            return left * right if len(left) * max(right, 0) <= _MAX_ITEMS else Unknown("a long list")
        if isinstance(op, ast.BitOr) and isinstance(left, set) and isinstance(right, set):
            return left | right
        return Unknown("arithmetic")

    def _number(self, op: ast.operator, left: Any, right: Any) -> Any:
        try:
            if isinstance(op, ast.Pow):
                value = float(left) ** right if isinstance(left, float) or right < 0 or left > 2**16 else None
                if value is None:
                    value = left**right if right <= 64 else Unknown("a large power")
            elif isinstance(op, ast.LShift | ast.RShift):
                value = (
                    Unknown("a shift")
                    if not 0 <= right <= 62
                    else (left << right if isinstance(op, ast.LShift) else left >> right)
                )
            else:
                value = _ARITHMETIC[type(op)](left, right)
        except (ArithmeticError, KeyError, TypeError, ValueError):
            return Unknown("arithmetic")
        if isinstance(value, complex) or (isinstance(value, int) and abs(value) > _MAX_NUMBER):
            return Unknown("a number too large")
        return value

    def _tensor_binary(self, op: ast.operator, left: Any, right: Any, node: ast.AST) -> Any:
        self.graph.line = getattr(node, "lineno", 0)
        a, b = self._operand(left, node), self._operand(right, node)
        graph = self.graph
        if isinstance(op, ast.Add):
            made = graph.add(a, b)
        elif isinstance(op, ast.Sub):
            made = graph.sub(a, b)
        elif isinstance(op, ast.Mult):
            made = graph.mul(a, b)
        elif isinstance(op, ast.Div):
            made = graph.div(a, b)
        elif isinstance(op, ast.Pow):
            made = graph.power(a, b)
        elif isinstance(op, ast.MatMult):
            weight = b.args[0] if isinstance(b, Node) and b.op == "transposed" else graph.node("transposed", b)
            made = graph.node("linear", a, weight)
        else:
            made = graph.node(type(op).__name__.lower(), a, b)
        shapes = [value.shape for value in (left, right) if isinstance(value, Tensor | Parameter)]
        known = [shape for shape in shapes if shape is not None]
        # With one shape unknown the other may be the smaller of the two, spread over it.
        shape = max(known, key=len) if len(known) == len(shapes) else None
        return Tensor(made, shape) if isinstance(made, Node) else made

    def _operand(self, value: Any, node: ast.AST) -> Node | float:
        if isinstance(value, Tensor | Parameter):
            return self._node(value)
        if isinstance(value, bool | int | float):
            return float(value)
        why = value.why if isinstance(value, Unknown) else type(value).__name__
        return self.graph.node("unknown", why, float(getattr(node, "lineno", 0)))

    def _node(self, value: Tensor | Parameter) -> Node:
        if isinstance(value, Tensor):
            return value.node
        return self.graph.param(value.name or f"unnamed {id(value)}")

    def _tensor(self, node: Node | float, like: Any) -> Any:
        return Tensor(node, like.shape if isinstance(like, Tensor) else None) if isinstance(node, Node) else node

    def _of_Compare(self, node: ast.Compare, scope: Mapping[str, Any]) -> Any:
        left = self.value(node.left, scope)
        result: Any = True
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.value(comparator, scope)
            result = self._compare(op, left, right, node)
            if self._truth(result) is not True:
                return result
            left = right
        return result

    def _compare(self, op: ast.cmpop, left: Any, right: Any, node: ast.AST) -> Any:
        if isinstance(op, ast.Is | ast.IsNot):
            if isinstance(left, Unknown) or isinstance(right, Unknown):
                return Unknown("a comparison")
            same = left is right or (isinstance(left, bool | int) and type(left) is type(right) and left == right)
            return same is isinstance(op, ast.Is)
        if isinstance(left, Tensor | Parameter) or isinstance(right, Tensor | Parameter):
            if isinstance(op, ast.In | ast.NotIn):
                return Unknown("membership")
            self.graph.line = getattr(node, "lineno", 0)
            a, b = self._operand(left, node), self._operand(right, node)
            return Tensor(self.graph.node(type(op).__name__.lower(), a, b), getattr(left, "shape", None))
        if isinstance(op, ast.In | ast.NotIn):
            if is_plain(left) and isinstance(right, dict | set):
                return (left in right) is isinstance(op, ast.In)
            if is_plain(left) and isinstance(right, list | tuple | range | str) and is_plain(right):
                if isinstance(right, str) and not isinstance(left, str):
                    return Unknown("membership")
                return (left in right) is isinstance(op, ast.In)
            return Unknown("membership")
        if is_plain(left) and is_plain(right):
            try:
                return _COMPARISONS[type(op)](left, right)
            except (TypeError, KeyError):
                return Unknown("a comparison")
        return Unknown("a comparison")

    def _truth(self, value: Any) -> bool | None:
        if isinstance(value, (list, tuple, range, dict, set, *_PLAIN)):
            return bool(value)
        if isinstance(value, Object | Class | Function | Library | _Builtin):
            return True
        return None

    def _of_ListComp(self, node: ast.ListComp, scope: Mapping[str, Any]) -> Any:
        made: list[Any] = []
        self._comprehend(node.generators, dict(scope), lambda inner: made.append(self.value(node.elt, inner)))
        return made

    def _of_GeneratorExp(self, node: ast.GeneratorExp, scope: Mapping[str, Any]) -> Any:
        return self._of_ListComp(node, scope)  # type: ignore[arg-type]

    def _of_SetComp(self, node: ast.SetComp, scope: Mapping[str, Any]) -> Any:
        items = self._of_ListComp(node, scope)  # type: ignore[arg-type]
        return set(items) if all(isinstance(item, _PLAIN) for item in items) else Unknown("a set")

    def _of_DictComp(self, node: ast.DictComp, scope: Mapping[str, Any]) -> Any:
        made: dict[Any, Any] = {}

        def put(inner: dict[str, Any]) -> None:
            key = self.value(node.key, inner)
            if isinstance(key, _PLAIN):
                made[key] = self.value(node.value, inner)

        self._comprehend(node.generators, dict(scope), put)
        return made

    def _comprehend(
        self, generators: list[ast.comprehension], scope: dict[str, Any], put: Callable[[dict[str, Any]], None]
    ) -> None:
        if not generators:
            put(scope)
            return
        first, rest = generators[0], generators[1:]
        for item in self._items(self.value(first.iter, scope), first.iter):
            self._assign(first.target, item, scope)
            tests = [self._truth(self.value(test, scope)) for test in first.ifs]
            if None in tests:
                raise Stuck(first.iter.lineno, "a selection that only a run would tell")
            if all(tests):
                self._comprehend(rest, scope, put)

    def _of_Subscript(self, node: ast.Subscript, scope: Mapping[str, Any]) -> Any:
        holder = self.value(node.value, scope)
        if isinstance(holder, Library) and holder.path == "os.environ":
            return self._variable(self.value(node.slice, scope), Unknown("unset"), node)
        if isinstance(holder, Tensor | Parameter):
            return self._subscript(holder, node, scope)
        if isinstance(node.slice, ast.Slice):
            bounds = [
                None if b is None else self.value(b, scope)
                for b in (node.slice.lower, node.slice.upper, node.slice.step)
            ]
            if isinstance(holder, list | tuple | str | range) and all(b is None or isinstance(b, int) for b in bounds):
                return holder[slice(*bounds)] if bounds[2] != 0 else Unknown("a slice")
            return Unknown("a slice")
        key = self.value(node.slice, scope)
        if isinstance(holder, list | tuple | range | str) and isinstance(key, int):
            if not -len(holder) <= key < len(holder):
                raise Stuck(node.lineno, f"index {key} of {len(holder)}")
            return holder[key]
        if isinstance(holder, dict) and isinstance(key, _PLAIN):
            return holder.get(key, Unknown("a key"))
        return Unknown("an element")

    def _subscript(self, holder: Tensor | Parameter, node: ast.Subscript, scope: Mapping[str, Any]) -> Any:
        where, shape = self._where(node.slice, holder, scope)
        if not where:
            return Tensor(self._node(holder), shape)
        if isinstance(holder, Parameter) and holder.name in BANKS and holder.shape and where.startswith("0="):
            row, rows = where[2:], holder.shape[0]
            if row.isdigit() and int(row) < rows and rows % len(BANKS[holder.name]) == 0:
                return Tensor(self.graph.param(bank_row(holder.name, int(row), rows)), holder.shape[1:])
        self.graph.line = node.lineno
        return Tensor(self.graph.node("get", self._node(holder), where), shape)

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
                bounds = [None if b is None else self.value(b, scope) for b in (part.lower, part.upper)]
                if any(not (b is None or isinstance(b, int)) for b in bounds) or part.step is not None:
                    words.append(f"{where}={ast.unparse(part)}?")
                    made = None
                    continue
                start, stop = bounds
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
                made = (
                    made[1:]
                    if made
                    and where == place
                    and all(isinstance(p, ast.expr) and not isinstance(p, ast.Slice) for p in taken[:place])
                    else None
                )
        return " ".join(words), None if made is None else tuple(made)

    # Attributes and calls

    def _of_Attribute(self, node: ast.Attribute, scope: Mapping[str, Any]) -> Any:
        return self.attribute(self.value(node.value, scope), node.attr, node)

    def attribute(self, holder: Any, name: str, node: ast.AST) -> Any:
        """Work out ``holder.name``."""
        if isinstance(holder, Library):
            return self._library_attribute(holder, name)
        if isinstance(holder, Object):
            if name in holder.attributes:
                return holder.attributes[name]
            if name == "training":
                return False
            found = holder.cls.find(name) if holder.cls else None
            if isinstance(found, Function) and found.bound != "static":
                bound = Function(found.node, found.scope, holder, found.owner, found.is_property)
                return self.call(bound, [], {}, node) if found.is_property else bound
            if found is not None or (holder.cls and name in holder.cls.attributes):
                return found
            return _Builtin(name, holder)
        if isinstance(holder, Class):
            found = holder.find(name)
            return found if found is not None or name in holder.attributes else Unknown(name)
        if isinstance(holder, Tensor | Parameter):
            return self._tensor_attribute(holder, name)
        if isinstance(holder, list | tuple | dict | str | range | set | int | float):
            return _Builtin(name, holder)
        return Unknown(name)

    def _library_attribute(self, holder: Library, name: str) -> Any:
        path = f"{holder.path}.{name}"
        constants = {"math.pi": math.pi, "math.e": math.e, "math.inf": math.inf}
        return constants.get(path, Library(path))

    def _tensor_attribute(self, holder: Tensor | Parameter, name: str) -> Any:
        if name == "shape":
            return holder.shape if holder.shape is not None else Unknown("a shape")
        if name == "ndim":
            return len(holder.shape) if holder.shape is not None else Unknown("a rank")
        if name in ("T", "mT"):
            self.graph.line = 0
            return Tensor(self.graph.node("transposed", self._node(holder)))
        if name == "data":
            return holder
        if name in ("dtype", "device", "grad", "is_cuda"):
            return Unknown(name)
        return _Builtin(name, holder)

    def _of_Call(self, node: ast.Call, scope: dict[str, Any]) -> Any:
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

    def _super(self, node: ast.Call, scope: Mapping[str, Any]) -> Any:
        holder = scope.get("self")
        owner = scope.get("__class__")
        if not isinstance(holder, Object) or not isinstance(owner, Class) or not isinstance(node.func, ast.Attribute):
            return Unknown("super")
        arguments = self._elements(node.args, scope)
        keywords = {keyword.arg: self.value(keyword.value, scope) for keyword in node.keywords if keyword.arg}
        for base in owner.bases:
            if isinstance(base, Class) and isinstance(method := base.find(node.func.attr), Function):
                return self.call(Function(method.node, method.scope, holder, method.owner), arguments, keywords, node)
            if isinstance(base, Library) and node.func.attr == "__init__":
                self._build_layer(holder, base.path, arguments, keywords)
            elif isinstance(base, Library) and node.func.attr == "forward":
                return self._apply_layer(holder, arguments, node)
        return None

    def call(self, function: Any, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        """Work out a call."""
        line = getattr(node, "lineno", 0)
        self.graph.line = line
        if isinstance(function, Function):
            return self._call_function(function, arguments, keywords, node)
        if isinstance(function, Class):
            return self._make(function, arguments, keywords, node)
        if isinstance(function, Object):
            return self._call_object(function, arguments, keywords, node)
        if isinstance(function, Library):
            return self._call_library(function.path, arguments, keywords, node)
        if isinstance(function, _Builtin):
            return self._call_builtin(function, arguments, keywords, node)
        return Unknown("a call")

    def _call_function(self, function: Function, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        line = getattr(node, "lineno", 0)
        definition = function.node
        if isinstance(definition, ast.FunctionDef) and definition.name in _IGNORED_METHODS:
            return None
        if self._calls >= _MAX_CALLS:
            raise Stuck(line, "calls nested too deeply")
        spec = definition.args
        names = [argument.arg for argument in (*spec.posonlyargs, *spec.args)]
        if function.bound is not None and function.bound != "static":
            arguments = [function.bound, *arguments]
        scope: dict[str, Any] = _Layered({}, function.scope) if function.scope is not self.globals else {}
        defaults = dict(zip(names[len(names) - len(spec.defaults) :], spec.defaults, strict=True))
        defaults |= {
            argument.arg: default
            for argument, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
            if default is not None
        }
        if len(arguments) > len(names) and spec.vararg is None:
            raise Stuck(line, f"{len(arguments)} arguments for {len(names)}")
        for name, value in zip(names, arguments, strict=False):
            scope[name] = value
        if spec.vararg is not None:
            scope[spec.vararg.arg] = tuple(arguments[len(names) :])
        extra = {}
        for name, value in keywords.items():
            if name in names or any(argument.arg == name for argument in spec.kwonlyargs):
                scope[name] = value
            else:
                extra[name] = value
        if spec.kwarg is not None:
            scope[spec.kwarg.arg] = extra
        elif extra:
            raise Stuck(line, f"an argument {next(iter(extra))!r} that is not one")
        for name, default in defaults.items():
            if name not in scope or (name not in keywords and name in names and names.index(name) >= len(arguments)):
                scope[name] = self.value(default, self.globals)
        if function.owner is not None:
            scope["__class__"] = function.owner
        pushed = isinstance(function.bound, Object)
        self._calls += 1
        if pushed:
            self._stack.append(function.bound)
        try:
            if isinstance(definition, ast.Lambda):
                return self.value(definition.body, scope)
            self.run(definition.body, scope)
            return None
        except _Return as returned:
            return returned.value
        finally:
            self._calls -= 1
            if pushed:
                self._stack.pop()

    def _make(self, cls: Class, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Object:
        made = Object(cls, cls.library_base())
        constructor = cls.find("__init__")
        if isinstance(constructor, Function):
            bound = Function(constructor.node, constructor.scope, made, constructor.owner)
            self._call_function(bound, arguments, keywords, node)
        elif made.kind:
            self._build_layer(made, made.kind, arguments, keywords)
        else:
            made.attributes |= keywords
        return made

    def _build_layer(self, made: Object, path: str, arguments: list[Any], keywords: dict[str, Any]) -> None:
        kind = path.rsplit(".", 1)[-1]
        made.kind = path
        values = dict(enumerate(arguments)) | keywords

        def number(place: int, *names: str) -> int | None:
            found = next((values[key] for key in (place, *names) if key in values), None)
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

    def _call_object(self, holder: Object, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        method = holder.cls.find("forward") or holder.cls.find("__call__") if holder.cls else None
        if "cos_cached" in " ".join(holder.attributes) or (holder.cls and "rotary" in holder.cls.name.lower()):
            return self.rotary(holder, arguments, keywords, node)
        if isinstance(method, Function):
            bound = Function(method.node, method.scope, holder, method.owner)
            return self._call_function(bound, arguments, keywords, node)
        return self._apply_layer(holder, arguments, node)

    def rotary(self, holder: Object, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        """Return the cosines and sines of a rotary layer as one opaque thing: what it computes is compared apart."""
        key = holder.name or f"rotary {id(holder)}"
        length = arguments[0] if arguments else None
        computed = self.rotary_tables(holder, length) if isinstance(length, int) else ()
        method = holder.cls.find("forward") if holder.cls else None
        if isinstance(method, Function) and isinstance(method.node, ast.FunctionDef):
            defaults = {
                a.arg: d for a, d in zip(method.node.args.args[::-1], method.node.args.defaults[::-1], strict=False)
            }
            for name, value in keywords.items():
                if name in defaults and value != self.value(defaults[name], self.globals):
                    raise Stuck(getattr(node, "lineno", 0), f"the rotary layer's {name}, which only a run would tell")
        self.graph.line = getattr(node, "lineno", 0)
        shapes = [table.shape if isinstance(table, Tensor) else None for table in computed]
        shapes = shapes if len(shapes) == 2 else [None, None]
        names = ("rotary_cos", "rotary_sin")
        return tuple(Tensor(self.graph.node(n, key), shape) for n, shape in zip(names, shapes, strict=True))

    def rotary_tables(self, holder: Object, length: int) -> tuple[Any, ...]:
        """Return what a rotary layer computes for a length in tokens, as if nothing were cached."""
        method = holder.cls.find("forward") if holder.cls else None
        if not isinstance(method, Function):
            return ()
        fresh = Object(holder.cls, holder.kind, dict(holder.attributes), holder.name)
        bound = Function(method.node, method.scope, fresh, method.owner)
        spec = method.node.args
        wanted = len(spec.args) - 1 - len(spec.defaults)
        arguments = [length, *(Unknown("device or dtype") for _ in range(wanted - 1))]
        tables = self._call_function(bound, arguments, {}, method.node)
        return tuple(tables) if isinstance(tables, tuple | list) else ()

    def _apply_layer(self, holder: Object, arguments: list[Any], node: ast.AST) -> Any:
        kind = holder.kind.rsplit(".", 1)[-1]
        weight = holder.attributes.get("weight")
        if not arguments or not isinstance(weight, Parameter):
            return arguments[0] if kind == "Identity" and arguments else Unknown(holder.kind)
        x = self._operand(arguments[0], node)
        shape = arguments[0].shape if isinstance(arguments[0], Tensor) else None
        columns = weight.shape[-1] if weight.shape else None
        if kind == "Linear":
            rows = weight.shape[0] if weight.shape else None
            made: Node | float = self.graph.node("linear", x, self._node(weight))
            if isinstance(bias := holder.attributes.get("bias"), Parameter):
                made = self.graph.add(made, self._node(bias))
            made_shape = (*shape[:-1], rows) if shape and rows is not None else None
            return Tensor(made, made_shape) if isinstance(made, Node) else Unknown("linear")
        if kind == "Embedding":
            return Tensor(
                self.graph.node("embed", self._node(weight), x), (*shape, columns) if shape and columns else None
            )
        return Unknown(holder.kind)

    def _variable(self, name: Any, default: Any, node: ast.AST) -> Any:
        if not isinstance(name, str):
            return Unknown("an environment variable")
        self._read.append(name)
        self.variables.setdefault(name, getattr(node, "lineno", 0))
        return self.environment.get(name, default)

    def _call_library(self, path: str, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        name = path.rsplit(".", 1)[-1]
        if path in ("os.environ.get", "os.getenv"):
            default = arguments[1] if len(arguments) > 1 else keywords.get("default")
            return self._variable(arguments[0] if arguments else None, default, node)
        if path.startswith("math."):
            return self._math(name, arguments)
        if path.startswith("os.path.join") and all(isinstance(a, str) for a in arguments):
            return "/".join(arguments)
        if path.startswith("torch"):
            if ".nn.init." in path or name in ("manual_seed", "set_float32_matmul_precision"):
                return arguments[0] if arguments else None
            if ".nn." in path and name[:1].isupper():
                return self._module(path, name, arguments, keywords)
            return self._torch(name, arguments, keywords, node)
        if "attn" in name and "func" in name:  # the flash attention packages
            return self._attention(arguments, keywords, node, causal=keywords.get("causal"))
        return Unknown(path)

    def _math(self, name: str, arguments: list[Any]) -> Any:
        function = (
            getattr(math, name, None)
            if name in ("sqrt", "log", "exp", "floor", "ceil", "log2", "cos", "sin", "prod", "pow", "gcd")
            else None
        )
        if function is None or not all(isinstance(a, int | float) for a in arguments):
            return Unknown(f"math.{name}")
        try:
            return function(*arguments)
        except (ValueError, OverflowError, TypeError, ArithmeticError):
            return Unknown(f"math.{name}")

    def _module(self, path: str, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if name in ("ModuleList", "ParameterList", "Sequential"):
            items = arguments[0] if arguments else []
            return list(items) if isinstance(items, list | tuple) else [] if not arguments else Unknown(name)
        if name in ("ModuleDict", "ParameterDict"):
            return dict(arguments[0]) if arguments and isinstance(arguments[0], dict) else {}
        if name in ("Parameter", "Buffer"):
            content = arguments[0] if arguments else keywords.get("data")
            return Parameter(content.shape if isinstance(content, Tensor) else None)
        made = Object(None, path)
        self._build_layer(made, path, arguments, keywords)
        return made

    def _torch(self, name: str, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
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
            parts = [self._operand(item, node) for item in arguments[0]]
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
            return Tensor(self.graph.node("arange", *(self._operand(a, node) for a in arguments)))
        if name == "cat" or name == "concat":
            return self._cat(arguments, keywords, node)
        if name == "scaled_dot_product_attention":
            return self._attention(arguments, keywords, node, causal=keywords.get("is_causal"))
        if not arguments:
            return Unknown(name)
        return self._tensor_function(name, arguments, keywords, node)

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
        return Tensor(self.graph.node("cat", tuple(self._operand(p, node) for p in parts), float(dim)), shape)

    def _attention(self, arguments: list[Any], keywords: dict[str, Any], node: ast.AST, *, causal: Any) -> Any:
        names = ("query", "key", "value")
        given = [*arguments, *(keywords[n] for n in names[len(arguments) :] if n in keywords)]
        if len(given) < 3:
            return Unknown("attention")
        plain = causal is True and len(given) == 3
        for key, neutral in (("attn_mask", None), ("scale", None), ("dropout_p", 0.0), ("softmax_scale", None)):
            plain = plain and keywords.get(key, neutral) == neutral
        plain = plain and keywords.get("window_size", (-1, -1)) in ((-1, -1), None)
        op = "attention" if plain else f"attention {sorted(keywords)}"
        self._visit()
        shape = given[0].shape if isinstance(given[0], Tensor) else None
        return Tensor(self.graph.node(op, *(self._operand(a, node) for a in given[:3])), shape)

    def _visit(self) -> None:
        for holder in reversed(self._stack):
            words = holder.name.split(".")
            if len(words) >= 2 and words[0] == "blocks" and words[1].isdigit():
                self.visits.append(int(words[1]))
                return

    def _tensor_function(self, name: str, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        """Work out a function of a tensor, or a method of it (the tensor comes first)."""
        x, rest = arguments[0], arguments[1:]
        graph, shape = self.graph, x.shape if isinstance(x, Tensor) else None
        graph.line = getattr(node, "lineno", 0)
        if name in _KEEPS:
            return self._moved(name, x, rest, keywords)
        a = self._operand(x, node)
        if name in _UNARY and not rest:
            return Tensor(graph.node(name, a), shape)
        if name == "square_" or (name == "pow" and rest):
            exponent = 2.0 if name == "square_" else self._operand(rest[0], node)
            return self._tensor(graph.power(a, exponent), x)
        if name == "leaky_relu":
            slope = keywords.get("negative_slope", rest[0] if rest else 0.01)
            return Tensor(graph.node("leaky_relu", a, self._operand(slope, node)), shape)
        if name == "rms_norm":
            eps = keywords.get("eps", rest[2] if len(rest) > 2 else None)
            weight = keywords.get("weight", rest[1] if len(rest) > 1 else None)
            made: Node | float = graph.node("rms", a) if eps is None else graph.node("rms", a, self._operand(eps, node))
            return self._tensor(made if weight is None else graph.mul(made, self._operand(weight, node)), x)
        if name == "normalize":
            return Tensor(graph.node("normalize", a), shape)
        if name == "linear":
            weight, bias = (
                rest[0] if rest else keywords.get("weight"),
                keywords.get("bias", rest[1] if len(rest) > 1 else None),
            )
            made = graph.node("linear", a, self._operand(weight, node))
            made = made if bias is None else graph.add(made, self._operand(bias, node))
            rows = weight.shape[0] if isinstance(weight, Tensor | Parameter) and weight.shape else None
            return (
                Tensor(made, (*shape[:-1], rows) if shape and rows is not None else None)
                if isinstance(made, Node)
                else made
            )
        if name == "embedding" and isinstance(table := rest[0] if rest else keywords.get("weight"), Tensor | Parameter):
            columns = table.shape[-1] if table.shape else None
            made = graph.node("embed", self._node(table), a)
            return Tensor(made, (*shape, columns) if shape and columns else None)
        if name == "lerp" and len(rest) == 2:
            made = graph.lerp(a, self._operand(rest[0], node), self._operand(rest[1], node))
            return self._tensor(made, x if shape else rest[0])
        if name in ("add", "mul", "sub", "div") and len(rest) == 1 and not keywords:
            made = getattr(graph, name)(a, self._operand(rest[0], node))
            return self._tensor(made, x)
        if name == "neg":
            return self._tensor(graph.neg(a), x)
        if name == "cross_entropy":
            return Tensor(graph.node("cross_entropy", a))
        if name in ("outer", "bitwise_xor", "masked_fill", "where", "roll"):
            words = [self._operand(value, node) for value in rest]
            other = rest[0].shape if rest and isinstance(rest[0], Tensor) else None
            if name == "outer":
                shape = (shape[0], other[0]) if shape and other else None
            return Tensor(graph.node(name, a, *words), shape)
        if name in ("zeros_like", "empty_like", "ones_like", "full_like"):
            return Tensor(graph.node(name, a), shape)
        if name in ("sum", "mean"):
            return Tensor(graph.node(name, a, str(rest[0] if rest else keywords.get("dim"))), None)
        if name == "pad" and (rest[0] if rest else keywords.get("pad")) == (0, 0, 1, 0) and _is_all_but_last(a):
            # A row of zeros before all positions but the last: each position's predecessor.
            start = graph.node("zeros_like", graph.node("get", a.args[0], "1=0:1"))  # type: ignore[union-attr]
            return Tensor(graph.node("cat", (start, a), 1.0), shape)
        if name == "pad":
            return Tensor(graph.node("pad", a, str(rest[0] if rest else keywords.get("pad"))), shape)
        if name == "size":
            return self._size(x, rest)
        if name in ("dim",):
            return len(shape) if shape is not None else Unknown("a rank")
        if name == "numel":
            return math.prod(shape) if shape is not None else Unknown("a size")
        if name.endswith("_") and name not in ("requires_grad_",):
            return x  # in place: initial values, which training replaces
        return Tensor(graph.node(f"call {name}", a, *(self._operand(v, node) for v in rest)), None)

    def _size(self, x: Any, rest: list[Any]) -> Any:
        shape = x.shape if isinstance(x, Tensor | Parameter) else None
        if not rest:
            return shape if shape is not None else Unknown("a shape")
        if shape is None or not isinstance(rest[0], int) or not -len(shape) <= rest[0] < len(shape):
            return Unknown("a size")
        return shape[rest[0]]

    def _moved(self, name: str, x: Any, rest: list[Any], keywords: dict[str, Any]) -> Any:
        if not isinstance(x, Tensor | Parameter):
            return x
        node, shape = self._node(x), x.shape
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

    def _call_builtin(self, function: _Builtin, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        name, holder = function.name, function.bound
        if isinstance(holder, Tensor | Parameter):
            return self._tensor_function(name, [holder, *arguments], keywords, node)
        if isinstance(holder, Object):
            return self._object_method(holder, name, arguments, keywords)
        if isinstance(holder, list):
            return self._list_method(holder, name, arguments, node)
        if isinstance(holder, dict):
            return self._dict_method(holder, name, arguments)
        if isinstance(holder, str | int | float | tuple | range | set):
            return self._plain_method(holder, name, arguments)
        return self._builtin(name, arguments, keywords, node)

    def _object_method(self, holder: Object, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if name in ("register_buffer", "register_parameter", "add_module") and len(arguments) >= 2:
            holder.attributes[str(arguments[0])] = arguments[1]
            return None
        if name in ("to", "bfloat16", "float", "half", "eval", "cuda", "train", "requires_grad_"):
            return holder
        return Unknown(name)

    def _list_method(self, holder: list[Any], name: str, arguments: list[Any], node: ast.AST) -> Any:
        if len(holder) > _MAX_ITEMS:
            raise Stuck(getattr(node, "lineno", 0), "a list that grows without end")
        if name == "append" and arguments:
            holder.append(arguments[0])
            return None
        if name == "extend" and arguments:
            holder.extend(self._items(arguments[0], node))
            return None
        if name == "insert" and len(arguments) == 2 and isinstance(arguments[0], int):
            holder.insert(arguments[0], arguments[1])
            return None
        if name == "pop":
            place = arguments[0] if arguments else -1
            if not isinstance(place, int) or not holder or not -len(holder) <= place < len(holder):
                raise Stuck(getattr(node, "lineno", 0), "it takes from an empty list")
            return holder.pop(place)
        if name == "clear":
            holder.clear()
            return None
        if name == "copy":
            return list(holder)
        if name in ("index", "count") and arguments and is_plain(holder) and is_plain(arguments[0]):
            if name == "count":
                return holder.count(arguments[0])
            return holder.index(arguments[0]) if arguments[0] in holder else Unknown("index")
        return Unknown(f"list.{name}")

    def _dict_method(self, holder: dict[Any, Any], name: str, arguments: list[Any]) -> Any:
        if name == "get" and arguments and isinstance(arguments[0], _PLAIN):
            return holder.get(arguments[0], arguments[1] if len(arguments) > 1 else None)
        if name in ("items", "keys", "values"):
            return [tuple(pair) for pair in holder.items()] if name == "items" else list(getattr(holder, name)())
        return Unknown(f"dict.{name}")

    def _plain_method(self, holder: Any, name: str, arguments: list[Any]) -> Any:
        allowed = {
            str: "split strip lower upper startswith endswith replace lstrip rstrip isdigit partition",
            tuple: "index count",
            range: "index count",
        }
        names = next((words for kind, words in allowed.items() if isinstance(holder, kind)), "").split()
        if name == "join" and isinstance(holder, str) and arguments and isinstance(arguments[0], list | tuple):
            parts = arguments[0]
            return holder.join(parts) if all(isinstance(part, str) for part in parts) else Unknown("join")
        if name not in names or not all(isinstance(a, _PLAIN) for a in arguments):
            return Unknown(name)
        if name == "replace" and len(holder) * max(len(str(arguments[-1])), 1) > _MAX_TEXT:
            return Unknown(name)
        try:
            return getattr(holder, name)(*arguments)
        except (TypeError, ValueError):
            return Unknown(name)

    def _builtin(self, name: str, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        if name == "getattr" and len(arguments) >= 2 and isinstance(arguments[1], str):
            holder = arguments[0]
            if isinstance(holder, Object | Class) and len(arguments) == 3:
                found = holder.attributes.get(arguments[1], Unknown("missing"))
                if isinstance(found, Unknown) and found.why == "missing":
                    cls = holder.cls if isinstance(holder, Object) else holder
                    present = cls.find(arguments[1]) if cls else None
                    if present is None:
                        return Unknown(arguments[1]) if arguments[1] in self.set_elsewhere else arguments[2]
                    return self.attribute(holder, arguments[1], node)
            return self.attribute(holder, arguments[1], node)
        if name == "hasattr" and len(arguments) == 2 and isinstance(arguments[0], Object):
            holder = arguments[0]
            return arguments[1] in holder.attributes or bool(holder.cls and holder.cls.find(str(arguments[1])))
        if name == "setattr" and len(arguments) == 3 and isinstance(arguments[0], Object):
            arguments[0].attributes[str(arguments[1])] = arguments[2]
            return None
        if name == "isinstance" and len(arguments) == 2:
            return self._isinstance(*arguments)
        if name == "print":
            return None
        if name in ("list", "tuple", "sorted", "reversed", "set", "enumerate", "zip", "map", "filter", "iter"):
            return self._sequence(name, arguments, keywords, node)
        if name == "len" and arguments and isinstance(arguments[0], list | tuple | dict | str | range | set):
            return len(arguments[0])
        if name == "dict" and not arguments:
            return dict(keywords)
        if name in ("any", "all") and arguments and isinstance(arguments[0], list | tuple):
            truths = [self._truth(item) for item in arguments[0]]
            return Unknown(name) if None in truths else (any if name == "any" else all)(truths)
        if not all(map(is_plain, arguments)) or not all(map(is_plain, keywords.values())):
            return Unknown(name)
        if name == "range":
            try:
                made = range(*arguments)
            except (TypeError, ValueError):
                return Unknown(name)
            return made if len(made) <= _MAX_ITEMS else Unknown("a long range")
        plain: dict[str, Callable[..., Any]] = {
            "int": int, "float": float, "bool": bool, "str": str, "max": max, "min": min, "abs": abs, "sum": sum,
            "round": round, "repr": repr, "divmod": divmod,
        }  # fmt: skip
        if name not in plain:
            return Unknown(name)
        try:
            return plain[name](*arguments, **keywords)
        except (TypeError, ValueError, ArithmeticError):
            return Unknown(name)

    def _isinstance(self, value: Any, kind: Any) -> Any:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = {"tuple": tuple, "list": list, "dict": dict, "int": int, "float": float, "str": str, "bool": bool}
        known = [names.get(k.name) if isinstance(k, _Builtin) else None for k in kinds]
        if all(k is not None for k in known) and not isinstance(value, Unknown):
            return isinstance(value, tuple(known))  # type: ignore[arg-type]
        return Unknown("isinstance")

    def _sequence(self, name: str, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        if name in ("map", "filter") and len(arguments) == 2:
            items = self._items(arguments[1], node)
            if name == "map":
                return [self.call(arguments[0], [item], {}, node) for item in items]
            kept = [(item, self._truth(self.call(arguments[0], [item], {}, node))) for item in items]
            return [item for item, truth in kept if truth]
        lists = [self._items(argument, node) for argument in arguments]
        if name == "zip":
            return [tuple(items) for items in zip(*lists, strict=False)]
        if not lists:
            return {"tuple": (), "set": set()}.get(name, [])
        items = lists[0]
        if name == "enumerate":
            start = keywords.get("start", 0)
            return [(i + start, item) for i, item in enumerate(items)] if isinstance(start, int) else Unknown(name)
        if name == "tuple":
            return tuple(items)
        if name == "reversed":
            return items[::-1]
        if name in ("set", "sorted"):
            if not all(isinstance(item, _PLAIN) for item in items):
                return Unknown(name)
            try:
                return set(items) if name == "set" else sorted(items, reverse=keywords.get("reverse") is True)
            except TypeError:
                return Unknown(name)
        return items


class _Layered(dict[str, Any]):
    """A scope inside another: reads fall through, writes do not."""

    def __init__(self, own: dict[str, Any], outer: Mapping[str, Any]) -> None:
        super().__init__()
        self._own, self._outer = own, outer

    def __getitem__(self, key: str) -> Any:
        return self._own[key] if key in self._own else self._outer[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._own[key] = value

    def __contains__(self, key: object) -> bool:
        return key in self._own or key in self._outer

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401

    def __iter__(self) -> Any:
        return iter({**dict(self._outer), **self._own})

    def keys(self) -> Any:
        return {**dict(self._outer), **self._own}.keys()


def _targets(statement: ast.stmt) -> list[ast.expr]:
    if isinstance(statement, ast.Assign):
        return list(statement.targets)
    return [statement.target] if isinstance(statement, ast.AnnAssign | ast.AugAssign) else []


def _as_load(target: ast.expr) -> ast.expr:
    if isinstance(target, ast.Name):
        return ast.copy_location(ast.Name(id=target.id, ctx=ast.Load()), target)
    return target


def _is_all_but_last(node: Node | float) -> bool:
    return isinstance(node, Node) and node.op == "get" and node.args[1] == "1=0:-1"


def _only_raises(body: list[ast.stmt]) -> bool:
    return all(isinstance(statement, ast.Raise) for statement in body)
