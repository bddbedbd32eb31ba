"""Build a script's model and follow its forward pass, as :mod:`evalkit.source.interpret` does both."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from evalkit.artifact.layouts import BANKS, bank_row, model_name
from evalkit.source.interpret import Interpreter
from evalkit.source.symbols import Node, Tensor
from evalkit.source.values import Class, Function, Object, Parameter, Stuck, Unknown

BATCH, LENGTH = 3, 2048
_LOOP_FLAG = re.compile(r"loop|recur")
_LOOP_METHOD = re.compile(r"(set|activate|enable)_\w*(loop|recur)")
_EVALUATED = re.compile(r"eval|ttt|quant")


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A model as its script builds it, and what its forward pass computes.

    Attributes:
        model: the object.
        result: the logits.
        visits: block of each attention that the pass computes, in order.
        bfloat16: whether the script casts the whole model, rotary frequencies included, to bfloat16.
        parameters: shape of every learned tensor, by the name that an artifact gives it; None where it is unknown.
        count: learned numbers of the model; None where a shape is unknown.
        line: where the script makes the model.
        lines: where attributes are set, by their names.
    """

    interpreter: Interpreter
    model: Object
    result: Node
    visits: tuple[int, ...]
    bfloat16: bool
    parameters: dict[str, tuple[int, ...] | None]
    count: int | None
    line: int
    lines: dict[str, int]


def trace_script(tree: ast.Module, environment: Mapping[str, str], forced: Mapping[str, Any]) -> Trace:
    """Follow a script's model.

    Raises:
        Stuck: there is no model in it, or it cannot be followed.
    """
    interpreter = Interpreter(tree, environment=environment, forced=forced)
    cls = _model_class(interpreter)
    call, function, cast = _last_call(tree, cls)
    settings = _settings_object(interpreter)
    model = _construct(interpreter, cls, call, function, settings)
    parameters = list(_name_parameters(model))
    _switch_loops_on(interpreter, tree, model)
    interpreter.visits.clear()
    method = "forward_logits" if cls.find("forward_logits") else "forward"
    definition = cls.find(method)
    if not isinstance(definition, Function):
        raise Stuck(cls.line, f"class {cls.name} has no forward pass")
    graph = interpreter.graph
    inputs: list[Any] = [Tensor(graph.node("ids"), (BATCH, LENGTH))]
    if method == "forward":
        inputs.append(Tensor(graph.node("targets"), (BATCH, LENGTH)))
    result = interpreter.call(replace(definition, bound=model), inputs, {}, definition.node)
    if isinstance(result, tuple) and result:
        result = result[0]
    if not isinstance(result, Tensor):
        raise Stuck(definition.node.lineno, f"what {cls.name}.{method} returns")
    node = result.node
    if node.op == "cross_entropy" and isinstance(node.args[0], Node):
        node = node.args[0]
    shapes = [p.shape for p in parameters]
    return Trace(
        interpreter=interpreter,
        model=model,
        result=node,
        visits=tuple(interpreter.visits),
        bfloat16=cast,
        parameters=dict(_unbanked(parameters)),
        count=sum(math.prod(shape) for shape in shapes if shape is not None) if None not in shapes else None,
        line=call.lineno,
        lines={
            target.attr: inner.lineno
            for inner in ast.walk(tree)
            if isinstance(inner, ast.Assign)
            for target in inner.targets
            if isinstance(target, ast.Attribute)
        },
    )


