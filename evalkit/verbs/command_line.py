"""The command line that repeats a score, from the options of the score: for reports, submissions and interrupts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evalkit.verbs.options import ScoreOptions
    from evalkit.verbs.session import Session

_NAMES_A_FILE = {
    "--module",
    "--weights",
    "--tokenizer",
    "--token-bytes",
    "--tokens",
    "--text",
    "--source",
    "--log",
    "--code",
}
"""Options of ``score`` whose value is, or begins with, the path of a file."""

_ALWAYS = {"stride", "mixer", "dtype"}
"""Options that decide the score, and that are written down even where they are the defaults of this version."""


def score_words(session: Session) -> tuple[str, ...] | None:
    """Return ``evalkit score ...`` with every option of a session's score, and what was left open as it was settled.

    Returns:
        The words, or None where the model is an object of Python's, which no command line can name.
    """
    options, window = session.options, session.sliding
    if options.module is not None and not isinstance(options.module, str):
        return None
    if window is not None:
        dtype = "auto" if window.dtype == "own" else window.dtype  # "auto" finds a module's own type again
        options = replace(options, seq_len=window.seq_len, stride=window.stride, dtype=dtype, device=window.device)
    return ("evalkit", "score", *_words(options))


def _words(options: ScoreOptions) -> list[str]:
    words = [] if options.artifact is None else [options.artifact]
    words += [] if options.has_model else ["--no-model"]
    for field in fields(options):
        value, name = getattr(options, field.name), "--" + field.name.replace("_", "-")
        is_default = value == field.default and field.name not in _ALWAYS
        if field.name in ("artifact", "settings") or value is None or value is False or is_default:
            continue
        if value is True:
            words.append(name)
            continue
        for item in value if isinstance(value, tuple) else (value,):
            words += [name, str(item)]
    for section, values in options.settings.items():
        for key, value in values.items():
            words += ["--set", f"{section}.{key}={value}"]
    return words


def without_folders(words: Sequence[str]) -> list[str]:
    """Return a command line with bare file names: where the files lie on this machine is nobody's business."""
    bare = list(words)
    for i, word in enumerate(words):
        is_artifact = i == 2 and not word.startswith("-")
        if is_artifact or words[i - 1] in _NAMES_A_FILE:
            bare[i] = PurePath(word).name
    return bare
