"""A progress line on stderr: what is done, how fast, what is left.

On a terminal the line rewrites itself; elsewhere (batch logs) there is a new one every minute. Silent where the logger
``evalkit`` leaves out INFO: in programs that do not ask for it, and with ``--quiet``.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO, TypeVar

from evalkit.plumbing.log import LOG

_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 60.0

T = TypeVar("T")


class StatusLine:
    """One line of text that changes; it shows nothing unless ``enabled``."""

    def __init__(self, *, enabled: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if enabled and LOG.isEnabledFor(logging.INFO) else None
        self._rewrites = self._stream is not None and self._stream.isatty()
        self._clock = clock
        self._next = clock() + (0.0 if self._rewrites else _LOG_SECONDS)
        self._text, self._width = "", 0

    def show(self, text: str, *, at_once: bool = False) -> None:
        """Show a text, unless the last one is too recent and this one is not wanted at once (on a terminal)."""
        self._text = text
        now = self._clock()
        if self._stream is None or (now < self._next and not (at_once and self._rewrites)):
            return
        text = self._text = text[: _columns(self._stream) - 1] if self._rewrites else text
        self._next = now + (_TERMINAL_SECONDS if self._rewrites else _LOG_SECONDS)
        self._stream.write("\r" + text.ljust(self._width) if self._rewrites else text + "\n")
        self._stream.flush()
        self._width = len(text)

    def close(self, *, keep: bool = False) -> None:
        """Clear the line on a terminal, or leave the last text standing there."""
        if self._stream is not None and self._rewrites and self._width:
            last = self._text + "\n" if keep else ""
            self._stream.write("\r" + " " * self._width + "\r" + last)
            self._stream.flush()
        self._width = 0


def _columns(stream: TextIO) -> int:
    """Return the width of a terminal: a line that fills it would wrap, and could not be rewritten."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class Progress:
    """A status line that counts; what was ``done`` before this run does not count towards the rate."""

    def __init__(self, label: str, total: int, *, unit: str = "tokens", done: int = 0) -> None:
        self._label, self._total, self._unit, self._first = label, total, unit, done
        self._line = StatusLine()
        self._started = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """Show that ``done`` units are done."""
        rate = (done - self._first) / max(time.monotonic() - self._started, 1e-9)
        left = (self._total - done) / rate if rate > 0 else 0.0
        text = f"{self._label} {done:,}/{self._total:,} {self._unit}"
        text += f" ({done / max(self._total, 1):.0%}), {rate:,.0f}/s, {format_seconds(left)} left"
        text += f", {note}" if note else ""
        self._line.show(text, at_once=done >= self._total)

    def close(self) -> None:
        """Clear the line."""
        self._line.close()


def tracked(items: Sequence[T], label: str, *, unit: str, size: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
    """Yield the items, showing how far the work on them is; ``size`` tells the units of work of an item."""
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