def _unbanked(parameters: list[Parameter]) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Yield names and shapes as an artifact has them: a bank of matrices is taken apart."""
    for parameter in parameters:
        if parameter.name in BANKS and parameter.shape:
            for row in range(parameter.shape[0]):
                yield bank_row(parameter.name, row, parameter.shape[0]), parameter.shape[1:]
        else:
            yield parameter.name, parameter.shape


def _model_class(interpreter: Interpreter) -> Class:
    classes = [value for value in interpreter.globals.values() if isinstance(value, Class)]
    models = [
        cls
        for cls in classes
        if isinstance(constructor := cls.find("__init__"), Function)
        and any(isinstance(n, ast.Attribute) and n.attr == "tok_emb" for n in ast.walk(constructor.node))
    ]
    named = [cls for cls in models if cls.name == "GPT"] or models
    if not named:
        raise Stuck(0, "no class that makes a token embedding 'tok_emb'")
    return named[-1]


def _last_call(tree: ast.Module, cls: Class) -> tuple[ast.Call, ast.AST, bool]:
    """Return where the model is made for evaluation, the function around it, and whether it is cast to bfloat16."""
    found: list[tuple[ast.Call, ast.AST, bool]] = []
    for function in [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))]:
        cast: set[int] = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "bfloat16":
                cast |= {id(inner) for inner in ast.walk(node)}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == cls.name:
                found.append((node, function, id(node) in cast))
    if not found:
        raise Stuck(cls.line, f"the script never makes a {cls.name}")
    return max(found, key=lambda item: (item[0].lineno, isinstance(item[1], ast.FunctionDef)))


def _settings_object(interpreter: Interpreter) -> Any:
    classes = [value for value in interpreter.globals.values() if isinstance(value, Class)]
    for cls in classes:
        if "num_layers" in cls.attributes or "hyperparam" in cls.name.lower():
            return Object(cls, "")
    return Unknown("settings")


class _Scope(dict[str, Any]):
    """Names around the place where the model is made: its own constants, and the settings under any other name."""

    def __init__(self, interpreter: Interpreter, function: ast.AST, settings: Any) -> None:
        super().__init__()
        self._interpreter, self._settings = interpreter, settings
        self._sources: dict[str, ast.expr] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self._sources.setdefault(node.targets[0].id, node.value)
        self._busy: set[str] = set()

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> Any:
        interpreter = self._interpreter
        if name in self._sources and name not in self._busy:
            self._busy.add(name)
            try:
                value = interpreter.value(self._sources[name], self)
            finally:
                self._busy.discard(name)
            if not isinstance(value, Unknown):
                return value
        if name in interpreter.globals:
            return interpreter.globals[name]
        builtin = interpreter.value(ast.Name(id=name, ctx=ast.Load()), {})
        return self._settings if isinstance(builtin, Unknown) else builtin

    def get(self, name: str, default: Any = None) -> Any:
        return None if name in ("self", "__class__") else self[name]


def _construct(interpreter: Interpreter, cls: Class, call: ast.Call, function: ast.AST, settings: Any) -> Object:
    scope = _Scope(interpreter, function, settings)
    arguments = [interpreter.value(argument, scope) for argument in call.args]
    keywords: dict[str, Any] = {}
    for keyword in call.keywords:
        value = interpreter.value(keyword.value, scope)
        if keyword.arg is not None:
            keywords[keyword.arg] = value
        elif isinstance(value, dict):
            keywords |= value
        else:
            raise Stuck(call.lineno, "settings of the model that only a run would tell")
    made = interpreter.call(cls, arguments, keywords, call)
    if not isinstance(made, Object):
        raise Stuck(call.lineno, "the model")
    return made


def _name_parameters(model: Object) -> Iterator[Parameter]:
    """Give every parameter and layer the name that a state dict gives it; yield each parameter once."""
    seen: set[int] = set()

    def visit(value: Any, name: str) -> Iterator[Parameter]:
        if id(value) in seen:
            return
        if isinstance(value, Parameter):
            seen.add(id(value))
            value.name = model_name(name)
            yield value
        elif isinstance(value, Object):
            seen.add(id(value))
            value.name = name
            for key, item in value.attributes.items():
                yield from visit(item, f"{name}.{key}" if name else key)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                yield from visit(item, f"{name}.{i}")
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from visit(item, f"{name}.{key}")

    yield from visit(model, "")


def _switch_loops_on(interpreter: Interpreter, tree: ast.Module, model: Object) -> None:
    """Put the model into the state in which the script evaluates it: with its blocks repeated, where it does that.

    Scripts train without repeats at first. On the model that they score they set a flag, or call a method that does.
    """
    flags = [name for name, value in model.attributes.items() if value is False and _LOOP_FLAG.search(name)]
    if not flags:
        return
    methods = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id != "self"
        and _LOOP_METHOD.search(node.func.attr)
        and model.cls is not None
        and isinstance(model.cls.find(node.func.attr), Function)
    ]
    evaluated = [call for call in methods if _EVALUATED.search(call.func.value.id)]  # type: ignore[attr-defined]
    if methods:
        call = (evaluated or methods)[-1]
        arguments = [interpreter.value(argument, {}) for argument in call.args]
        # What training left is switched on: every published run reached the switch.
        arguments = [True if isinstance(value, Unknown) else value for value in arguments]
        method = interpreter.attribute(model, call.func.attr, call)  # type: ignore[attr-defined]
        interpreter.call(method, arguments, {}, call)
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is True:
            for target in node.targets:
                named = (
                    isinstance(target, ast.Attribute) and target.attr in flags and isinstance(target.value, ast.Name)
                )
                if named and target.value.id != "self":  # type: ignore[attr-defined]
                    model.attributes[target.attr] = True  # type: ignore[attr-defined]
