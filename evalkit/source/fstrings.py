"""Put a mark in place of f-strings, for Pythons before 3.12, which cannot parse quotes of one kind inside them."""

from __future__ import annotations

import re

MARK = "\ufffdf-string\ufffd"
"""What an f-string becomes; a reader takes it for a text that is not known."""

_TOKEN = re.compile(r"#[^\n]*|(?P<prefix>r|u|b|f|br|rb|fr|rf)?(?P<quote>'''|\"\"\"|'|\")|[^\W\d]\w*", re.IGNORECASE)
"""A comment, the beginning of a string, or a word."""

_MAX_DEPTH = 20


def blank_f_strings(text: str) -> str:
    """Return a script with every f-string replaced by a plain string of the same number of lines.

    Raises:
        ValueError: a string is not closed, or f-strings are nested too deeply.
    """
    pieces: list[str] = []
    position = 0
    while match := _TOKEN.search(text, position):
        end = _end_of(match, 0)
        literal = text[match.start() : end]
        blank = f' """{MARK}' + "\n" * literal.count("\n") + '"""'
        pieces += [text[position : match.start()], blank if _is_f(match) else literal]
        position = end
    return "".join([*pieces, text[position:]])


def _is_f(match: re.Match[str]) -> bool:
    return "f" in (match["prefix"] or "").lower()


def _end_of(match: re.Match[str], depth: int) -> int:
    """Return where a comment, a word, or the string that begins here ends."""
    text, position, is_f = match.string, match.end(), _is_f(match)
    if not match["quote"]:
        return position
    if is_f and depth > _MAX_DEPTH:
        raise ValueError("f-strings are nested too deeply")
    while position < len(text):
        if text[position] == "\\":
            position += 2
        elif text.startswith(match["quote"], position):
            return position + len(match["quote"])
        elif is_f and text.startswith(("{{", "}}"), position):
            position += 2
        elif is_f and text[position] == "{":
            position = _end_of_field(text, position + 1, depth)
        else:
            position += 1
    raise ValueError(f"{'an f-string' if is_f else 'a string'} is not closed")


def _end_of_field(text: str, position: int, depth: int) -> int:
    """Return where the ``{...}`` of an f-string ends, past its brace."""
    open_brackets = 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match and not match[0].startswith("#"):  # which is no comment there, but a format
            position = _end_of(match, depth + 1)
            continue
        open_brackets += (text[position] in "{[(") - (text[position] in "}])")
        position += 1
        if open_brackets == 0:
            return position
    raise ValueError("an f-string is not closed")
