"""The sliding-window plan: which window scores which position.

Windows start at 0, stride, 2 stride, ... and hold ``seq_len`` inputs. The window that starts at w feeds tokens
w .. w + seq_len - 1 and can score positions w + 1 .. w + seq_len (position p is the token with index p, predicted from
those before it). The first window scores all its positions; every later position belongs to the first window that
reaches it, which gives it the longest context of any. So each position is scored exactly once, with at least
seq_len - stride + 1 tokens of context once a window is full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WindowSpan:
    """The positions that one window scores.

    Attributes:
        window_start: index of the window's first input token.
        start: first position scored.
        stop: one past the last position scored.
    """

    window_start: int
    start: int
    stop: int

    @property
    def first_row(self) -> int:
        """Row of the window (input index) whose logits score ``start``."""
        return self.start - 1 - self.window_start


def window_of(position: int, seq_len: int, stride: int) -> int:
    """Return the start of the window that scores ``position``: the first one that reaches it."""
    if position <= seq_len:
        return 0
    return -(-(position - seq_len) // stride) * stride


def plan_windows(start: int, stop: int, seq_len: int, stride: int) -> Iterator[WindowSpan]:
    """Yield the windows that score positions ``[start, stop)``, in order, each position exactly once.

    Args:
        start: first position, at least 1 (position 0 has no prefix and is given).
        stop: one past the last position.
        seq_len: inputs of a window, in tokens.
        stride: distance between windows, from 1 to ``seq_len``.
    """
    position = start
    while position < stop:
        window_start = window_of(position, seq_len, stride)
        end = min(window_start + seq_len + 1, stop)
        yield WindowSpan(window_start, position, end)
        position = end
