"""What the training script says, read as text: unwrapped where it is a compressed wrapper, and never executed."""

from __future__ import annotations

import ast
import base64
import lzma
import re
import zlib
from collections.abc import Iterator

from evalkit.verify.statements import Script

MAX_SOURCE = 4 << 20
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 4 << 20}]  # the preset's own dictionary would take 670 MB


def read_script(files: dict[str, int], scripts: dict[str, bytes]) -> Script | None:
    """Return the script that ships: ``train_gpt.py`` at the top, else the training script nearest to it.

    Args:
        files: sizes of all files.
        scripts: contents of the ``.py`` files.
    """
    names = [f for f in scripts if re.search(r"train|main|submission|run", f.rpartition("/")[2], re.I)]
    name = min(
        names,
        key=lambda f: (f != "train_gpt.py", f.count("/"), "train_gpt" not in f, "human" in f or "readable" in f, f),
        default=None,
    )
    if name is None:
        return None
    content = scripts[name]
    source = unwrap(content)
    beside = [f for f in scripts if f != name and f.rpartition("/")[2] in content.decode("utf-8", "replace")]
    hidden = [(f, files[f]) for f in beside if len(content) < 2_000 and b"exec" in content]
    return Script(name, files[name], len(lzma.compress(content, filters=_XZ)), source, tuple(hidden))


def unwrap(content: bytes, depth: int = 3) -> str:
    """Return the Python source; a wrapper's compressed payload is opened within 4 MiB, at most three deep."""
    text = content[:MAX_SOURCE].decode("utf-8", errors="replace")
    if depth == 0 or len(text) < 200 or not re.search(r"exec|lzma|zlib|brotli|b85|b64", text[:3000] + text[-3000:]):
        return text
    longest = max(
        re.finditer(r"""(['"])((?:(?!\1)[^\\\n]|\\.){1000,})\1""", text), key=lambda m: len(m.group(2)), default=None
    )
    if longest is None or len(longest.group(2)) < 0.5 * len(text):
        return text
    try:
        literal = ast.literal_eval(longest.group())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    for decode in (base64.b85decode, base64.b64decode, base64.a85decode):
        try:
            packed = decode(literal)
        except ValueError:
            continue
        for opened in _open(packed):
            if b"import" in opened or b"def " in opened or b"exec" in opened:
                return unwrap(opened, depth - 1)
    return text


def _open(packed: bytes) -> Iterator[bytes]:
    raw = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    for make in (
        lzma.LZMADecompressor,
        lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=raw),
    ):
        try:
            yield make().decompress(packed, max_length=MAX_SOURCE)
        except (lzma.LZMAError, EOFError, ValueError):
            continue
    for bits in (15, -15, 31):
        try:
            yield zlib.decompressobj(bits).decompress(packed, MAX_SOURCE)
        except zlib.error:
            continue


def byte_constants(source: str) -> list[tuple[int, str, float]]:
    """Return (line, expression, constant) where a score in bits per byte is divided by a constant of bytes per token.

    A count of the text's own bytes has no such constant: ``loss / (math.log(2) * 3.5)`` does.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id.lower(), node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            name, value = node.target.id.lower(), node.value
        else:
            continue
        if "bpb" not in name and "bits_per_byte" not in name:
            continue
        for part in ast.walk(value):
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Div):
                found += [
                    (node.lineno, ast.unparse(node)[:200], c)
                    for c in _factors(part.right)
                    if 1.5 < c < 8 and c != int(c)
                ]
    return found


def _factors(node: ast.expr) -> list[float]:
    if isinstance(node, ast.Constant) and isinstance(node.value, float):
        return [node.value]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _factors(node.left) + _factors(node.right)
    return []
