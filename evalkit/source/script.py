"""Read a training script as text and as a syntax tree. Nothing in it is ever executed.

The usual wrappers, ``exec(lzma.decompress(base64.b85decode("...")))`` and its relatives, are undone here; what they may
inflate to is bounded, as are the size and the nesting of what is parsed.
"""

from __future__ import annotations

import ast
import base64
import binascii
import io
import lzma
import os
import stat
import sys
import tokenize
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import brotli

from evalkit.plumbing.errors import InputError
from evalkit.source.fstrings import blank_f_strings

MAX_SCRIPT_BYTES = 2 * 2**20
"""Bound on a script, wrapped or not. The longest published one has 160 kB."""

MAX_LOG_BYTES = 64 * 2**20
_MAX_WRAPPERS = 3
_MAX_DEPTH = 120
_MAX_LINKS = 2000
_MAX_LITERAL_DIGITS = 400
_XZ_MEMORY = 2**27


@dataclass(frozen=True, kw_only=True)
class Script:
    """A script: the name to quote lines by, its text after unwrapping, and its tree."""

    label: str
    text: str
    tree: ast.Module


def read_bounded(path: str, what: str, limit: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        InputError: there is no such file, it is a folder, a pipe or a device, or it is larger than ``limit``.
    """
    try:
        # A pipe must not make us wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{what} {path[:200]!r} cannot be read ({reason}); expected a file") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{what} {path} is not a regular file; expected a file")
        if status.st_size > limit:
            raise InputError(f"{what} {path} has {status.st_size:,} bytes; expected at most {limit:,}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise InputError(f"{what} {path} has more than {limit:,} bytes")
    return data


def read_script(path: str) -> Script:
    """Read and parse a script, and undo its wrappers.

    Raises:
        InputError: it cannot be read, is no Python, is too large or too deep, or its wrapper is damaged or unknown.
    """
    return unwrap(read_bounded(path, "--source", MAX_SCRIPT_BYTES), path)


def unwrap(data: bytes, path: str) -> Script:
    """Parse the content of the script at ``path``, and undo its wrappers.

    Raises:
        InputError: it is no Python, is too large or too deep, or its wrapper is damaged or unknown.
    """
    label = Path(path).name
    for _ in range(_MAX_WRAPPERS + 1):
        text = _decode(data, path)
        tree = parse(text, path)
        payload = _wrapped(tree, path)
        if payload is None:
            return Script(label=label, text=text, tree=tree)
        data, label = payload, f"{Path(path).name} (unwrapped)"
    raise InputError(f"--source {path} is wrapped more than {_MAX_WRAPPERS} times; give the script itself")


def _decode(data: bytes, path: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--source {path} is not UTF-8 text (byte {error.start}); expected a Python script") from None
    if "\0" in text:
        raise InputError(f"--source {path} holds a null byte; expected a Python script")
    return text


def parse(text: str, path: str) -> ast.Module:
    """Parse Python text whose nesting is bounded, so that no text can exhaust the stack.

    Raises:
        InputError: it is no Python, or is nested too deeply.
    """
    try:
        _check_nesting(text, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in a stranger's script are not the user's concern
            try:
                return ast.parse(text)
            except SyntaxError as error:
                if sys.version_info >= (3, 12) or "f-string" not in str(error.msg):
                    raise
                return ast.parse(blank_f_strings(text))
    except SyntaxError as error:  # also tokenize.TokenError's sibling for indentation
        raise InputError(f"--source {path} is no Python: line {error.lineno}: {error.msg}"[:300]) from None
    except (tokenize.TokenError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise InputError(f"--source {path} cannot be parsed ({type(error).__name__}: {error})"[:300]) from None


def _check_nesting(text: str, path: str) -> None:
    """Bound what the parser recurses on: brackets, and operators chained without a bracket, comma or semicolon."""
    depth = links = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        word = token.string
        if token.type == tokenize.NUMBER and len(word) > _MAX_LITERAL_DIGITS:
            raise InputError(f"--source {path} holds a number of {len(word):,} digits on line {token.start[0]}")
        if token.type == tokenize.OP or word in ("not", "lambda", "if", "else", "await", "and", "or", "in", "is"):
            if word in "([{" and word:
                depth += 1
            elif word in ")]}" and word:
                depth -= 1
            elif word in (",", ";") and depth == 0:
                links = 0
            links += word not in (",", ";", ":", "=")
        elif token.type == tokenize.NEWLINE:
            links = 0
        if depth > _MAX_DEPTH or links > _MAX_LINKS:
            raise InputError(
                f"--source {path} is nested too deeply on line {token.start[0]} "
                f"({'brackets' if depth > _MAX_DEPTH else 'operators'}); expected a training script"
            )


def _wrapped(tree: ast.Module, path: str) -> bytes | None:
    """Return what the script executes, or None if it is not wrapped."""
    calls = [
        statement.value
        for statement in tree.body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    ]
    executed = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "exec" and call.args]
    if not executed:
        return None
    if any(isinstance(node, ast.ClassDef | ast.FunctionDef) for node in tree.body):
        return None  # the script is its own; an exec beside it is not its wrapper
    names = _imports(tree) | {
        target.id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    payload = _Unwrapper(names, path).value(executed[0].args[0])
    if isinstance(payload, str):
        payload = payload.encode()
    if not isinstance(payload, bytes):
        raise _unknown(executed[0], path)
    return payload


def _imports(tree: ast.Module) -> dict[str, object]:
    names: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _unknown(node: ast.AST, path: str) -> InputError:
    shown = ast.unparse(node)[:120]
    return InputError(
        f"--source {path} is wrapped in a way that evalkit does not undo "
        f"(line {getattr(node, 'lineno', '?')}: {shown}); give the script that it executes"
    )


@dataclass(frozen=True)
class _Unwrapper:
    """Works out decoding expressions, and nothing else."""

    names: dict[str, object]
    path: str

    def value(self, node: ast.AST, depth: int = 0) -> object:
        if depth > 20:
            raise _unknown(node, self.path)
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name) and isinstance(self.names.get(node.id), ast.AST):
            return self.value(self.names[node.id], depth + 1)  # type: ignore[arg-type]
        if isinstance(node, ast.Call):
            return self._call(node, depth)
        raise _unknown(node, self.path)

    def _call(self, node: ast.Call, depth: int) -> object:
        function = self._name(node.func)
        if function is None and isinstance(node.func, ast.Attribute) and node.func.attr in ("decode", "encode"):
            content = self.value(node.func.value, depth + 1)
            if isinstance(content, bytes | str):
                return content
        if function is None or not node.args:
            raise _unknown(node, self.path)
        if function == "compile":
            return self.value(node.args[0], depth + 1)
        content = self.value(node.args[0], depth + 1)
        if isinstance(content, str):
            content = content.encode()
        if not isinstance(content, bytes):
            raise _unknown(node, self.path)
        try:
            if (decode := _DECODERS.get(function)) is not None:
                return decode(content)
            if function == "lzma.decompress":
                return self._lzma(content, node)
            if function == "zlib.decompress":
                return _bounded(zlib.decompressobj(), content)
            if function == "brotli.decompress":
                return _inflate_brotli(content)
        except (ValueError, binascii.Error, zlib.error, lzma.LZMAError, EOFError, MemoryError) as error:
            raise InputError(f"--source {self.path}: its wrapper is damaged ({function}: {error})"[:300]) from None
        raise _unknown(node, self.path)

    def _lzma(self, content: bytes, node: ast.Call) -> bytes:
        form: dict[str, object] = {"format": lzma.FORMAT_AUTO, "memlimit": _XZ_MEMORY}
        if any(keyword.arg in ("filters", "format") for keyword in node.keywords):
            text = "".join(ast.unparse(keyword.value) for keyword in node.keywords)
            if "FORMAT_RAW" not in text or "FILTER_LZMA2" not in text or "dict_size" in text:
                raise _unknown(node, self.path)
            # The dictionary that no raw stream states: a preset's is enough for what is bounded by 2 MiB.
            form = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2}]}
        return _bounded(lzma.LZMADecompressor(**form), content)  # type: ignore[arg-type]

    def _name(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Name):
            found = self.names.get(node.id, node.id)
            return found if isinstance(found, str) else None
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Call):
                inner = node.value.func
                if isinstance(inner, ast.Name) and inner.id == "__import__" and node.value.args:
                    module = node.value.args[0]
                    return f"{module.value!s}.{node.attr}" if isinstance(module, ast.Constant) else None
                return None
            base = self._name(node.value)
            return f"{base}.{node.attr}" if base else None
        return None


_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "base64.b85decode": base64.b85decode,
    "base64.a85decode": base64.a85decode,
    "base64.b64decode": base64.b64decode,
    "base64.standard_b64decode": base64.b64decode,
    "bytes.fromhex": lambda content: bytes.fromhex(content.decode("ascii")),
}


def _bounded(decompressor: object, content: bytes) -> bytes:
    """Inflate at most ``MAX_SCRIPT_BYTES``.

    Raises:
        ValueError: there is more.
    """
    output = decompressor.decompress(content, MAX_SCRIPT_BYTES + 1)  # type: ignore[attr-defined]
    return _whole(output, decompressor.eof)  # type: ignore[attr-defined]


def _inflate_brotli(content: bytes) -> bytes:
    """Inflate brotli as :func:`_bounded` does the others."""
    decompressor, bound = brotli.Decompressor(), MAX_SCRIPT_BYTES + 1
    try:
        output = decompressor.process(content, output_buffer_limit=bound)
        while not decompressor.can_accept_more_data() and len(output) < bound:
            output += decompressor.process(b"", output_buffer_limit=bound)
    except brotli.error as error:
        raise ValueError(f"the brotli stream is damaged ({error})") from None
    return _whole(output, decompressor.is_finished())


def _whole(output: bytes, finished: bool) -> bytes:
    if len(output) > MAX_SCRIPT_BYTES:
        raise ValueError(f"it inflates past {MAX_SCRIPT_BYTES:,} bytes")
    if not finished:
        raise ValueError("the compressed script is cut short")
    return output
