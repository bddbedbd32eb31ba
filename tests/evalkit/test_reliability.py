"""The reliability curve: counts against a naive twin, honest and overconfident forecasters, scores left as they are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evalkit
from evalkit.plumbing.errors import InputError
from evalkit.prequential import reliability as module
from evalkit.prequential.reliability import LOG_ODDS, ReliabilityForecaster, count
from evalkit.prequential.resume import dump_state, parse_state
from evalkit.report.series import reliability

VOCAB = 8


def rows_of(rng: np.random.Generator, n: int, spread: float = 3.0) -> np.ndarray[Any, Any]:
    logits = rng.normal(0, spread, (n, VOCAB))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_counts_are_those_of_the_naive_twin(rng: np.random.Generator) -> None:
    rows, targets = rows_of(rng, 200, spread=8.0), rng.integers(0, VOCAB, 200)
    tokens, expected, occurred = [0] * 2 * LOG_ODDS, [0.0] * 2 * LOG_ODDS, [0] * 2 * LOG_ODDS
    for row, target in zip(rows, targets, strict=True):
        for token, logp in enumerate(row):
            p = math.exp(logp)
            odds = math.inf if p >= 1 else math.log(p / (1 - p))
            k = int(min(max(math.floor(max(min(odds, 99), -99)) + LOG_ODDS, 0), 2 * LOG_ODDS - 1))
            tokens[k] += 1
            expected[k] += p
            occurred[k] += token == target
    got = count(rows, targets)
    assert got.tokens.tolist() == tokens
    assert got.expected == pytest.approx(expected)
    assert got.occurred.tolist() == occurred


def test_certainty_and_impossibility_have_bins() -> None:
    got = count(np.array([[0.0, -np.inf]]), np.array([1]))
    assert got.tokens[-1] == got.tokens[0] == got.occurred[0] == 1
    assert got.expected.sum() == 1


class Known:
    """States the rows it was given; ``sharpness`` above 1 makes it overconfident about them."""

    vocab_size = VOCAB
    preferred_span = 64

    def __init__(self, rows: np.ndarray[Any, Any], sharpness: float = 1.0) -> None:
        scaled = rows * sharpness
        self.rows = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
        self.asked = 0

    def score(self, tokens: Any, start: int, stop: int) -> Any:
        return -self.rows[np.arange(start, stop), tokens[start:stop]]

    def distribution(self, tokens: Any, start: int, stop: int) -> Any:
        assert len(tokens) == stop
        self.asked += stop - start
        return self.rows[start:stop]

    def observe(self, tokens: Any, start: int, stop: int) -> None:
        pass


def run(forecaster: ReliabilityForecaster, tokens: Any, spans: int = 64) -> dict[str, Any]:
    for start in range(1, len(tokens), spans):
        stop = min(start + spans, len(tokens))
        forecaster.score(tokens[:stop], start, stop)
        forecaster.observe(tokens[:stop], start, stop)
    result: dict[str, Any] = forecaster.report()["reliability"]
    return result


def test_honest_points_lie_on_the_diagonal_and_overconfident_ones_beside_it(rng: np.random.Generator) -> None:
    rows = rows_of(rng, 20_001)
    tokens = (np.exp(rows).cumsum(1) > rng.random(20_001)[:, None]).argmax(1)
    honest = reliability(run(ReliabilityForecaster(Known(rows), 20_000, 20_000), tokens))
    assert len(honest) > 10
    inside = [p["low"] <= p["stated"] <= p["high"] for p in honest]
    assert sum(inside) >= len(inside) - 2
    bold = reliability(run(ReliabilityForecaster(Known(rows, 1.5), 20_000, 20_000), tokens))
    assert bold[0]["stated"] < bold[0]["low"]  # what it calls impossible comes
    assert bold[-1]["stated"] > bold[-1]["high"]  # what it calls certain stays out


def test_samples_are_spread_and_small(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, tokens = rows_of(rng, 6401), rng.integers(0, VOCAB, 6401)
    known = Known(rows)
    sampled = run(ReliabilityForecaster(known, 640, 6400), tokens)
    assert sampled["positions"] == known.asked == 640
    assert sampled["expected"].sum() == pytest.approx(640)
    assert sampled["occurred"].sum() == 640
    assert sampled["max_difference"] == 0
    monkeypatch.setattr(module, "_MAX_NUMBERS", 10 * VOCAB)  # a large vocabulary: ten rows at a time
    assert run(ReliabilityForecaster(Known(rows), 10**9, 6400), tokens)["positions"] == 1000


def test_a_row_that_is_not_the_scores_shows(rng: np.random.Generator) -> None:
    rows, tokens = rows_of(rng, 65), rng.integers(0, VOCAB, 65)
    known = Known(rows)
    known.score = lambda tokens, start, stop: np.full(stop - start, 0.5)  # type: ignore[method-assign]
    assert run(ReliabilityForecaster(known, 64, 64), tokens)["max_difference"] > 0.1


def test_a_saved_state_goes_on(rng: np.random.Generator) -> None:
    rows, tokens = rows_of(rng, 641), rng.integers(0, VOCAB, 641)
    whole = run(ReliabilityForecaster(Known(rows), 10_000, 640), tokens)
    first, second = (ReliabilityForecaster(Known(rows), 10_000, 640) for _ in range(2))
    run(first, tokens[:321])
    second.load_state_dict(parse_state(dump_state(first.state_dict())))
    for start in range(321, 641, 64):
        second.score(tokens[: start + 64], start, start + 64)
        second.observe(tokens[: start + 64], start, start + 64)
    got = second.report()["reliability"]
    assert got["positions"] == whole["positions"] == 640
    assert got["tokens"].tolist() == whole["tokens"].tolist()
    assert got["expected"] == pytest.approx(whole["expected"], rel=1e-12)


@pytest.mark.parametrize("how", [{"mixer": "hedge", "ttt": True}, {"context": "streaming"}, {}])
def test_scores_stay_to_the_bit(
    tiny_artifact: Path, tokenizer_path: Path, text_path: Path, how: dict[str, Any]
) -> None:
    options = evalkit.ScoreOptions(
        artifact=str(tiny_artifact),
        tokenizer=str(tokenizer_path),
        text=str(text_path),
        seq_len=64,
        limit_tokens=500,
        **how,
    )
    plain, sampled = evalkit.score(options), evalkit.score(replace(options, reliability=200))
    assert sampled.ledger_sha256 == plain.ledger_sha256
    assert sampled.reliability is not None
    assert sampled.reliability["positions"] >= 200
    assert sampled.reliability["max_difference"] < 1e-9
    assert plain.reliability is None


def test_a_forecaster_without_distributions_is_refused() -> None:
    with pytest.raises(InputError, match="states no distribution"):
        ReliabilityForecaster(object(), 1, 1)  # type: ignore[arg-type]
