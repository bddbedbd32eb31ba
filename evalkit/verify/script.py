"""What the training script says, read as text: unwrapped where it is a compressed wrapper, and never executed."""

from __future__ import annotations

import ast
import lzma
import re

from evalkit.plumbing.errors import InputError
from evalkit.source.script import MAX_SCRIPT_BYTES
from evalkit.source.script import unwrap as undo
from evalkit.verify.statements import Script

MAX_SOURCE = 4 << 20
_BPB = re.compile(r"bpb|bits_per_byte", re.I)
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 4 << 20}]  # the preset's own dictionary would take 670 MB


def read_script(files: dict[str, int], scripts: dict[str, bytes]) -> Script | None:
    """Return the script that ships: ``train_gpt.py`` at the top, else the training script nearest to it.

    ``files`` holds the sizes of all files, ``scripts`` the contents of the ``.py`` files.
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
    source = unwrap(name, content)
    beside = [f for f in scripts if f != name and f.rpartition("/")[2] in content.decode("utf-8", "replace")]
    hidden = [(f, files[f]) for f in beside if len(content) < 2_000 and b"exec" in content]
    return Script(name, files[name], len(lzma.compress(content, filters=_XZ)), source, tuple(hidden))


def unwrap(name: str, content: bytes) -> str:
    """Return the Python source, as text: what a wrapper executes, where it is one that evalkit undoes."""
    if len(content) <= MAX_SCRIPT_BYTES and b"exec" in content:
        try:
            return undo(content, name).text
        except InputError:  # a wrapper of another kind, or no Python: what is there can still be read
            pass
    return content[:MAX_SOURCE].decode("utf-8", errors="replace")


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
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if len(targets) > 1 or not isinstance(targets[0], ast.Name) or not _BPB.search(targets[0].id):
            continue
        for part in ast.walk(node.value):
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
