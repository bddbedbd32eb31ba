"""Every violator of the gallery is caught with the right axiom, and no honest twin is accused.

They are judged as ``evalkit check --forecaster FILE.py:make`` judges a stranger: in child processes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from evalkit.legality.audit import audit
from evalkit.legality.fork_server import ForkServer
from evalkit.legality.options import AuditOptions
from evalkit.legality.sources import BigramSource

GALLERY = Path(__file__).parent / "gallery"
VIOLATORS = sorted(p.stem for p in GALLERY.glob("[vx]*.py"))
HONEST = sorted(p.stem for p in GALLERY.glob("h_*.py"))
BUDGET = math.inf
"""No clock decides a verdict: how much is done follows from the counts."""

POSITIONS = {"violator": 192, "honest": 64}
"""Sums over the vocabulary, in a span of their own and in the ledger's: an unbroken run of 128 and 64 more where a
fiction is to be met, and as few as a verdict of ``legal`` needs."""


TOKENS = {
    "h_learns_in_score": 48,
    **dict.fromkeys(
        ("h_own_noise", "h_module_noise"), 72
    ),  # two spans: noise of the second is another when asked again
    **dict.fromkeys(("h_adaptive_temperature", "h_hedge", "v12_last_epoch", "v20_two_orders"), 72),
    **dict.fromkeys(("v10_learns_too_early", "x_file_memory", "x_first_call_only", "x_random_scores"), 72),
    "v13_fitted_temperature": 400,
    **dict.fromkeys(("x_late_fiction", "x_rare_gate", "x_rewrites_input"), 640),
}
"""Tokens of those that show on any text what they do and take long over it (a process for every call in some), and of
those that show it late or seldom; 240 of all others."""


def axiom_of(name: str) -> str:
    """Return the axiom that the docstring of a violator names first."""
    head = (GALLERY / f"{name}.py").read_text().splitlines()[0].lower()
    return min((a for a in ("causality", "normalisation", "ledger") if a in head), key=head.index)


@pytest.fixture(scope="module")
def fork_server():
    """What all of the audits' processes are copies of; no stranger's code runs in it."""
    with ForkServer() as started:
        yield started


def judged(name: str, fork_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int = 0):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    tokens = TOKENS.get(name, 240)
    stream, _ = BigramSource.invented(16, 1).sample(tokens, 1, np.random.default_rng(seed))
    positions = min(POSITIONS["honest" if name in HONEST else "violator"], tokens // 2)
    options = AuditOptions(budget_seconds=BUDGET, positions=positions, seed=seed, bytes_per_token=2.4)
    return audit(f"{GALLERY / name}.py:make", stream, options, fork_server=fork_server)


def test_the_gallery_is_large_enough():
    assert len(VIOLATORS) >= 25
    assert len(HONEST) >= 12


@pytest.mark.parametrize("name", VIOLATORS)
def test_violator_is_illegal(name, fork_server, tmp_path, monkeypatch):
    report = judged(name, fork_server, tmp_path, monkeypatch)
    assert report.verdict == "illegal", report.summary()
    assert axiom_of(name) in {finding.axiom for finding in report.findings}, report.summary()
    json.dumps(report.to_dict(), allow_nan=False)
    for finding in report.findings:
        assert "To see it again" in finding.message


@pytest.mark.parametrize("name", HONEST)
def test_honest_twin_becomes_legal(name, fork_server, tmp_path, monkeypatch):
    report = judged(name, fork_server, tmp_path, monkeypatch)
    assert report.findings == (), report.summary()
    assert report.verdict == "legal", report.summary()
    json.dumps(report.to_dict(), allow_nan=False)


def test_sizes_are_right(fork_server, tmp_path, monkeypatch):
    report = judged("x_sparse_fiction", fork_server, tmp_path, monkeypatch)
    finding = report.findings[0]
    assert finding.position is not None
    assert finding.position % 97 == 13
    assert finding.evidence["nats"] == pytest.approx(1e-3, rel=1e-6)
    assert finding.evidence["bpb"] == pytest.approx(1e-3 / np.log(2) / 2.4, rel=1e-6)
    report = judged("x_sparse_peek", fork_server, tmp_path, monkeypatch)
    assert report.findings[0].position % 97 == 5
    assert report.findings[0].evidence["first_changed"] == report.findings[0].position + 1
