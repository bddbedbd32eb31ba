"""The numbers behind the page's charts, computed from per-token scores; every sum in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.prequential.intervals import clustered_mean, interval_halves
from evalkit.report.load import TokenScores

_LN2 = math.log(2)
_BINS = 160
_SCATTER = 1500
_EXPECTED = 10.0
_WINDOW_STEPS = 16

COST_LABELS = (*(f"{k}\u2013{k + 1}" for k in range(16)), "16+")
"""Costs of a token in bits."""


def along_stream(scores: TokenScores, others: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Return bits per byte in equal pieces of the stream (``local``), and up to the end of each (``running``).

    Args:
        scores: of the run.
        others: nats of other scores of the same stream, by name, in buckets as a report holds them
            (:mod:`evalkit.prequential.buckets`); the pieces are then made of whole buckets.

    Returns:
        ``position``, ``local``, ``running``, and under ``others`` the latter two of each.

    Raises:
        ValueError: the buckets of another score do not cover the stream.
    """
    n = len(scores.nll)
    sizes = [int(other["tokens"]) for other in (others or {}).values()]
    step = math.lcm(*sizes) if sizes else 1
    step *= max(1, math.ceil(n / step / _BINS))
    equal = np.linspace(0, n, min(_BINS, n) + 1).astype(np.int64)
    edges = np.unique(np.append(np.arange(0, n, step), n) if sizes else equal)
    num_bytes = np.add.reduceat(scores.num_bytes, edges[:-1])

    def rows(nats: npt.NDArray[Any]) -> dict[str, list[float | None]]:
        return {
            "local": _bits_per_byte(nats, num_bytes),
            "running": _bits_per_byte(np.cumsum(nats), np.cumsum(num_bytes)),
        }

    held = {}
    for (name, other), size in zip((others or {}).items(), sizes, strict=True):
        buckets = np.asarray(other["nats"], dtype=np.float64)
        if len(buckets) != math.ceil(n / size):
            raise ValueError(f"{name} has {len(buckets)} buckets of {size} tokens for {n} tokens")
        held[name] = rows(np.add.reduceat(buckets, edges[:-1] // size))
    return {"position": edges[1:].tolist(), **rows(np.add.reduceat(scores.nll, edges[:-1])), "others": held}


def document_index(tokens: npt.NDArray[Any], bos: int) -> npt.NDArray[np.int64]:
    """Return the document of each scored position, from 0."""
    starts = np.cumsum(np.asarray(tokens[1:]) == bos)
    owner: npt.NDArray[np.int64] = (starts - starts[0]).astype(np.int64)
    return owner


def by_document_position(scores: TokenScores, tokens: npt.NDArray[Any], bos: int) -> dict[str, Any]:
    """Return bits per byte by distance from the start of the document: 1, 2-3, 4-7, ... tokens after BOS.

    ``x`` is the middle of each step, ``half`` half of its 95% interval with documents as units. BOS itself stands for
    no bytes; what it costs is given apart (``starts``, ``start_nats``, ``start_share``).
    """
    position = np.arange(1, len(scores.nll) + 1)
    is_start = np.asarray(tokens[1:]) == bos
    distance = position - np.maximum.accumulate(np.where(is_start, position, 0))
    inside = ~is_start
    octave = np.floor(np.log2(np.maximum(distance, 1))).astype(np.int64)[inside]
    starts, start_nats = int(is_start.sum()), float(scores.nll[is_start].sum())
    rows = []
    for k, (bits, half, count) in enumerate(_by_step(scores, inside, octave, document_index(tokens, bos))):
        label = str(2**k) if k == 0 else f"{2**k:,}\u2013{2 ** (k + 1) - 1:,}"
        rows.append({"x": 1.5 * 2**k - 0.5, "label": label, "bpb": bits, "half": half, "tokens": count})
    return {
        "rows": rows,
        "starts": starts,
        "start_nats": start_nats / starts if starts else None,
        "start_share": start_nats / math.fsum(scores.nll.tolist()),
    }


def by_window_position(
    scores: TokenScores, seq_len: int, stride: int, owner: npt.NDArray[np.int64] | None = None
) -> list[dict[str, Any]]:
    """Return bits per byte by how many tokens the window shows before the scored one, in at most 16 equal steps.

    The first window is left out: it scores at all lengths, once each. Every later one scores its last ``stride``. Where
    ``owner``, the document of each position, is given, ``half`` is half of the 95% interval.
    """
    position = np.arange(seq_len + 1, len(scores.nll) + 1)
    if not len(position):
        return []
    start = -(-(position - seq_len) // stride) * stride  # as prequential.windows.window_of
    context = position - start
    first = seq_len - stride + 1
    width = -(-stride // _WINDOW_STEPS)
    step = (context - first) // width
    return [
        {
            "x": first + k * width + (width - 1) / 2,
            "half": half,
            "label": f"{first + k * width:,}\u2013{min(first + (k + 1) * width - 1, seq_len):,}",
            "bpb": bits,
            "tokens": count,
        }
        for k, (bits, half, count) in enumerate(_by_step(scores, position - 1, step, owner))
    ]


def _by_step(
    scores: TokenScores, at: npt.NDArray[Any], step: npt.NDArray[np.int64], owner: npt.NDArray[np.int64] | None
) -> Iterator[tuple[float | None, float | None, int]]:
    """Yield bits per byte of each step, half of their 95% interval where the documents are known, and tokens.

    ``at`` picks positions of the stream, ``step`` is the step of each of these, ``owner`` the document of any position.
    """
    nats, num_bytes, counts = scores.nll[at], scores.num_bytes[at], np.bincount(step)
    bits = _bits_per_byte(np.bincount(step, weights=nats), np.bincount(step, weights=num_bytes))
    halves: list[float | None] = [None] * len(counts)
    if owner is not None:
        halves = interval_halves(nats / _LN2, num_bytes, owner[at], step, len(counts))
    yield from zip(bits, halves, counts.tolist(), strict=True)


def by_document(scores: TokenScores, owner: npt.NDArray[np.int64]) -> dict[str, list[Any]]:
    """Return first position, tokens, bytes and bits per byte of each document."""
    nats = np.bincount(owner, weights=scores.nll)
    num_bytes = np.bincount(owner, weights=scores.num_bytes).astype(np.int64)
    return {
        "position": (np.searchsorted(owner, np.arange(owner[-1] + 1)) + 1).tolist(),
        "tokens": np.bincount(owner).tolist(),
        "bytes": num_bytes.tolist(),
        "bpb": _bits_per_byte(nats, num_bytes),
    }


def score_interval(scores: TokenScores, owner: npt.NDArray[np.int64]) -> float | None:
    """Return half of the 95% interval of the bits per byte of the stream, with documents as units; None for one."""
    nats, num_bytes = np.bincount(owner, weights=scores.nll), np.bincount(owner, weights=scores.num_bytes)
    return clustered_mean(nats / _LN2, num_bytes)[1]


def thinned(documents: dict[str, list[Any]]) -> list[list[float]]:
    """Return (bytes, bits per byte, index) of at most 1,500 documents, evenly picked, for the scatter chart."""
    usable = [i for i, bits in enumerate(documents["bpb"]) if bits is not None]
    step = max(1, math.ceil(len(usable) / _SCATTER))
    return [[documents["bytes"][i], documents["bpb"][i], i] for i in usable[::step]]


def cost_bins(nats: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the whole bits that each token cost, at most 16: where it stands in :data:`COST_LABELS`."""
    bins: npt.NDArray[np.int64] = np.minimum(np.floor(nats / _LN2).astype(np.int64), 16).clip(0)
    return bins


def surprise_histogram(scores: TokenScores) -> list[dict[str, Any]]:
    """Return share of tokens and share of all bits by what a token cost, in steps of one bit up to 16."""
    bits = scores.nll / _LN2
    bins = cost_bins(scores.nll)
    tokens = np.bincount(bins, minlength=17) / len(bits)
    cost = np.bincount(bins, weights=bits, minlength=17) / max(math.fsum(bits.tolist()), 1e-300)
    return [{"label": label, "tokens": float(tokens[k]), "bits": float(cost[k])} for k, label in enumerate(COST_LABELS)]


def reliability(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the points of the reliability curve from the counts in a report.

    Neighbouring bins of log-odds are joined until at least ten of their tokens were expected to come and ten not to, by
    what was stated alone: joining by what came would bend the curve.

    Returns:
        For each point ``stated`` (mean probability), ``came`` (share of the tokens that came), ``low`` and ``high``
        (95% Wilson interval of the share) and ``tokens``.
    """
    points: list[dict[str, Any]] = []
    columns = (counts["tokens"], counts["expected"], counts["occurred"])
    tokens, expected, occurred = 0, 0.0, 0
    left, left_out = sum(columns[0]), sum(columns[0]) - math.fsum(columns[1])
    for bin_tokens, bin_expected, bin_occurred in zip(*columns, strict=True):
        tokens, expected, occurred = tokens + bin_tokens, expected + bin_expected, occurred + bin_occurred
        left, left_out = left - bin_tokens, left_out - (bin_tokens - bin_expected)
        enough = min(expected, tokens - expected) >= _EXPECTED
        # What could not stand alone behind this point is joined to it.
        if (enough and left_out >= _EXPECTED) or (left == 0 and tokens):
            low, high = _wilson(occurred, tokens)
            points.append(
                {"stated": expected / tokens, "came": occurred / tokens, "low": low, "high": high, "tokens": tokens}
            )
            tokens, expected, occurred = 0, 0.0, 0
    return points


def _wilson(hits: int, trials: int) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson 1927), as if the trials were independent."""
    z2 = 1.96**2
    share = hits / trials
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * share * (1 - share) / trials + z2 * z2 / (4 * trials * trials)) / (1 + z2 / trials)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def by_chunk(scores: TokenScores, chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return bits per byte of each chunk of test-time training, with the losses of the training that followed it."""
    rows = []
    stops = [int(c["stop"]) - 1 for c in chunks]
    for start, stop, chunk in zip([0, *stops], [*stops, len(scores.nll)], [*chunks, {}], strict=True):
        stop = min(stop, len(scores.nll))
        if stop <= start:
            continue
        rows.append(
            {
                "stop": stop,
                "bpb": mean_bits_per_byte(scores, start, stop),
                **{name: chunk.get(name) for name in ("first_loss", "last_loss", "learning_rate", "steps")},
            }
        )
    return rows


def mean_bits_per_byte(scores: TokenScores, start: int, stop: int) -> float | None:
    """Return bits per byte of the scores ``[start, stop)``; None if they stand for no bytes."""
    return _bits_per_byte(scores.nll[start:stop].sum(keepdims=True), scores.num_bytes[start:stop].sum(keepdims=True))[0]


def _bits_per_byte(nats: Any, num_bytes: Any) -> list[float | None]:
    return [n / _LN2 / b if b > 0 else None for n, b in zip(nats.tolist(), np.asarray(num_bytes).tolist(), strict=True)]
