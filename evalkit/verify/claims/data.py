"""Data: does the folder itself say that validation text went into the training text or the artifact."""

from __future__ import annotations

import re

from evalkit.verify.claim import CONTRADICTED, HOLDS, NOT_STATED, Claim, places
from evalkit.verify.known import DOCUMENTS
from evalkit.verify.statements import Folder, Place

_STORED = re.compile(
    r"(?:validation|\bval)[\w ]{0,20}\btokens?\b[^.]{0,40}\bstored\b|"
    r"stor(?:e|es|ed|ing)\b[^.]{0,40}\b(?:validation|val)[\w ]{0,12}\btokens?\b",
    re.I,
)
_TRAINED = re.compile(
    r"\b(?:train(?:s|ed|ing)?|fine-?tun\w+)\s+(?:only\s+|directly\s+|exclusively\s+)?on\s+(?:only\s+)?(?:the\s+)?(?:full\s+|entire\s+)?"
    r"(?:fineweb\s+|published\s+)?val(?:idation)?\s+(?:set|split|shards?|data|tokens|text)|"
    r"\bval(?:idation)?[- ]only (?:train|run|model|submission)",
    re.I,
)
_ADAPTS = re.compile(r"test[- ]time|\bTTT\b|adapt|already|score|causal|legal|rule|allowed|eval-only|proxy", re.I)
_DENIED = re.compile(
    r"\b(?:no|not|never|without|nor|avoid\w*|forbid\w*|prohibit\w*|illegal|ban\w*|\w+n['’]t|cannot|instead of)\b", re.I
)
_VAL_DOCS = re.compile(r"val[-_]docs\D{0,24}?(\d[\d_,]*)", re.I)


def check_data(folder: Folder) -> list[Claim]:
    """Return whether the folder's own words or preparation put validation text where it must not be."""
    if claim := _overlap(folder):
        return [claim]
    for text in folder.texts:
        if not text.file.rpartition("/")[2].lower().startswith("readme"):
            continue
        for index, line in enumerate(text.lines):
            for pattern, words in ((_STORED, "in the artifact"), (_TRAINED, "in training")):
                if pattern is _TRAINED and _ADAPTS.search(line):
                    continue
                if (m := pattern.search(line)) and not _DENIED.search(line[max(0, m.start() - 80) : m.end() + 40]):
                    said = f"the folder says that validation text is used {words}"
                    return [Claim("data", CONTRADICTED, said, None, m.group(), (text.place(index),))]
    shards = _shards(folder)
    if shards:
        value, place = shards[0]
        said = f"trained on {value} shards; nothing in the folder says that they hold validation text"
        return [Claim("data", HOLDS, said, None, value, (place,))]
    return [Claim("data", NOT_STATED, "no log says what it was trained on")]


def _shards(folder: Folder) -> list[tuple[str, Place]]:
    keys = ("train_shards", "train_loader")
    return [run.settings[key] for run in folder.runs for key in keys if key in run.settings]


def _overlap(folder: Folder) -> Claim | None:
    """Return a contradiction where data was prepared here with 10,000 validation documents but scored on 50,000.

    The other 40,000 documents of the scored set are then in the training shards.
    """
    full = [r.tokens for r in folder.runs if r.tokens and r.tokens.value in (47_851_520.0, 47_853_343.0)]
    if not full:
        return None
    stated = [
        (_count(m.group(1)), text.place(index))
        for text in folder.texts
        for index, line in enumerate(text.lines)
        for m in _VAL_DOCS.finditer(line)
    ]
    told = [(leaf.value, leaf.place) for leaf in folder.declared.leaves if isinstance(leaf.value, str)]
    stated += [(_count(m.group(1)), place) for words, place in told for m in _VAL_DOCS.finditer(words)]
    local = [(v, p) for v, p in _shards(folder) if v.isdigit() and int(v) > 1000]
    if any(n >= DOCUMENTS for n, _ in stated):
        return None
    if words := next(((n, p) for n, p in stated if n == 10_000 and "train" in p.text.lower()), None):
        return _overlapping(words[0], places(words[1], full[0]))
    default: list[tuple[int, Place]] = []
    for file, source in folder.scripts.items():
        for index, line in enumerate(source.split("\n")):
            if "val-docs" in line and (m := re.search(r"default\s*=\s*(\d[\d_]*)", line)):
                default.append((_count(m.group(1)), Place(file, index + 1, line.strip()[:300])))
    if not local or not default or default[0][0] >= DOCUMENTS:
        return None
    return _overlapping(default[0][0], places(default[0][1], local[0][1], full[0]))


def _count(digits: str) -> int:
    return int(re.sub(r"\D", "", digits) or 0)


def _overlapping(docs: int, lines: tuple[Place, ...]) -> Claim:
    said = (
        f"the training shards were prepared with {docs:,} validation documents held out, and the score is over 50,000: "
        f"{DOCUMENTS - docs:,} of them are training text, unless they were taken out in a way that is nowhere stated"
    )
    return Claim("data", CONTRADICTED, said, DOCUMENTS, docs, lines)
