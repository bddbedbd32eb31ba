"""Numbers, texts, lists and dicts of a script: what operators, methods and functions of the language make of them.

Everything is bounded: what would grow past the bounds of :mod:`evalkit.source.values` is :class:`Unknown`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from evalkit.source.values import (
    MAX_ITEMS,
    MAX_NUMBER,
    MAX_TEXT,
    PLAIN,
    Builtin,
    Class,
    Function,
    Library,
    Object,
    Stuck,
    Unknown,
    is_plain,
)

BUILTINS = frozenset(
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


def truth(value: Any) -> bool | None:
    """Return whether a condition holds; None where only a run would tell."""
    if isinstance(value, (list, tuple, range, dict, set, *PLAIN)):
        return bool(value)
    if isinstance(value, Object | Class | Function | Library | Builtin):
        return True
    return None


def items_of(value: Any, node: ast.AST) -> list[Any]:
    """Return what a loop over a value would meet.

    Raises:
        Stuck: only a run would tell, or it is too much.
    """
    if isinstance(value, dict):
        value = list(value)
    if not isinstance(value, list | tuple | range | str | set):
        raise Stuck(getattr(node, "lineno", 0), "a loop over something that only a run would tell")
    if len(value) > MAX_ITEMS:
        raise Stuck(getattr(node, "lineno", 0), f"a loop of {len(value):,} rounds")
    return list(value)


def binary(op: ast.operator, left: Any, right: Any) -> Any:
    """Return what an operation makes of two values, neither of them a tensor."""
    if isinstance(left, int | float) and isinstance(right, int | float):
        return number(op, left, right)
    if isinstance(op, ast.Add):
        for kind, most, word in ((list, MAX_ITEMS, "list"), (tuple, MAX_ITEMS, "tuple"), (str, MAX_TEXT, "text")):
            if isinstance(left, kind) and isinstance(right, kind):
                return operator.add(left, right) if len(left) + len(right) <= most else Unknown(f"a long {word}")
    if isinstance(op, ast.Mult) and isinstance(left, list | str) and isinstance(right, int):
        return left * right if len(left) * max(right, 0) <= MAX_ITEMS else Unknown("a long list")
    if isinstance(op, ast.BitOr) and isinstance(left, set) and isinstance(right, set):
        return left | right
    return Unknown("arithmetic")


def _attempt(what: str, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
    """Return what a function of the language gives; Unknown where it does not take these arguments."""
    try:
        return function(*arguments, **keywords)
    except (TypeError, ValueError, ArithmeticError):
        return Unknown(what)


def number(op: ast.operator, left: Any, right: Any) -> Any:
    """Return what an operation makes of two numbers."""
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
    if isinstance(value, complex) or (isinstance(value, int) and abs(value) > MAX_NUMBER):
        return Unknown("a number too large")
    return value


def compare(op: ast.cmpop, left: Any, right: Any) -> Any:
    """Return what a comparison of two values says, neither of them a tensor."""
    if isinstance(op, ast.Is | ast.IsNot):
        if isinstance(left, Unknown) or isinstance(right, Unknown):
            return Unknown("a comparison")
        same = left is right or (isinstance(left, bool | int) and type(left) is type(right) and left == right)
        return same is isinstance(op, ast.Is)
    if isinstance(op, ast.In | ast.NotIn):
        if is_plain(left) and isinstance(right, dict | set):
            return (left in right) is isinstance(op, ast.In)
        if is_plain(left) and isinstance(right, list | tuple | range | str) and is_plain(right):
            if isinstance(right, str) and not isinstance(left, str):
                return Unknown("membership")
            return (left in right) is isinstance(op, ast.In)
        return Unknown("membership")
    if is_plain(left) and is_plain(right):
        return _attempt("a comparison", _COMPARISONS[type(op)], left, right)
    return Unknown("a comparison")


def list_method(holder: list[Any], name: str, arguments: list[Any], node: ast.AST) -> Any:
    """Return what a method of a list gives, after doing it."""
    if len(holder) > MAX_ITEMS:
        raise Stuck(getattr(node, "lineno", 0), "a list that grows without end")
    if name == "pop":
        place = arguments[0] if arguments else -1
        if not isinstance(place, int) or not holder or not -len(holder) <= place < len(holder):
            raise Stuck(getattr(node, "lineno", 0), "it takes from an empty list")
    elif name == "extend" and arguments:
        arguments = [items_of(arguments[0], node)]
    elif name in ("index", "count") and arguments and is_plain(holder) and is_plain(arguments[0]):
        if name == "index" and arguments[0] not in holder:
            return Unknown("index")
    elif name not in ("append", "insert", "clear", "copy"):
        return Unknown(f"list.{name}")
    return _attempt(f"list.{name}", getattr(holder, name), *arguments)


def dict_method(holder: dict[Any, Any], name: str, arguments: list[Any]) -> Any:
    """Return what a method of a dict gives."""
    if name == "get" and arguments and isinstance(arguments[0], PLAIN):
        return holder.get(arguments[0], arguments[1] if len(arguments) > 1 else None)
    if name in ("items", "keys", "values"):
        return [tuple(pair) for pair in holder.items()] if name == "items" else list(getattr(holder, name)())
    return Unknown(f"dict.{name}")


def plain_method(holder: Any, name: str, arguments: list[Any]) -> Any:
    """Return what a method of a text, a tuple or a range gives."""
    allowed = {
        str: "split strip lower upper startswith endswith replace lstrip rstrip isdigit partition",
        tuple: "index count",
        range: "index count",
    }
    names = next((words for kind, words in allowed.items() if isinstance(holder, kind)), "").split()
    if name == "join" and isinstance(holder, str) and arguments and isinstance(arguments[0], list | tuple):
        parts = arguments[0]
        return holder.join(parts) if all(isinstance(part, str) for part in parts) else Unknown("join")
    if name not in names or not all(isinstance(a, PLAIN) for a in arguments):
        return Unknown(name)
    if name == "replace" and len(holder) * max(len(str(arguments[-1])), 1) > MAX_TEXT:
        return Unknown(name)
    return _attempt(name, getattr(holder, name), *arguments)


def math_function(name: str, arguments: list[Any]) -> Any:
    """Return what a function of ``math`` gives."""
    known = ("sqrt", "log", "exp", "floor", "ceil", "log2", "cos", "sin", "prod", "pow", "gcd")
    if name not in known or not all(isinstance(a, int | float) for a in arguments):
        return Unknown(f"math.{name}")
    return _attempt(f"math.{name}", getattr(math, name), *arguments)


def function(name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """Return what a function of the language makes of numbers, texts and sequences."""
    if name == "len" and arguments and isinstance(arguments[0], list | tuple | dict | str | range | set):
        return len(arguments[0])
    if name == "dict" and not arguments:
        return dict(keywords)
    if name in ("any", "all") and arguments and isinstance(arguments[0], list | tuple):
        truths = [truth(item) for item in arguments[0]]
        return Unknown(name) if None in truths else (any if name == "any" else all)(truths)
    if not all(map(is_plain, arguments)) or not all(map(is_plain, keywords.values())):
        return Unknown(name)
    if name == "range":
        made = _attempt(name, range, *arguments)
        return made if isinstance(made, Unknown) or len(made) <= MAX_ITEMS else Unknown("a long range")
    plain: dict[str, Callable[..., Any]] = {
        "int": int, "float": float, "bool": bool, "str": str, "max": max, "min": min, "abs": abs, "sum": sum,
        "round": round, "repr": repr, "divmod": divmod,
    }  # fmt: skip
    return _attempt(name, plain[name], *arguments, **keywords) if name in plain else Unknown(name)


def sequence(name: str, arguments: list[Any], keywords: dict[str, Any], node: ast.AST) -> Any:
    """Return what one of the functions that make a sequence of others gives."""
    lists = [items_of(argument, node) for argument in arguments]
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
        if not all(isinstance(item, PLAIN) for item in items):
            return Unknown(name)
        return set(items) if name == "set" else _attempt(name, sorted, items, reverse=keywords.get("reverse") is True)
    return items


def is_instance(value: Any, kind: Any) -> Any:
    """Return what ``isinstance`` says of a value, of the kinds that are known here."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = {"tuple": tuple, "list": list, "dict": dict, "int": int, "float": float, "str": str, "bool": bool}
    known = [names.get(k.name) if isinstance(k, Builtin) else None for k in kinds]
    if all(k is not None for k in known) and not isinstance(value, Unknown):
        return isinstance(value, tuple(known))  # type: ignore[arg-type]
    return Unknown("isinstance")
