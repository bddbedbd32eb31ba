"""A progress line on stderr: what is done, how fast, what is left.

Silent when stderr is not a terminal, or where the logger ``evalkit`` leaves out INFO: in programs that do not ask for
it, and with ``--quiet``.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from evalkit.plumbing.log import LOG

T = TypeVar("T")


class Progress:
    """One line that is rewritten at most a few times a second.

    Args:
        label: what is being done.
        total: units of work in all.
        unit: name of a unit, for the rate.
        done: units that were done before this run; they do not count towards the rate.
    """

    def __init__(self, label: str, total: int, *, unit: str = "tokens", done: int = 0) -> None:
        self._label, self._total, self._unit, self._first = label, total, unit, done
        self._enabled = LOG.isEnabledFor(logging.INFO) and sys.stderr.isatty()
        self._started = time.monotonic()
        self._shown = 0.0
        self._width = 0

    def update(self, done: int, note: str = "") -> None:
        """Show that ``done`` units are done."""
        now = time.monotonic()
        if not self._enabled or (now - self._shown < 0.2 and done < self._total):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = (self._total - done) / rate if rate > 0 else 0.0
        text = f"{self._label} {done:,}/{self._total:,} {self._unit}"
        text += f" ({done / max(self._total, 1):.0%}), {rate:,.0f}/s, {format_seconds(left)} left"
        text += f", {note}" if note else ""
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)

    def close(self) -> None:
        """Clear the line."""
        if self._enabled and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0


def tracked(items: Sequence[T], label: str, *, unit: str, size: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
    """Yield the items, showing how far the work on them is.

    Args:
        items: what is worked on.
        label: what is being done.
        unit: name of a unit of work.
        size: units of work of an item.
    """
    progress = Progress(label, sum(map(size, items)), unit=unit)
    done = 0
    try:
        for item in items:
            yield item
            done += size(item)
            progress.update(done)
    finally:
        progress.close()


def format_seconds(seconds: float) -> str:
    """Return a duration as people read it: ``42s``, ``3m05s``, ``2h10m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
