"""Many submissions side by side: entries from folders and reports, and the frontier of the best score over time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalkit.plumbing.errors import InputError
from evalkit.verify.claim import CONTRADICTED
from evalkit.verify.verify import VerifyReport, verify_folder

MAX_REPORT_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the board.

    Attributes:
        name: of the folder or report.
        date: ISO date, empty where none is stated.
        scores: bits per byte of each run.
        size: bytes of model and code.
        verify: verdict of ``evalkit verify``.
        check: verdict of ``evalkit check``: legal, illegal or unproven.
        why: the first contradiction.
    """

    name: str
    date: str = ""
    scores: tuple[float, ...] = ()
    size: int | None = None
    verify: str = ""
    check: str = ""
    why: str = ""

    @property
    def mean(self) -> float | None:
        """Mean score; None without scores."""
        return math.fsum(self.scores) / len(self.scores) if self.scores else None

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of the mean (Student's t over the runs); None for fewer than two runs."""
        n, mean = len(self.scores), self.mean
        if n < 2 or mean is None:
            return None
        from scipy.special import stdtrit

        deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in self.scores) / (n - 1))
        return float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)


@dataclass(frozen=True)
class Step:
    """An entry that was the best of its time.

    Attributes:
        entry: the new best.
        gain: bits per byte below the best before it; None for the first.
        p: one-sided p-value that it is lower (Welch); None with fewer than two runs on a side.
    """

    entry: Entry
    gain: float | None = None
    p: float | None = None


def read_entries(paths: Sequence[Path]) -> list[Entry]:
    """Return an entry for every folder or report; a check report joins the score report of the same artifact or text.

    Raises:
        InputError: a path is neither a submission folder nor a report of evalkit.
    """
    entries: list[Entry] = []
    for path in paths:
        if path.is_dir():
            entries.append(entry_of(verify_folder(path)))
        elif path.is_file():
            entries.append(_from_file(path))
        else:
            raise InputError(f"{path} does not exist; name submission folders or JSON reports of evalkit")
    return entries


def entry_of(report: VerifyReport) -> Entry:
    """Return the row of a verified folder."""
    leaves, name = report.folder.declared.leaves, report.folder.path.resolve().name
    checks = {leaf.value for leaf in leaves if leaf.path[-1] == "verdict" and isinstance(leaf.value, str)}
    dates = [str(leaf.value) for leaf in leaves if leaf.path == ("date",)]
    check = checks.pop() if len(checks) == 1 else ""
    return replace(_of_verify(report.to_dict()), name=name, date=_date(*dates, name), check=check)


def _of_verify(values: dict[str, Any]) -> Entry:
    """Return the row of what ``evalkit verify --json`` writes."""
    claims = [c for c in values["claims"] if isinstance(c, dict)]
    sizes = [_number(c.get("found")) for c in claims if c.get("claim") == "size"]
    return Entry(
        name=str(values.get("folder")),
        date=_date(str(values.get("folder"))),
        scores=tuple(s for v in values.get("scores") or [] if (s := _number(v)) is not None),
        size=max((round(s) for s in sizes if s is not None), default=None),
        verify=values["verdict"],
        why=next((str(c.get("message")) for c in claims if c.get("status") == CONTRADICTED), ""),
    )


def _from_file(path: Path) -> Entry:
    if path.stat().st_size > MAX_REPORT_BYTES:
        raise InputError(f"{path} has over {MAX_REPORT_BYTES >> 20} MiB; a report of evalkit is smaller")
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); name submission folders or reports of evalkit") from None
    if not isinstance(values, dict):
        values = {}
    if isinstance(values.get("claims"), list) and isinstance(values.get("verdict"), str):
        entry = _of_verify(values)
        return entry if values.get("folder") else replace(entry, name=path.stem)
    score = _number(values.get("bpb"))
    if score is None:
        raise InputError(
            f"{path} is no report of evalkit verify or evalkit score; name submission folders or such reports"
        )
    artifact = values.get("artifact")
    size = _number(artifact.get("bytes")) if isinstance(artifact, dict) else None
    return Entry(
        name=path.stem,
        date=_date(path.stem),
        scores=(score,),
        size=None if size is None else round(size),
        check="legal" if values.get("legal") is True else "illegal" if values.get("legal") is False else "",
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _date(*texts: str) -> str:
    """Return the first ISO date of this century in some texts; empty where none has one."""
    return next((m.group() for text in texts if (m := re.search(r"(20\d\d)-(\d\d)-(\d\d)", text))), "")


def frontier(entries: Sequence[Entry]) -> list[Step]:
    """Return the entries that were the best when they appeared, in order of time.

    An entry that is contradicted or illegal, or has no date or score, sets no mark. The gain over the best before it is
    tested one-sided (Welch's t over the runs), where both have at least two runs.
    """
    from evalkit.verbs.compare import compare_values

    dated = [e for e in entries if e.date and e.scores and e.verify != CONTRADICTED and e.check != "illegal"]
    steps: list[Step] = []
    for entry in sorted(dated, key=lambda e: (e.date, e.mean, e.name)):
        if not steps:
            steps.append(Step(entry))
            continue
        before = steps[-1].entry
        assert entry.mean is not None
        assert before.mean is not None
        if entry.mean < before.mean:
            test = compare_values(list(entry.scores), list(before.scores), metric="bpb")
            steps.append(Step(entry, before.mean - entry.mean, test.p_lower))
    return steps
