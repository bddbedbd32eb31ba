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
    # Of a list the next index, of an object the key, which is None until it is read.
    stack: list[int | str | None] = []

    def done() -> None:
        if stack:
            stack[-1] = None if isinstance(place := stack[-1], str | None) else place + 1

    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in "{[":
            if len(stack) >= MAX_DEPTH:
                return leaves, "it is nested too deeply"
            stack.append(0 if token == "[" else None)
        elif token in "}]":
            if stack:
                stack.pop()
                done()
            if not stack:
                break
        elif token in ":,":
            continue
        elif stack and stack[-1] is None:
            if token.startswith('"'):
                stack[-1] = _string(token)
        elif stack:
            is_number = token not in _WORDS and not token.startswith('"')
            line = bisect_right(starts, match.start()) - 1
            end = starts[line + 1] if line + 1 < len(starts) else len(text)
            quoted = text[starts[line] : end].strip()
            if len(quoted) > TEXT_CHARACTERS:
                first = match.start() - 60
                quoted = text[max(starts[line], first) : min(end, first + TEXT_CHARACTERS)].strip()
            decimals = _decimals(token) if is_number else 0
            leaves.append(Leaf(tuple(map(str, stack)), _value(token), decimals, Place(file, line + 1, quoted)))
            done()
        if len(leaves) > MAX_LEAVES:
            return leaves, f"it holds more than {MAX_LEAVES:,} values"
    return leaves, problem


def _value(token: str) -> str | float | bool | None:
    if token in _WORDS:
        return _WORDS[token]
    if token.startswith('"'):
        return _string(token)
    number = float(token)
    return number if math.isfinite(number) else token


def _string(token: str) -> str:
    try:
        return str(json.loads(token, strict=False))
    except ValueError:
        return token[1:-1]


def _decimals(token: str) -> int:
    mantissa, _, exponent = token.lower().partition("e")
    # A number that was rounded and printed with more places ends in zeros.
    return max(0, len(mantissa.partition(".")[2].rstrip("0")) - int(exponent[:6] or 0))
