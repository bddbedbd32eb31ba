"""The line that says what is being done."""

import fcntl
import io
import logging
import os
import struct
import sys
import termios

import pytest

from evalkit.plumbing.log import LOG
from evalkit.plumbing.progress import Progress, StatusLine, _columns


class Stream(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def _told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOG, "level", logging.INFO)
    monkeypatch.setattr(LOG, "_cache", {})


def shown(terminal: bool, seconds: list[float], monkeypatch: pytest.MonkeyPatch, *, enabled: bool = True) -> str:
    """Return what a line writes whose texts come at the given times; its clock starts at 0."""
    times = iter([0.0, *seconds])
    stream = Stream(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    line = StatusLine(enabled=enabled, clock=lambda: next(times))
    for number in range(len(seconds)):
        line.show(f"{number}" + "!" * (number == 0))
    line.close(keep=True)
    return stream.getvalue()


def test_a_terminal_has_one_line_and_a_log_has_one_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(True, [0.0, 0.1, 0.3], monkeypatch) == "\r0!\r2 \r \r2\n"
    assert shown(False, [1.0, 61.0, 62.0, 122.0], monkeypatch) == "1\n3\n"


def test_it_is_silent_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(True, [0.0, 1.0], monkeypatch, enabled=False) == ""
    monkeypatch.setattr(LOG, "level", logging.WARNING)
    assert shown(True, [0.0, 1.0], monkeypatch) == ""


def test_progress_counts_and_clears_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress("score", 40)
    progress.update(40, "1.5 bits per byte")
    text = stream.getvalue()
    assert text.startswith("\rscore 40/40 tokens (100%), ")
    assert text.endswith("/s, 0s left, 1.5 bits per byte")
    progress.close()
    assert stream.getvalue()[len(text) :] == "\r" + " " * (len(text) - 1) + "\r"


@pytest.mark.parametrize("columns", [20, 40, 79, 80, 200])
def test_the_line_never_wraps(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("evalkit.plumbing.progress._columns", lambda stream: columns)
    progress = Progress("score", 62_021_845)
    for done in (1_234_567, 62_021_845):
        progress.update(done, "1.2345 bpb")
    progress.close()
    lines = [line.rstrip() for line in stream.getvalue().split("\r")]
    assert max(map(len, lines)) < columns
    assert lines[1].startswith("score 1,234,567/")


def test_the_width_is_that_of_the_terminal_that_the_line_is_on() -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 53, 0, 0))
    with open(theirs, "w") as stream:
        assert _columns(stream) == 53
    os.close(ours)
    assert _columns(io.StringIO()) == 80
