"""The figures in RESULTS.md, each table between two comments that name its script."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


def replace_table(name: str, body: str) -> None:
    """Put ``body`` between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` in RESULTS.md.

    Raises:
        ValueError: the marks are not there.
    """
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = RESULTS.read_text(encoding="utf-8").partition(first)
    _, found, after = rest.partition(last)
    if not found:
        raise ValueError(f"{RESULTS} has no {first} ... {last}")
    RESULTS.write_text(f"{before}{first}\n{body}\n{last}{after}", encoding="utf-8")
