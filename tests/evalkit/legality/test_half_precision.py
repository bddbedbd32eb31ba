"""Scores and the rows stated for them may be rounded differently: the tolerance follows the coarser of the two."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from evalkit.legality.audit import audit
from evalkit.legality.options import AuditOptions
from evalkit.legality.sources import BigramSource

V = 64


def float16(nats: Any) -> Any:
    return nats.astype(np.float16)


def bfloat16(nats: Any) -> Any:
    return torch.from_numpy(nats).to(torch.bfloat16)


def float16_probabilities(nats: Any) -> Any:
    return np.log(np.maximum(np.exp(nats).astype(np.float16).astype(np.float64), 1e-8))


def bfloat16_probabilities(nats: Any) -> Any:
    return torch.from_numpy(nats).exp().to(torch.bfloat16).double().log().numpy()


def exact(nats: Any) -> Any:
    return nats


HALF = [float16, bfloat16, float16_probabilities, bfloat16_probabilities]


def forecaster(score: Any, rows: Any, better: Any = None) -> type:
    class Counts:
        vocab_size = V

        def __init__(self) -> None:
            self.counts = np.ones((V, V))

        def exact(self, tokens: Any, start: int, stop: int) -> Any:
            rows = self.counts[tokens[start - 1 : stop - 1]]
            return np.log(rows / rows.sum(axis=1, keepdims=True))

        def distribution(self, tokens: Any, start: int, stop: int) -> Any:
            return rows(self.exact(tokens, start, stop))

        def score(self, tokens: Any, start: int, stop: int) -> Any:
            nats = -self.exact(tokens, start, stop)[np.arange(stop - start), tokens[start:stop]]
            if better is not None:
                nats = nats - better(np.arange(start, stop))
            return -score(-nats)

        def observe(self, tokens: Any, start: int, stop: int) -> None:
            np.add.at(self.counts, (tokens[start - 1 : stop - 1], tokens[start:stop]), 1)

    return Counts


def judged(make: type) -> Any:
    tokens = BigramSource.invented(V, 1).sample(500, 1, np.random.default_rng(0))[0]
    return audit(make, tokens, AuditOptions(span=16, budget_seconds=math.inf, positions=8, offsets=4))


@pytest.mark.parametrize("rows", HALF)
@pytest.mark.parametrize("score", [exact, float16, bfloat16])
def test_honest_scores_beside_rows_in_half_precision_are_legal(score: Any, rows: Any) -> None:
    report = judged(forecaster(score, rows))
    assert report.findings == (), report.summary()
    assert report.verdict == "legal"


@pytest.mark.parametrize("score", [float16, bfloat16])
def test_honest_rows_beside_scores_in_half_precision_are_legal(score: Any) -> None:
    assert judged(forecaster(score, exact)).verdict == "legal"


@pytest.mark.parametrize("rows", [exact, *HALF])
@pytest.mark.parametrize(
    "better", [lambda at: 0.4 * (at == 250), lambda at: np.full(len(at), 0.02)], ids=["one", "all"]
)
def test_half_precision_hides_no_fiction(rows: Any, better: Any) -> None:
    """Neither at one position, beyond what rounding can do, nor a little of it at all of them."""
    report = judged(forecaster(exact, rows, better))
    assert report.verdict == "illegal"
    assert "distribution" in {finding.evidence["audit"] for finding in report.findings}
