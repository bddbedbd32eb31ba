"""The report as one HTML page with the lines quoted; everything in it is escaped, and nothing is fetched."""

from __future__ import annotations

from html import escape
from importlib import resources

from evalkit.verify.claim import CONTRADICTED, HOLDS, Claim
from evalkit.verify.verify import VerifyReport

COLOURS = {"consistent": "good", HOLDS: "good", CONTRADICTED: "bad", "legal": "good", "illegal": "bad"}

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""Should markup of a stranger ever slip through, it can still load and send nothing."""


def page(report: VerifyReport) -> str:
    """Return the page."""
    declared = report.folder.declared
    contradicted = sum(c.status == CONTRADICTED for c in report.claims)
    tiles = [
        (badge(report.verdict), "verdict"),
        (f"{declared.headline.value:g}" if declared.headline else "–", "stated bits per byte"),
        (str(len({run.file for run in report.folder.runs})), "logs read"),
        (str(contradicted), "contradictions"),
    ]
    notes = [*report.folder.notes, *(f"{a} has the same content as {b}" for a, b in report.folder.copies)]
    parts = [
        f"<h1>{escape(report.folder.path.name)}</h1>",
        '<p class="sub">What the folder claims, and what its own files say of it. Nothing in it was executed.</p>',
        grid_below(tiles),
        *(_claim(c) for c in sorted(report.claims, key=lambda c: c.status != CONTRADICTED)),
        "</div>",
        _list("Notes", notes),
        _list("To go further", report.next_commands),
    ]
    return document(f"{report.folder.path.name}: {report.verdict}", "".join(parts))


def document(title: str, body: str, script: str = "") -> str:
    """Return a whole page around a body, with the style of evalkit's reports."""
    style = (resources.files("evalkit.report") / "page.css").read_text(encoding="utf-8")
    style += (resources.files("evalkit.verify") / "page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}\n</style>\n</head>\n<body>\n<main>{body}</main>\n"
        f"{f'<script>{script}</script>' if script else ''}\n</body>\n</html>\n"
    )


def grid_below(tiles: list[tuple[str, str]]) -> str:
    """Return tiles of a value and its name, and the beginning of what stands below them."""
    shown = (f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    return f'<div class="tiles">{"".join(shown)}</div><div class="grid">'


def badge(word: str) -> str:
    """Return a verdict in its colour."""
    return f'<span class="verdict {COLOURS.get(word, "unsure")}">{escape(word)}</span>'


def _claim(claim: Claim) -> str:
    quotes = "".join(
        f"<figure><figcaption>{escape(p.file)}, line {p.line}</figcaption><pre>{escape(p.text)}</pre></figure>"
        for p in claim.evidence
    )
    return (
        f'<section class="claim"><h2>{escape(claim.claim)} {badge(claim.status)}</h2>'
        f'<p class="why">{escape(claim.message)}</p>{quotes}</section>'
    )


def _list(title: str, items: tuple[str, ...] | list[str]) -> str:
    if not items:
        return ""
    return f"<h3>{escape(title)}</h3><ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
