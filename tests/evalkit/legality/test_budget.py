"""The seconds are an upper limit that is kept and said; what is done within it follows from counts."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.legality.audit import audit
from evalkit.legality.driver import Run
from evalkit.legality.options import AuditOptions
from evalkit.legality.report import LegalityReport
from evalkit.legality.sources import BigramSource
from evalkit.legality.subject import Subject
from evalkit.legality.substitution import plan_positions

V = 16
CALL, BUDGET = 0.05, 0.4
MOST = math.ceil(BUDGET / CALL) + 1
"""Calls of CALL seconds that begin within BUDGET, at most: true on a machine of any speed."""


class Counts:
    vocab_size = V
    stated = True

    def __init__(self) -> None:
        self.counts = np.full((V, V), 0.1)

    def rows(self, tokens: Any, start: int, stop: int) -> Any:
        rows = self.counts[tokens[start - 1 : stop - 1]]
        return np.log(rows / rows.sum(axis=1, keepdims=True))

    def score(self, tokens: Any, start: int, stop: int) -> Any:
        return -self.rows(tokens, start, stop)[np.arange(stop - start), tokens[start:stop]]

    def observe(self, tokens: Any, start: int, stop: int) -> None:
        np.add.at(self.counts, (tokens[start - 1 : stop - 1], tokens[start:stop]), 1.0)


class Stated(Counts):
    def distribution(self, tokens: Any, start: int, stop: int) -> Any:
        return self.rows(tokens, start, stop)


def stream(n: int = 400) -> np.ndarray:
    return BigramSource.invented(V, 1).sample(n, 1, np.random.default_rng(0))[0]


@pytest.mark.parametrize("method", ["score", "observe", "distribution", "__init__"])
def test_no_call_of_ours_begins_after_the_budget(method: str) -> None:
    calls = []

    class Slow(Stated):
        pass

    def slow(self: Any, *arguments: Any) -> Any:
        calls.append(method)
        time.sleep(CALL)
        return getattr(Stated, method)(self, *arguments)

    setattr(Slow, method, slow)
    report = audit(Slow, stream(), AuditOptions(span=32, budget_seconds=BUDGET))
    assert len(calls) <= MOST
    assert report.findings == ()
    assert report.verdict == "unproven"
    assert report.covered["audit"]["cut_short"]


SLOW = """
import os, sys, time
import numpy as np

def slow(method, own):
    if method == own:
        os.write(os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), b".")
        time.sleep({call})

class Slow:
    vocab_size = 16
    def score(self, tokens, start, stop):
        slow("score", {method!r})
        {learns}
        return np.full(stop - start, np.log(16)) + 1e-3 * getattr(self, "calls", 0)
    def observe(self, tokens, start, stop):
        slow("observe", {method!r})
    def distribution(self, tokens, start, stop):
        slow("distribution", {method!r})
        return np.full((stop - start, 16), -np.log(16))
    def next_boundary(self, start):
        slow("next_boundary", {method!r})
        return start + 32

def make():
    slow("make", {method!r})
    return Slow()
"""


@pytest.mark.parametrize(
    ("method", "learns", "seconds"),
    [
        ("score", "pass", CALL),
        ("score", "self.calls = getattr(self, 'calls', -1) + 1", CALL),
        ("observe", "pass", CALL),
        ("next_boundary", "pass", CALL),
        # asked for 26 rows and made 17 times: seconds that outlast the budget even where two processes share the calls
        ("distribution", "pass", 8 * CALL),
        ("make", "pass", 8 * CALL),
    ],
)
def test_no_call_of_a_strangers_begins_after_the_budget(
    method: str, learns: str, seconds: float, tmp_path: Path
) -> None:
    """In two processes at most; also where every call is made in a forked copy, since ``score`` learns."""
    log = tmp_path / "log"
    source = SLOW.format(log=str(log), call=seconds, method=method, learns=learns)
    (tmp_path / "slow.py").write_text(source)
    report = audit(f"{tmp_path}/slow.py:make", stream(), AuditOptions(span=32, budget_seconds=4 * BUDGET))
    calls = log.stat().st_size if log.exists() else 0
    assert calls <= 2 * (math.ceil(4 * BUDGET / seconds) + 1)
    assert report.findings == ()
    assert report.covered["audit"]["cut_short"]
    # the sums, for which no row is asked, and few fresh forecasters may have sufficed
    assert report.verdict == "unproven" or method in ("distribution", "make")


def facts(report: LegalityReport) -> dict[str, Any]:
    document = report.to_dict()
    document.pop("seconds")
    for each in document["covered"].values():
        each.pop("seconds", None)
    return document


@pytest.mark.parametrize("make", [Counts, Stated])
def test_a_budget_that_suffices_changes_nothing(make: type[Counts]) -> None:
    """Positions, sums and calls are counts: with a limit of time or without, and however busy the machine is."""
    first, second = (audit(make, stream(300), AuditOptions(span=32, budget_seconds=s)) for s in (math.inf, 1e5))
    assert facts(first) == facts(second)
    assert first.verdict == "legal"
    assert first.covered["audit"]["cut_short"] == []


@pytest.mark.parametrize(
    ("vocab_size", "states_rows", "ours", "single", "span"),
    [
        (16, False, False, 999, 999),  # all
        (1024, False, False, 256, 64),
        (1024, False, True, 256, 64),
        (65_536, False, False, 128, 1),  # an unbroken run, whatever it costs
        (1024, True, False, 2, 2),
        (1024, True, True, 0, 0),
        (256, True, True, 2, 2),
        (65_536, True, False, 0, 0),
    ],
)
def test_sums_are_planned_by_the_calls_that_they_take(
    vocab_size: int, states_rows: bool, ours: bool, single: int, span: int
) -> None:
    tokens = np.zeros(1000, np.int64)
    spans = tuple((start, min(start + 64, 1000)) for start in range(1, 1000, 64))
    subject = Subject(
        tokens=tokens,
        stream=tokens,
        options=AuditOptions(),
        deadline=math.inf,
        base=Run(nats=np.zeros(999), spans=spans),
        grid="float64",
        vocab_size=vocab_size,
        states_rows=states_rows,
    )
    assert plan_positions(subject, "single", ours=ours) == single
    assert plan_positions(subject, "span", ours=ours) == span
    asked = replace(subject, options=AuditOptions(positions=3))
    assert plan_positions(asked, "single", ours=ours) == plan_positions(asked, "span", ours=ours) == 3


def test_where_the_budget_ends_an_audit_the_report_says_so() -> None:
    report = LegalityReport(covered={"audit": {"cut_short": ["suffix, 3 of 9 positions"]}})
    assert report.verdict == "legal"
    assert "cut short by the budget: suffix, 3 of 9 positions" in report.summary()
