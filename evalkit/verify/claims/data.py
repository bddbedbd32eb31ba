"""Data: does the folder itself say that validation text went into the training text or the artifact."""

from __future__ import annotations

import re

from evalkit.verify.claim import CONTRADICTED, HOLDS, NOT_STATED, Claim, places
from evalkit.verify.statements import Folder, Place

_STORED = re.compile(
    r"(?:validation|\bval)[\w ]{0,20}\btokens?\b[^.]{0,40}\bstored\b|stor(?:e|es|ed|ing)\b[^.]{0,40}\b(?:validation|val)[\w ]{0,12}\btokens?\b",
    re.I,
)
_TRAINED = re.compile(
    r"\b(?:train(?:s|ed|ing)?|fine-?tun\w+)\s+(?:only\s+|directly\s+|exclusively\s+)?on\s+(?:only\s+)?(?:the\s+)?(?:full\s+|entire\s+)?"
    r"(?:fineweb\s+|published\s+)?val(?:idation)?\s+(?:set|split|shards?|data|tokens|text)|\bval(?:idation)?[- ]only (?:train|run|model|submission)",
    re.I,
)
_ADAPTS = re.compile(r"test[- ]time|\bTTT\b|adapt|already|score|causal|legal|rule|allowed|eval-only|proxy", re.I)
_DENIED = re.compile(r"\b(?:no|not|never|without|nor|avoid\w*|forbid\w*|prohibit\w*|illegal|ban\w*|\w+n['’]t|cannot|instead of)\b", re.I)
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
                    return [Claim("data", CONTRADICTED, f"the folder says that validation text is used {words}", None, m.group(), (text.place(index),))]
    shards = _shards(folder)
    if shards:
        value, place = shards[0]
        return [Claim("data", HOLDS, f"trained on {value} shards; nothing in the folder says that they hold validation text", None, value, (place,))]
    return [Claim("data", NOT_STATED, "no log says what it was trained on")]


def _shards(folder: Folder) -> list[tuple[str, Place]]:
    found = []
    for run in folder.runs:
        for key in ("train_shards", "train_loader"):
            if key in run.settings:
                found.append(run.settings[key])
    return found


def _overlap(folder: Folder) -> Claim | None:
    """Return a contradiction where data was prepared here with 10,000 validation documents but scored on 50,000.

    The other 40,000 documents of the scored set are then in the training shards.
    """
    full = [r.tokens for r in folder.runs if r.tokens and r.tokens.value in (47_851_520.0, 47_853_343.0)]
    local = [(v, p) for v, p in _shards(folder) if v.isdigit() and int(v) > 1000]
    if not full or not local:
        return None
    stated: list[tuple[int, Place]] = []
    default: list[tuple[int, Place]] = []
    for text in folder.texts:
        for index, line in enumerate(text.lines):
            stated += [(int(re.sub(r"\D", "", m.group(1))), text.place(index)) for m in _VAL_DOCS.finditer(line)]
    for file, source in folder.scripts.items():
        for index, line in enumerate(source.split("\n")):
            if "val-docs" in line and (m := re.search(r"default\s*=\s*(\d[\d_]*)", line)):
                default.append((int(m.group(1).replace("_", "")), Place(file, index + 1, line.strip()[:300])))
    if any(n >= 50_000 for n, _ in (*stated, *default)) or not default:
        return None
    docs, line = default[0]
    if docs >= 50_000:
        return None
    return Claim(
        "data",
        CONTRADICTED,
        f"the preparation keeps {docs:,} validation documents and trains on the rest ({local[0][0]} shards); the score is over "
        f"50,000, so {50_000 - docs:,} of them are training text, and nowhere is another count stated",
        50_000,
        docs,
        places(line, local[0][1], full[0]),
    )
