"""The values of a JSON file with their lines: a scanner that also reads on where a comma is missing."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right

from evalkit.verify.statements import TEXT_CHARACTERS, Leaf, Place

MAX_LEAVES = 20_000
MAX_DEPTH = 64

_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|[{}\[\]:,]',
)
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}


def read_leaves(file: str, text: str) -> tuple[list[Leaf], str | None]:
    """Return the values of a JSON text in order, and why the text is not JSON (None where it is).

    Nothing is evaluated; depth and number of values are bounded, so that a nested file costs no more than its bytes.
    """
    problem = None
    if len(text) > 4_000_000:
        return [], "it is over 4 MB"
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    starts = [0, *(m.end() for m in re.finditer("\n", text))]
    leaves: list[Leaf] = []
    # A frame is [is a list, key or next index]; the key of an object is None until it is read.
    stack: list[tuple[bool, list[str | None]]] = []

    def add(value: str | float | bool | None, decimals: int, offset: int) -> None:
        line = bisect_right(starts, offset) - 1
        end = starts[line + 1] if line + 1 < len(starts) else len(text)
        quoted = text[starts[line] : end].strip()
        if len(quoted) > TEXT_CHARACTERS:
            quoted = text[max(starts[line], offset - 60) : min(end, offset + TEXT_CHARACTERS - 60)].strip()
        path = tuple(str(frame[1][0]) for frame in stack)
        leaves.append(Leaf(path, value, decimals, Place(file, line + 1, quoted)))

    def done() -> None:
        if stack:
            is_list, key = stack[-1]
            key[0] = str(int(key[0] or 0) + 1) if is_list else None

    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in "{[":
            if len(stack) >= MAX_DEPTH:
                return leaves, "it is nested too deeply"
            stack.append((token == "[", ["0" if token == "[" else None]))
        elif token in "}]":
            if stack:
                stack.pop()
                done()
            if not stack:
                break
        elif token in ":,":
            continue
        elif stack and not stack[-1][0] and stack[-1][1][0] is None:
            if token.startswith('"'):
                stack[-1][1][0] = _string(token)
        elif stack:
            if token.startswith('"'):
                add(_string(token), 0, match.start())
            elif token in _WORDS:
                add(_WORDS[token], 0, match.start())
            else:
                value = float(token)
                add(value if math.isfinite(value) else token, _decimals(token), match.start())
            done()
        if len(leaves) > MAX_LEAVES:
            return leaves, f"it holds more than {MAX_LEAVES:,} values"
    return leaves, problem


def _string(token: str) -> str:
    try:
        return str(json.loads(token, strict=False))
    except ValueError:
        return token[1:-1]


def _decimals(token: str) -> int:
    mantissa, _, exponent = token.lower().partition("e")
    # A number that was rounded and printed with more places ends in zeros.
    return max(0, len(mantissa.partition(".")[2].rstrip("0")) - int(exponent[:6] or 0))
