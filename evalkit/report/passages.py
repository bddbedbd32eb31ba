"""Passages of the text with the cost of every token, for the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.report.load import TokenScores
from evalkit.tokens.tokenizer import TextTokenizer

PASSAGE_TOKENS = 320
_MAX_PENDING = 4  # a UTF-8 character has at most 4 bytes


def choose_passages(scores: TokenScores) -> list[tuple[str, int, int]]:
    """Return (title, first, last + 1) of the start, the costliest, a typical and the cheapest passage.

    Positions count from 0 in the scores. Passages tile the stream; cost is bits per byte.
    """
    starts, size = tiles(len(scores.nll))
    nats = np.array([scores.nll[s : s + size].sum() for s in starts])
    cost = nats / np.maximum(np.array([scores.num_bytes[s : s + size].sum() for s in starts]), 1)
    order = np.argsort(cost, kind="stable")
    picks = {0: "The beginning"}
    titles = ("The costliest", "A typical one", "The cheapest")
    for title, index in zip(titles, (order[-1], order[len(order) // 2], order[0]), strict=True):
        picks.setdefault(int(starts[index]), title)
    return [(title, start, start + size) for start, title in picks.items()]


def tiles(num_tokens: int) -> tuple[npt.NDArray[np.int64], int]:
    """Return where the passages of a stream start, and their length."""
    size = min(PASSAGE_TOKENS, num_tokens)
    return np.arange(0, num_tokens - size + 1, size), size


def passage_spans(
    scores: TokenScores, tokens: npt.NDArray[Any], tokenizer: TextTokenizer, start: int, stop: int
) -> list[list[Any]]:
    """Return ``[text, nats, tokens]`` for each token of a passage; tokens that share a character are joined.

    The passage is that of the scores ``[start, stop)``; score ``i`` belongs to token ``i + 1`` of the stream.
    """
    ids = [int(t) for t in tokens[start + 1 : stop + 1]]
    spans: list[list[Any]] = []
    done, shown, pending, waiting = 0, "", 0.0, 0
    for i, token in enumerate(ids):
        pending += float(scores.nll[start + i])
        waiting += 1
        if token == tokenizer.bos_id:
            spans.append(["\u21b5", round(pending, 4), waiting])
            done, shown, pending, waiting = i + 1, "", 0.0, 0
            continue
        text = tokenizer.decode(ids[done : i + 1])
        if text.endswith("\ufffd") and waiting < _MAX_PENDING:
            continue
        new = text[len(shown) :] if text.startswith(shown) else text
        spans.append([new, round(pending, 4), waiting])
        shown, pending, waiting = text, 0.0, 0
    if waiting:
        spans.append(["\ufffd", round(pending, 4), waiting])
    return spans
