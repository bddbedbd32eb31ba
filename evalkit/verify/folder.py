"""Reads a submission folder into statements."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from evalkit.plumbing.errors import InputError
from evalkit.verify.declared import find_submission, read_declared
from evalkit.verify.files import Reader
from evalkit.verify.logs import looks_like_log, read_log
from evalkit.verify.script import read_script, unwrap
from evalkit.verify.statements import Declared, Folder, Run, Text

MAX_LOGS = 200
MAX_OTHERS = 60
_LOG = re.compile(r"\.(?:log|txt|out|err|stdout|output)$", re.I)
_PROSE = re.compile(r"\.(?:md|rst)$", re.I)
_TABLE = re.compile(r"\.(?:csv|tsv|json|jsonl)$", re.I)


def read_folder(path: Path) -> Folder:
    """Return everything that a submission folder states.

    Raises:
        InputError: there is no such folder, or nothing in it is a submission's: no submission.json, log or script.
    """
    notes: list[str] = []
    reader = Reader(path, notes)
    files = reader.list_files()
    name = find_submission(files)
    declared = Declared()
    if name is not None and (text := reader.read_text(name, files[name])) is not None:
        declared = read_declared(text)
    runs, copies = _read_logs(reader, files)
    texts = _read_some(reader, files, _PROSE, skip=None)
    tables = _read_some(reader, files, _TABLE, skip=name)
    sources = {f: reader.read(f) for f in [f for f in files if f.endswith(".py")][:MAX_OTHERS] if files[f] < 4 << 20}
    script = read_script(files, sources)
    if name is None and not runs and script is None:
        raise InputError(
            f"{path} holds no submission: no submission.json, no log and no training script; name the folder of one"
        )
    return Folder(
        path=path,
        files=files,
        declared=declared,
        runs=tuple(runs),
        texts=tuple(texts),
        tables=tuple(tables),
        script=script,
        scripts={f: unwrap(f, content) for f, content in sources.items()},
        ten_minutes=_ten_minutes(path, declared),
        copies=tuple(copies),
        notes=tuple(notes),
    )


def _read_logs(reader: Reader, files: dict[str, int]) -> tuple[list[Run], list[tuple[str, str]]]:
    runs: list[Run] = []
    copies: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    names = [f for f in files if _LOG.search(f) or "." not in f.rpartition("/")[2]]
    # Of two files with the same content the one that names a seed stays: train.log is often a copy of it.
    names.sort(key=lambda f: (f.count("/"), not re.search(r"\d", f.rpartition("/")[2]), f))
    if len(names) > MAX_LOGS:
        reader.notes.append(f"of {len(names):,} logs the first {MAX_LOGS} were read")
    for name in names[:MAX_LOGS]:
        text = reader.read_text(name, files[name])
        if text is None or not looks_like_log(text):
            continue
        digest = hashlib.sha256("\n".join(line.rstrip() for line in text.lines).strip().encode()).hexdigest()
        if digest in seen:
            copies.append((name, seen[digest]))
            continue
        seen[digest] = name
        runs += read_log(text)
    return runs, copies


def _read_some(reader: Reader, files: dict[str, int], pattern: re.Pattern[str], skip: str | None) -> list[Text]:
    names = [f for f in files if pattern.search(f) and f != skip and files[f] < 8 << 20]
    names.sort(key=lambda f: (f.count("/"), not f.lower().startswith("readme"), f))
    return [t for f in names[:MAX_OTHERS] if (t := reader.read_text(f, files[f])) is not None]


def _ten_minutes(path: Path, declared: Declared) -> bool | None:
    """Return whether the ten-minute rules hold: as the folder's own track says, else as its place does."""
    words = " ".join(
        str(leaf.value).lower() for leaf in declared.leaves if leaf.path[-1].lower() in ("track", "category", "type")
    )
    place = path.resolve().as_posix().lower()
    if re.search(r"non[-_ ]?record|unlimited|4[-_ ]?hour", words + " " + place):
        return False
    return True if re.search(r"10[-_ ]?min", words + " " + place) else None
