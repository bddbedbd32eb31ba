"""Put a mark in place of f-strings, for Pythons before 3.12, which cannot parse quotes of one kind inside them."""

from __future__ import annotations

import re

MARK = "\ufffdf-string\ufffd"
"""What an f-string becomes; a reader takes it for a text that is not known."""

_WORD_OR_QUOTE = re.compile(r"#[^\n]*|[^\W\d]\w*|'''|\"\"\"|'|\"")
_QUOTE = re.compile(r"'''|\"\"\"|'|\"")
_WORD = re.compile(r"[^\W\d]\w*")
_PREFIXES = frozenset(("r", "u", "b", "f", "br", "rb", "fr", "rf"))
_MAX_DEPTH = 20


def blank_f_strings(text: str) -> str:
    """Return a script with every f-string replaced by a plain string of the same number of lines.

    Raises:
        ValueError: a string is not closed, or f-strings are nested too deeply.
    """
    pieces: list[str] = []
    position = 0
    while match := _WORD_OR_QUOTE.search(text, position):
        start = match.start()
        found = _string_at(text, start)
        if found is None:
            pieces.append(text[position : match.end()])
            position = match.end()
            continue
        prefix, quote, inside = found
        is_f = "f" in prefix
        end = _end_of_f_string(text, inside, quote, 0) if is_f else _end_of_string(text, inside, quote)
        literal = text[start:end]
        pieces.append(text[position:start])
        pieces.append(f' """{MARK}' + "\n" * literal.count("\n") + '"""' if is_f else literal)
        position = end
    pieces.append(text[position:])
    return "".join(pieces)


def _string_at(text: str, position: int) -> tuple[str, str, int] | None:
    """Return prefix and quote of the string that starts at a position, and where its content starts."""
    match = _WORD_OR_QUOTE.match(text, position)
    if match is None or match.group(0).startswith("#"):
        return None
    if _QUOTE.fullmatch(match.group(0)):
        return "", match.group(0), match.end()
    quote = _QUOTE.match(text, match.end())
    if quote is None or match.group(0).lower() not in _PREFIXES:
        return None
    return match.group(0).lower(), quote.group(0), quote.end()


def _end_of_string(text: str, position: int, quote: str) -> int:
    while position < len(text):
        if text[position] == "\\":
            position += 2
        elif text.startswith(quote, position):
            return position + len(quote)
        else:
            position += 1
    raise ValueError("a string is not closed")


def _end_of_f_string(text: str, position: int, quote: str, depth: int) -> int:
    if depth > _MAX_DEPTH:
        raise ValueError("f-strings are nested too deeply")
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
        elif text.startswith(quote, position):
            return position + len(quote)
        elif text.startswith("{{", position) or text.startswith("}}", position):
            position += 2
        elif character == "{":
            position = _end_of_field(text, position + 1, depth)
        else:
            position += 1
    raise ValueError("an f-string is not closed")


def _end_of_field(text: str, position: int, depth: int) -> int:
    """Return where the ``{...}`` of an f-string ends, past its brace."""
    open_brackets = 1
    while position < len(text):
        if found := _string_at(text, position):
            prefix, quote, inside = found
            if "f" in prefix:
                position = _end_of_f_string(text, inside, quote, depth + 1)
            else:
                position = _end_of_string(text, inside, quote)
            continue
        if match := _WORD.match(text, position):
            position = match.end()
            continue
        open_brackets += (text[position] in "{[(") - (text[position] in "}])")
        position += 1
        if open_brackets == 0:
            return position
    raise ValueError("an f-string is not closed")
