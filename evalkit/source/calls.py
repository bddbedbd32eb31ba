"""Work out the calls of a script: its own functions and classes, those of torch, and those of the language."""

from __future__ import annotations

import ast
import math
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from evalkit.source import plain
from evalkit.source.expressions import Expressions
from evalkit.source.layers import apply_layer, build_layer, make_module
from evalkit.source.plain import dict_method, is_instance, items_of, list_method, math_function, plain_method, truth
from evalkit.source.symbols import Graph, Tensor
from evalkit.source.tensors import Tensors
from evalkit.source.values import (
    MAX_CALLS,
    Builtin,
    Class,
    Function,
    Library,
    Object,
    Parameter,
    Return,
    Scope,
    Stuck,
    Unknown,
)

_IGNORED_METHODS = frozenset({"_init_weights", "init_weights", "reset_parameters"})


class Calls(Expressions):
    """Works out calls.

    Attributes:
        graph: what tensors are computed by.
        environment: environment variables of the run, as far as they are known.
        variables: those that the script reads, and where.
        visits: blocks in the order in which the pass reached their attention.
        set_elsewhere: attributes that a run gives other values than constants, so that a default says nothing of them.
        run: follows statements.
    """

    run: Callable[[list[ast.stmt], Scope], None]

    def __init__(self, environment: Mapping[str, str], set_elsewhere: set[str]) -> None:
        self.graph = Graph()
        self.tensors = Tensors(self.graph, self._visited)
        self.globals = {"__name__": "script", "__file__": Unknown("__file__")}
        self.environment = dict(environment)
        self.variables: dict[str, int] = {}
        self.visits: list[int] = []
        self.set_elsewhere = set_elsewhere
        self.read: list[str] = []
        self._calls = 0
        self._stack: list[Object] = []

    def attribute(self, holder: Any, name: str, node: ast.AST) -> Any:
        """Work out ``holder.name``."""
        if isinstance(holder, Library):
            path = f"{holder.path}.{name}"
            return {"math.pi": math.pi, "math.e": math.e, "math.inf": math.inf}.get(path, Library(path))
        if isinstance(holder, Object):
            if name in holder.attributes:
                return holder.attributes[name]
            if name == "training":
                return False
            found = holder.cls.find(name) if holder.cls else None
            if isinstance(found, Function) and found.bound != "static":
                bound = replace(found, bound=holder)
                return self.call(bound, [], {}, node) if found.is_property else bound
            if found is not None or (holder.cls and name in holder.cls.attributes):
                return found
            return Builtin(name, holder)
        if isinstance(holder, Class):
            found = holder.find(name)
            return found if found is not None or name in holder.attributes else Unknown(name)
        if isinstance(holder, Tensor | Parameter):
            return self.tensors.attribute(holder, name)
        if isinstance(holder, list | tuple | dict | str | range | set | int | float):
            return Builtin(name, holder)
        return Unknown(name)

    def _super(self, node: ast.Call, scope: Mapping[str, Any]) -> Any:
        holder = scope.get("self")
        owner = scope.get("__class__")
        if not isinstance(holder, Object) or not isinstance(owner, Class) or not isinstance(node.func, ast.Attribute):
            return Unknown("super")
        arguments = self._elements(node.args, scope)
        keywords = {keyword.arg: self.value(keyword.value, scope) for keyword in node.keywords if keyword.arg}
        for base in owner.bases:
            if isinstance(base, Class) and isinstance(method := base.find(node.func.attr), Function):
                return self.call(replace(method, bound=holder), arguments, keywords, node)
            if isinstance(base, Library) and node.func.attr == "__init__":
                build_layer(holder, base.path, arguments, keywords)
            elif isinstance(base, Library) and node.func.attr == "forward":
                return apply_layer(self.tensors, holder, arguments, node)
        return None

    def call(self, function: Any, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        """Work out a call."""
        self.graph.line = getattr(node, "lineno", 0)
        if isinstance(function, Function):
            return self._call_function(function, arguments, keywords, node)
        if isinstance(function, Class):
            return self._make(function, arguments, keywords, node)
        if isinstance(function, Object):
            return self._call_object(function, arguments, keywords, node)
        if isinstance(function, Library):
            return self._call_library(function.path, arguments, keywords, node)
        if isinstance(function, Builtin):
            return self._call_builtin(function, arguments, keywords, node)
        return Unknown("a call")

    def _call_function(self, function: Function, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        line = getattr(node, "lineno", 0)
        definition = function.node
        if isinstance(definition, ast.FunctionDef) and definition.name in _IGNORED_METHODS:
            return None
        if self._calls >= MAX_CALLS:
            raise Stuck(line, "calls nested too deeply")
        spec = definition.args
        names = [argument.arg for argument in (*spec.posonlyargs, *spec.args)]
        if function.bound is not None and function.bound != "static":
            arguments = [function.bound, *arguments]
        if len(arguments) > len(names) and spec.vararg is None:
            raise Stuck(line, f"{len(arguments)} arguments for {len(names)}")
        given = dict(zip(names, arguments, strict=False))
        defaults = dict(zip(names[len(names) - len(spec.defaults) :], spec.defaults, strict=True))
        for argument, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
            names.append(argument.arg)
            if default is not None:
                defaults[argument.arg] = default
        if spec.vararg is not None:
            given[spec.vararg.arg] = tuple(arguments[len(given) :])
        given |= {name: value for name, value in keywords.items() if name in names}
        extra = {name: value for name, value in keywords.items() if name not in names}
        if spec.kwarg is not None:
            given[spec.kwarg.arg] = extra
        elif extra:
            raise Stuck(line, f"an argument {next(iter(extra))!r} that is not one")
        given |= {name: self.value(default, self.globals) for name, default in defaults.items() if name not in given}
        if function.owner is not None:
            given["__class__"] = function.owner
        scope = ChainMap(given, function.scope) if function.scope is not self.globals else given
        pushed = isinstance(function.bound, Object)
        self._calls += 1
        if pushed:
            self._stack.append(function.bound)
        try:
            if isinstance(definition, ast.Lambda):
                return self.value(definition.body, scope)
            self.run(definition.body, scope)
            return None
        except Return as returned:
            return returned.value
        finally:
            self._calls -= 1
            if pushed:
                self._stack.pop()

    def _make(self, cls: Class, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Object:
        made = Object(cls, cls.library_base())
        constructor = cls.find("__init__")
        if isinstance(constructor, Function):
            self._call_function(replace(constructor, bound=made), arguments, keywords, node)
        elif made.kind:
            build_layer(made, made.kind, arguments, keywords)
        else:
            made.attributes |= keywords
        return made

    def _call_object(self, holder: Object, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        method = holder.cls.find("forward") or holder.cls.find("__call__") if holder.cls else None
        if "cos_cached" in " ".join(holder.attributes) or (holder.cls and "rotary" in holder.cls.name.lower()):
            return self.rotary(holder, arguments, keywords, node)
        if isinstance(method, Function):
            return self._call_function(replace(method, bound=holder), arguments, keywords, node)
        return apply_layer(self.tensors, holder, arguments, node)

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
        spec = method.node.args
        wanted = len(spec.args) - 1 - len(spec.defaults)
        arguments = [length, *(Unknown("device or dtype") for _ in range(wanted - 1))]
        tables = self._call_function(replace(method, bound=fresh), arguments, {}, method.node)
        return tuple(tables) if isinstance(tables, tuple | list) else ()

    def _variable(self, name: Any, default: Any, node: ast.AST) -> Any:
        if not isinstance(name, str):
            return Unknown("an environment variable")
        self.read.append(name)
        self.variables.setdefault(name, getattr(node, "lineno", 0))
        return self.environment.get(name, default)

    def _call_library(self, path: str, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        name = path.rsplit(".", 1)[-1]
        if path in ("os.environ.get", "os.getenv"):
            default = arguments[1] if len(arguments) > 1 else keywords.get("default")
            return self._variable(arguments[0] if arguments else None, default, node)
        if path.startswith("math."):
            return math_function(name, arguments)
        if path.startswith("os.path.join") and all(isinstance(a, str) for a in arguments):
            return "/".join(arguments)
        if path.startswith("torch"):
            if ".nn.init." in path or name in ("manual_seed", "set_float32_matmul_precision"):
                return arguments[0] if arguments else None
            if ".nn." in path and name[:1].isupper():
                return make_module(path, name, arguments, keywords)
            return self.tensors.call(name, arguments, keywords, node)
        if "attn" in name and "func" in name:  # the flash attention packages
            return self.tensors.attention(arguments, keywords, node, causal=keywords.get("causal"))
        return Unknown(path)

    def _visited(self) -> None:
        for holder in reversed(self._stack):
            words = holder.name.split(".")
            if len(words) >= 2 and words[0] == "blocks" and words[1].isdigit():
                self.visits.append(int(words[1]))
                return

    def _call_builtin(self, function: Builtin, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        name, holder = function.name, function.bound
        if isinstance(holder, Tensor | Parameter):
            return self.tensors.function(name, [holder, *arguments], keywords, node)
        if isinstance(holder, Object):
            return self._object_method(holder, name, arguments)
        if isinstance(holder, list):
            return list_method(holder, name, arguments, node)
        if isinstance(holder, dict):
            return dict_method(holder, name, arguments)
        if isinstance(holder, str | int | float | tuple | range | set):
            return plain_method(holder, name, arguments)
        return self._function(name, arguments, keywords, node)

    def _object_method(self, holder: Object, name: str, arguments: list[Any]) -> Any:
        if name in ("register_buffer", "register_parameter", "add_module") and len(arguments) >= 2:
            holder.attributes[str(arguments[0])] = arguments[1]
            return None
        if name in ("to", "bfloat16", "float", "half", "eval", "cuda", "train", "requires_grad_"):
            return holder
        return Unknown(name)

    def _function(self, name: str, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
        if name == "getattr" and len(arguments) >= 2 and isinstance(arguments[1], str):
            holder, attribute = arguments[:2]
            if isinstance(holder, Object | Class) and len(arguments) == 3 and attribute not in holder.attributes:
                cls = holder.cls if isinstance(holder, Object) else holder
                if cls is None or cls.find(attribute) is None:
                    return Unknown(attribute) if attribute in self.set_elsewhere else arguments[2]
            return self.attribute(holder, attribute, node)
        if name == "hasattr" and len(arguments) == 2 and isinstance(arguments[0], Object):
            holder = arguments[0]
            return arguments[1] in holder.attributes or bool(holder.cls and holder.cls.find(str(arguments[1])))
        if name == "setattr" and len(arguments) == 3 and isinstance(arguments[0], Object):
            arguments[0].attributes[str(arguments[1])] = arguments[2]
            return None
        if name == "isinstance" and len(arguments) == 2:
            return is_instance(*arguments)
        if name == "print":
            return None
        if name in ("map", "filter") and len(arguments) == 2:
            items = items_of(arguments[1], node)
            results = [self.call(arguments[0], [item], {}, node) for item in items]
            return (
                results if name == "map" else [item for item, kept in zip(items, results, strict=True) if truth(kept)]
            )
        if name in ("list", "tuple", "sorted", "reversed", "set", "enumerate", "zip", "map", "filter", "iter"):
            return plain.sequence(name, arguments, keywords, node)
        return plain.function(name, arguments, keywords)
