"""Two runs over the same tokens: the difference at every position, with documents as the units of its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.errors import InputError
from evalkit.prequential.intervals import clustered_mean
from evalkit.report.load import TokenScores
from evalkit.report.series import document_index


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Two runs on the same tokens, position by position; below 0 the new run is better.

    Attributes:
        documents: number of documents, the clusters.
        tokens: positions compared.
        nats_per_token: mean difference.
        low: lower end of its 95% interval.
        high: upper end.
        p_lower: one-sided p-value that the new run is lower.
        bpb: the difference in bits per byte.
        bpb_low: lower end of its 95% interval.
        bpb_high: upper end.
        better_documents: documents with fewer nats than in the baseline.
        worse_documents: documents with more.
        most_changed_documents: ``document``, ``position``, ``tokens``, ``nats``, ``text`` of the largest sums.
        most_changed_positions: ``position``, ``nats``, ``baseline_nats``, ``token``, ``before`` of the largest moves.
    """

    documents: int
    tokens: int
    nats_per_token: float
    low: float | None
    high: float | None
    p_lower: float | None
    bpb: float
    bpb_low: float | None
    bpb_high: float | None
    better_documents: int
    worse_documents: int
    most_changed_documents: tuple[dict[str, Any], ...]
    most_changed_positions: tuple[dict[str, Any], ...]


def compare_tokens(
    scores: TokenScores,
    baseline: TokenScores,
    tokens: npt.NDArray[Any],
    *,
    bos: int,
    decode: Any = None,
    examples: int = 5,
) -> PairedDifference:
    """Compare two runs position by position.

    Args:
        scores: of the new run.
        baseline: of the old one, of the same length.
        tokens: the stream, one longer than the scores; its documents are the clusters.
        bos: id that opens a document.
        decode: token ids to text, for examples.
        examples: documents and positions to show.

    Raises:
        InputError: lengths differ.
    """
    n = len(scores.nll)
    if len(baseline.nll) != n or len(tokens) != n + 1:
        raise InputError(f"{n:,} and {len(baseline.nll):,} scores of {len(tokens) - 1:,} tokens cannot be paired")
    difference = scores.nll - baseline.nll
    owner = document_index(tokens, bos)
    sums = np.bincount(owner, weights=difference)
    counts = np.bincount(owner).astype(np.float64)
    num_bytes = np.bincount(owner, weights=scores.num_bytes.astype(np.float64))
    starts = np.searchsorted(owner, np.arange(len(sums)))
    mean, half, p_lower = clustered_mean(sums, counts)
    bits_mean, bits_half, _ = clustered_mean(sums / math.log(2), num_bytes)
    by_document = np.argsort(-np.abs(sums), kind="stable")[:examples].tolist()
    by_position = np.argsort(-np.abs(difference), kind="stable")[:examples].tolist()

    def text(start: int, stop: int) -> str:
        return str(decode([int(t) for t in tokens[max(start, 0) : stop]])) if decode else ""

    return PairedDifference(
        documents=len(sums),
        tokens=n,
        nats_per_token=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        p_lower=p_lower,
        bpb=bits_mean,
        bpb_low=None if bits_half is None else bits_mean - bits_half,
        bpb_high=None if bits_half is None else bits_mean + bits_half,
        better_documents=int((sums < 0).sum()),
        worse_documents=int((sums > 0).sum()),
        most_changed_documents=tuple(
            {
                "document": int(d),
                "position": int(starts[d]) + 1,
                "tokens": int(counts[d]),
                "nats": float(sums[d]),
                "text": text(int(starts[d]) + 1, int(starts[d]) + 25),
            }
            for d in by_document
        ),
        most_changed_positions=tuple(
            {
                "position": int(i) + 1,
                "nats": float(scores.nll[i]),
                "baseline_nats": float(baseline.nll[i]),
                "token": text(i + 1, i + 2),
                "before": text(i - 12, i + 1),
            }
            for i in by_position
        ),
    )
