"""The report for a terminal: a table of claims, and both lines of every contradiction."""

from __future__ import annotations

from evalkit.plumbing.table import format_pairs
from evalkit.verify.claim import CONTRADICTED
from evalkit.verify.verify import VerifyReport


def as_text(report: VerifyReport) -> str:
    """Return the verdict, a line for every claim, and under a contradiction the lines that disagree."""
    lines = [format_pairs([("folder", report.folder.path.name), ("verdict", report.verdict)]), ""]
    for claim in report.claims:
        mark = claim.status.upper() if claim.status == CONTRADICTED else claim.status
        lines.append(f"{claim.claim.ljust(14)} {mark.ljust(13)} {claim.message}")
        if claim.status == CONTRADICTED:
            lines += [f"    {p.file}:{p.line}: {printable(p.text)}" for p in claim.evidence]
    notes = [f"note: {note}" for note in report.folder.notes]
    notes += [f"the same file twice: {a} and {b}" for a, b in report.folder.copies]
    further = [f"to go further: {command}" for command in report.next_commands]
    return "\n".join([*lines, *([""] if notes or further else []), *notes, *further])


def printable(text: str) -> str:
    """Return a stranger's line without characters that would steer a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
