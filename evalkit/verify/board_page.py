"""The board as one HTML page: the frontier as a chart and a table, and every entry in a table that can be sorted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from html import escape
from importlib import resources

from evalkit.plumbing.constants import SIZE_CAP
from evalkit.verify.board import Entry, Step, frontier
from evalkit.verify.page import badge, document, grid_below

_WIDTH, _HEIGHT = 900, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 12, 16, 34


def board_page(entries: Sequence[Entry], title: str = "Board") -> str:
    """Return the page for entries in any order; it needs no network."""
    steps = frontier(entries)
    best = min(
        (e for e in entries if e.mean is not None and e.verify != "contradicted"),
        key=lambda e: e.mean or 0,
        default=None,
    )
    tiles = [
        (str(len(entries)), "entries"),
        (f"{best.mean:.5f}" if best and best.mean is not None else "–", "best bits per byte, not contradicted"),
        (str(sum(e.verify == "contradicted" for e in entries)), "contradicted by their own files"),
        (str(sum(e.check == "legal" for e in entries)), "checked and legal"),
    ]
    body = [
        f"<h1>{escape(title)}</h1>",
        '<p class="sub">Scores are means over runs with 95 % intervals (Student’s t). Lower is better.</p>',
        grid_below(tiles),
        _frontier(entries, steps),
        '<section class="wide"><h2>Entries</h2>',
        '<p class="why">Press a heading to sort.</p><div class="scroll">',
        _table(entries),
        "</div></section></div>",
    ]
    script = (resources.files("evalkit.verify") / "board.js").read_text(encoding="utf-8")
    return document(title, "".join(body), script)


def _table(entries: Sequence[Entry]) -> str:
    heads = (
        "entry", "date", "bits per byte", "± 95 %", "runs", "bytes", "under the cap", "verify", "check",
        "first contradiction",
    )  # fmt: skip
    rows = []
    for e in sorted(entries, key=lambda e: (e.mean is None, e.mean or 0, e.name)):
        cells = [
            f'<td class="name" data-key="{escape(e.name)}">{escape(e.name)}</td>',
            _cell("date", e.date, ""),
            _cell("bits per byte", e.mean, ".5f"),
            _cell("± 95 %", e.half_width, ".5f"),
            _cell("runs", len(e.scores), ""),
            _cell("bytes", e.size, ","),
            _cell("under the cap", None if e.size is None else SIZE_CAP - e.size, ","),
            *(
                f'<td data-name="{name}" data-key="{escape(word)}">{badge(word) if word else ""}</td>'
                for name, word in (("verify", e.verify), ("check", e.check))
            ),
            f'<td class="text" data-key="{escape(e.why)}">{escape(e.why)}</td>',
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(
        f"<th{' class=text' if i == len(heads) - 1 else ''}{' aria-sort=ascending' if h == 'bits per byte' else ''}>"
        f'<button type="button">{h}</button></th>'
        for i, h in enumerate(heads)
    )
    return f'<table class="board"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _cell(name: str, key: float | str | None, form: str) -> str:
    key = "" if key is None else key
    return f'<td data-name="{name}" data-key="{key}">{escape(format(key, form if key != "" else ""))}</td>'


def _frontier(entries: Sequence[Entry], steps: Sequence[Step]) -> str:
    if not steps:
        return ""
    rows = []
    for step in steps:
        gain = "" if step.gain is None else f"{step.gain:.5f}"
        p = "first" if step.gain is None else "one run" if step.p is None else f"{step.p:.2g}"
        rows.append(
            f'<tr><td class="name">{escape(step.entry.name)}</td><td>{step.entry.date}</td>'
            f"<td>{step.entry.mean:.5f}</td><td>{gain}</td><td>{p}</td></tr>"
        )
    return (
        '<section class="wide"><h2>Frontier</h2><p class="why">The best score of its time; '
        "p is one-sided, that it is lower than "
        "the best before it (Welch’s t over the runs). Contradicted and illegal entries set no mark.</p>"
        f"{_chart(entries, steps)}<details><summary>{len(steps)} marks as a table</summary>"
        '<div class="scroll"><table><thead><tr><th>entry</th><th>date</th><th>bits per byte</th><th>gain</th><th>p</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details></section>"
    )


def _chart(entries: Sequence[Entry], steps: Sequence[Step]) -> str:
    """Return the scores over time as SVG, a whisker for the interval, a line for the frontier."""
    marked = {id(s.entry) for s in steps}
    # Entries far above the frontier would press it flat.
    highest = 1.02 * max(s.entry.mean or 0 for s in steps)
    shown = [
        (day, mean, e)
        for e in entries
        if (day := _day(e.date)) is not None
        and (mean := e.mean) is not None
        and mean <= highest
        and e.verify != "contradicted"
    ]
    if not shown:
        return ""
    days, scores = [day for day, _, _ in shown], [mean for _, mean, _ in shown]
    first, last = min(days), max(max(days), min(days) + 1)
    low, high = min(scores), max(scores)
    pad = max(0.05 * (high - low), 1e-4)
    low, high = low - pad, high + pad

    def x(day: int) -> float:
        return _LEFT + (day - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(score: float) -> float:
        return _TOP + (high - score) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for i in range(5):
        value = low + (high - low) * i / 4
        parts.append(
            f'<line class="gridline" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>')
    for day, anchor in ((first, "start"), (last, "end")):
        parts.append(
            f'<text x="{x(day):.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">'
            f"{date.fromordinal(day).isoformat()}</text>"
        )
    for day, mean, e in shown:
        half = e.half_width
        if half is not None and 2 * half < high - low:
            parts.append(
                f'<line class="whisker" x1="{x(day):.1f}" x2="{x(day):.1f}" '
                f'y1="{y(min(high, mean + half)):.1f}" y2="{y(max(low, mean - half)):.1f}"/>'
            )
        mark = " class=best" if id(e) in marked else ""
        parts.append(
            f'<circle{mark} cx="{x(day):.1f}" cy="{y(mean):.1f}" r="4">'
            f"<title>{escape(e.name)}: {mean:.5f}</title></circle>"
        )
    path = ""
    for step in steps:
        day = _day(step.entry.date)
        if day is None or step.entry.mean is None:
            continue
        path += f"M{x(day):.1f} {y(step.entry.mean):.1f}" if not path else f"H{x(day):.1f}V{y(step.entry.mean):.1f}"
    parts.append(f'<path class="step" d="{path}H{_WIDTH - _RIGHT}"/>')
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Scores over time, with the frontier">{"".join(parts)}</svg>'
    )


def _day(text: str) -> int | None:
    try:
        return date.fromisoformat(text).toordinal()
    except ValueError:
        return None
