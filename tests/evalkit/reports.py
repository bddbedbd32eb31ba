"""Score reports for tests: an invented one, and variations on a real one."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.legality.report import Finding, LegalityReport
from evalkit.plumbing.provenance import CodeIdentity
from evalkit.report.load import read_report
from evalkit.report.score_report import ScoreReport, TokenizerIdentity, TokensIdentity


def invented_report(**changes: Any) -> ScoreReport:
    """Return a report of the online mixer alone on 3 tokens."""
    report = ScoreReport(
        artifact=None,
        recipe=None,
        config=None,
        config_origins=None,
        tokens=TokensIdentity(names=("val.bin",), sha256="0" * 64),
        tokenizer=TokenizerIdentity(path="tokenizer.model", sha256="1" * 64),
        tokens_scored=3,
        bytes_scored=4,
        bytes_raw=None,
        nats=6.0,
        stride=None,
        seq_len=None,
        device="cpu",
        dtype="float64",
        context=None,
        mixer="hedge",
        ttt=False,
        settings={"mixer": {}},
        verdict=None,
        ledger_sha256="2" * 64,
        seconds=0.5,
        tokens_per_second=6.0,
        versions={"evalkit": "0"},
        code=CodeIdentity(commit="3" * 40, dirty=False),
    )
    return replace(report, **changes)


def check_of(report: Path, *findings: Finding, **more: Any) -> LegalityReport:
    """Return what ``evalkit check`` would say of the score of a report, had it found this."""
    subject = read_report(report).report.subject()
    return LegalityReport(findings=findings, covered={"subject": subject}, **more)


def write_check(path: Path, check: LegalityReport) -> str:
    """Write a check; return its path."""
    path.write_text(json.dumps(check.to_dict()), encoding="utf-8")
    return str(path)


def write_report(path: Path, report: ScoreReport, nll: npt.NDArray[np.float64], num_bytes: npt.NDArray[Any]) -> Path:
    """Write a report of a run whose scores are ``nll``, and the per-token file beside it."""
    ledger = hashlib.sha256(nll.tobytes()).hexdigest()
    run = replace(report, nats=float(nll.sum()), bytes_scored=int(num_bytes.sum()), ledger_sha256=ledger)
    path.write_text(json.dumps(run.to_dict()), encoding="utf-8")
    buffer = io.BytesIO()
    np.savez(buffer, position=np.arange(1, len(nll) + 1), nll=nll, bytes=num_bytes.astype(np.int32))
    path.with_suffix(".npz").write_bytes(buffer.getvalue())
    return path
