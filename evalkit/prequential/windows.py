"""The sliding-window plan: which window scores which position.

Windows start at 0, stride, 2 stride, ... and hold ``seq_len`` inputs. The window that starts at w feeds tokens
w .. w + seq_len - 1 and can score positions w + 1 .. w + seq_len (position p is the token with index p, predicted from
those before it). The first window scores all its positions; every later position belongs to the first window that
reaches it, which gives it the longest context of any. So each position is scored exactly once, with at least
seq_len - stride + 1 tokens of context once a window is full.

The stream may also be cut into documents, each of which is planned as a stream of its own. A document is the token that
opens it and what follows, up to the next such token, which is its last target: what ends a document is predicted from
it, and nothing of it is seen by what comes after.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

_LOOK_BACK = 1 << 16


@dataclass(frozen=True, slots=True)
class WindowSpan:
    """The positions that one window scores.

    Attributes:
        window_start: index of the window's first input token.
        start: first position scored.
        stop: one past the last position scored.
        origin: index of the first token of what is windowed: the stream, or a document.
    """

    window_start: int
    start: int
    stop: int
    origin: int = 0

    @property
    def is_first(self) -> bool:
        """Whether the window is the first of its document or stream: it may score any of its rows, others few."""
        return self.window_start == self.origin

    @property
    def first_row(self) -> int:
        """Row of the window (input index) whose logits score ``start``."""
        return self.start - 1 - self.window_start


def window_of(position: int, seq_len: int, stride: int, *, origin: int = 0) -> int:
    """Return the start of the window that scores ``position``: the first one that reaches it."""
    beyond = position - origin - seq_len
    return origin if beyond <= 0 else origin - (-beyond // stride) * stride


def plan_windows(start: int, stop: int, seq_len: int, stride: int, *, origin: int = 0) -> Iterator[WindowSpan]:
    """Yield the windows that score positions ``[start, stop)``, in order, each position exactly once.

    Args:
        start: first position, later than ``origin``, whose token has no prefix and is given.
        stop: one past the last position.
        seq_len: inputs of a window, in tokens.
        stride: distance between windows, from 1 to ``seq_len``.
        origin: index of the token at which the first window starts.
    """
    position = start
    while position < stop:
        window_start = window_of(position, seq_len, stride, origin=origin)
        end = min(window_start + seq_len + 1, stop)
        yield WindowSpan(window_start, position, end, origin)
        position = end


def plan_documents(
    tokens: npt.NDArray[Any], opening: int, start: int, stop: int, seq_len: int, stride: int
) -> Iterator[WindowSpan]:
    """Yield the windows that score positions ``[start, stop)``, in order, none of which holds two documents' tokens.

    ``opening`` is the token that opens a document; each is windowed by :func:`plan_windows`. Of ``tokens[stop - 1]``,
    which is only ever a target, nothing depends.
    """
    later = start + np.flatnonzero(np.asarray(tokens[start : stop - 1]) == opening)
    origins = [document_start(tokens, opening, start), *later.tolist(), stop - 1]
    for origin, following in pairwise(origins):
        yield from plan_windows(max(start, origin + 1), following + 1, seq_len, stride, origin=origin)


def document_start(tokens: npt.NDArray[Any], opening: int, position: int) -> int:
    """Return the index of the token that opens the document which ``position`` continues; 0 where none does."""
    stop = position
    while stop > 0:
        begin = max(stop - _LOOK_BACK, 0)
        found = np.flatnonzero(np.asarray(tokens[begin:stop]) == opening)
        if found.size:
            return begin + int(found[-1])
        stop = begin
    return 0
