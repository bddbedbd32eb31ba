"""One pattern of spans: what scores, audits and codes asks a forecaster in the same places."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.codec import compress
from evalkit.legality.audit import audit
from evalkit.legality.driver import affordable
from evalkit.legality.hosts import LocalHost
from evalkit.legality.options import AuditOptions
from evalkit.plumbing.errors import ForecasterError
from evalkit.prequential.ledger import Ledger
from evalkit.prequential.loop import run_prequential
from evalkit.prequential.spans import spans
from evalkit.tokens.stream import TokenStream
from evalkit.verbs.check import CheckOptions, check_session
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.score import score_session
from evalkit.verbs.session import Session, open_session

V = 384


class Uniform:
    """Gives every token the same probability, and notes the spans that it observes."""

    vocab_size = V

    def __init__(self) -> None:
        self.observed: list[tuple[int, int]] = []

    def score(self, tokens: Any, start: int, stop: int) -> Any:
        return np.full(stop - start, np.log(V))

    def distribution(self, tokens: Any, start: int, stop: int) -> Any:
        return np.full((stop - start, V), -np.log(V))

    def next_distribution(self, prefix: Any) -> Any:
        return np.full(V, -np.log(V))

    def observe(self, tokens: Any, start: int, stop: int) -> None:
        self.observed.append((start, stop))


class Prefers(Uniform):
    preferred_span = 300


class Learns(Uniform):
    """Must learn at seams that no span length falls on."""

    def next_boundary(self, start: int) -> int:
        return (start // 700 + 1) * 700


class Both(Prefers, Learns):
    pass


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 60), st.integers(1, 40), st.lists(st.integers(1, 210)))
def test_spans_cover_every_position_once_and_stop_where_they_must(
    end: int, span: int, seam: int, start: int, cuts: list[int]
) -> None:
    cuts = sorted(cuts)
    found = list(spans(end, span, lambda p: (p // seam + 1) * seam, start=start, cuts=cuts))
    edges = [start, *(stop for _, stop in found)]
    assert found == list(pairwise(edges))
    assert edges[-1] == max(start, end)
    assert all(a < b for a, b in found)
    must = {p for p in range(start + 1, end) if (p - 1) % span == 0 or p % seam == 0 or p in cuts}
    assert set(edges[1:-1]) == must


def test_a_boundary_that_is_not_later_is_refused() -> None:
    with pytest.raises(ForecasterError, match=r"next_boundary\(1\) returned 1; expected a later position"):
        list(spans(10, 4, lambda position: position))


@pytest.fixture
def session(tokenizer_path: Path, text_path: Path) -> Session:
    return open_session(
        ScoreOptions(
            artifact=None, tokenizer=str(tokenizer_path), text=str(text_path), mixer="hedge", limit_tokens=5000
        )
    )


@pytest.mark.parametrize("kind", [Uniform, Prefers, Learns, Both])
def test_check_audits_the_spans_that_score_uses(
    kind: type[Uniform], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Uniform] = []

    def make(*_: Any) -> Uniform:
        made.append(kind())
        return made[-1]

    monkeypatch.setattr(Session, "make_forecaster", make)
    assert session.vocab_size == V  # of the tiny tokenizer
    score_session(session)
    scored = made[0].observed
    assert scored[-1][1] == len(session.stream)
    made.clear()
    report = check_session(session, CheckOptions(budget_seconds=math.inf, positions=1, offsets=1))
    passes = [forecaster.observed for forecaster in made if forecaster.observed]
    assert passes[0] == scored, "the first pass is the ledger"
    assert sum(observed == scored for observed in passes) >= 8, "and so is every pass over the whole stream"
    assert report.findings == ()
    made.clear()
    check_session(session, CheckOptions(budget_seconds=math.inf, positions=1, offsets=1, span=97, max_tokens=600))
    first = next(forecaster.observed for forecaster in made if forecaster.observed)
    assert first[:2] == [(1, 98), (98, 195)], "--span overrides it"


@pytest.mark.parametrize("kind", [Uniform, Prefers, Learns, Both])
def test_the_coder_asks_in_the_spans_of_the_ledger(kind: type[Uniform], session: Session) -> None:
    tokens = session.stream.read(0, len(session.stream)).astype(np.int64)
    scored, coded = kind(), kind()
    stream: TokenStream = session.stream
    run_prequential(scored, stream, session.tokenizer.byte_table, Ledger())
    compress(lambda: coded, tokens)
    assert coded.observed == scored.observed


def test_a_last_span_is_cut_to_what_the_seconds_allow() -> None:
    class Slow(Uniform):
        """Asks for no clock: its seconds are those that it says."""

        asked: list[int]

        def score(self, tokens: Any, start: int, stop: int) -> Any:
            self.asked.append(stop - start)
            return super().score(tokens, start, stop)

    host = LocalHost(Slow)
    host.fresh(0)
    assert isinstance(host.instance, Slow)
    span = np.zeros(5000, np.int64)
    for seconds, length, asked in ((math.inf, 5000, []), (-1.0, 256, [1, 256]), (3600.0, 5000, [1, 256])):
        host.instance.asked = []
        assert affordable(host, span, seconds) == length
        assert host.instance.asked[: len(asked)] == asked
    assert affordable(host, span[:256], -1.0) == 256


def test_the_seconds_cut_an_audit_and_the_counts_decide_the_rest() -> None:
    """Two audits without a clock are the same audit."""
    tokens = np.random.default_rng(0).integers(0, V, 900)
    options = AuditOptions(span=300, budget_seconds=math.inf, positions=4, offsets=16)
    first, second = (audit(Learns, tokens, replace(options)).to_dict() for _ in range(2))
    for report in (first, second):
        report.pop("seconds")
        for facts in report["covered"].values():
            facts.pop("seconds", None)
    assert first == second
