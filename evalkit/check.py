"""Check a session's scores, or a stranger's forecaster, for legality: the audits, the bytes, the budget, a decode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalkit.codec import compress, decompress
from evalkit.compose import ScoreOptions, Session, open_session
from evalkit.errors import InputError
from evalkit.legality.audit import audit
from evalkit.legality.bytes import budget, recount
from evalkit.legality.options import AuditOptions
from evalkit.legality.report import Finding, LegalityReport
from evalkit.prequential.loop import DEFAULT_SPAN

DECODE_SLACK_BITS = 64.0
DECODE_SLACK_SHARE = 1e-3
"""What a real code may take beyond the ledger's claim: a word of the coder, and the rounding of probabilities."""

_RECOUNT_TOKENS = 2_000_000


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How to check.

    Attributes:
        span: tokens a span; 0 takes what the forecaster prefers.
        budget_seconds: wall time for the audits.
        max_tokens: length of the part of the stream that is audited.
        decode_tokens: compress and decompress this many tokens as well; 0 leaves it out.
        code: code files that ship with the artifact, for the size.
        seed: of every random choice.
    """

    span: int = 0
    budget_seconds: float = 60.0
    max_tokens: int = 8192
    decode_tokens: int = 0
    code: tuple[str, ...] = ()
    seed: int = 0


def check(options: ScoreOptions, how: CheckOptions | None = None) -> LegalityReport:
    """Check what ``evalkit score`` with the same options would report.

    Raises:
        InputError: an input is unusable.
    """
    return check_session(open_session(options), how or CheckOptions())


def check_session(session: Session, how: CheckOptions) -> LegalityReport:
    """Check an opened session; see :func:`check`."""
    tokens = session.stream.read(0, min(len(session.stream), how.max_tokens)).astype(np.int64)
    counted = session.tokenizer.byte_table.count(tokens[:-1], tokens[1:])
    span = how.span or int(getattr(session.make_forecaster(), "preferred_span", DEFAULT_SPAN))
    report = audit(
        _no_arguments(session.make_forecaster),
        tokens,
        _audit_options(how, span, bytes_per_token=max(float(counted.mean()), 1e-3), bos=session.tokenizer.bos_id),
    )
    _add(report, "bytes", *_recount(session))
    if session.artifact is not None:
        _add(report, "budget", *budget([session.artifact.path, *how.code]))
    if how.decode_tokens:
        _check_decode(report, session, how.decode_tokens, span)
    return report


def check_forecaster(spec: str, tokens: np.ndarray[Any, Any], how: CheckOptions, *, bos: int = 1) -> LegalityReport:
    """Check a stranger's forecaster, ``FILE.py:FACTORY`` or ``package.module:FACTORY``, in child processes.

    Raises:
        InputError: the factory cannot be loaded, or the stream is unusable.
    """
    report = audit(spec, tokens, _audit_options(how, how.span or 64, bytes_per_token=None, bos=bos))
    if how.code:
        _add(report, "budget", *budget(how.code))
    return report


def _audit_options(how: CheckOptions, span: int, *, bytes_per_token: float | None, bos: int) -> AuditOptions:
    return AuditOptions(
        span=span,
        budget_seconds=how.budget_seconds,
        seed=how.seed,
        max_tokens=how.max_tokens,
        bytes_per_token=bytes_per_token,
        bos=max(bos, 0),
    )


def _recount(session: Session) -> tuple[list[Finding], dict[str, Any]]:
    """Count the bytes again from the decoded text; of a very long stream, from its first two million tokens."""
    tokens = session.stream.read(0, min(len(session.stream), _RECOUNT_TOKENS)).astype(np.int64)
    claimed = session.tokenizer.byte_table.count(tokens[:-1], tokens[1:])
    return recount(tokens, claimed, session.tokenizer.decode, bos=session.tokenizer.bos_id)


def _check_decode(report: LegalityReport, session: Session, count: int, span: int) -> None:
    """Code the first tokens for real and compare the bits with the ledger; nothing convinces more."""
    tokens = session.stream.read(0, min(len(session.stream), count + 1)).astype(np.int64)
    sha256 = session.artifact.sha256 if session.artifact else ""
    make = _no_arguments(session.make_forecaster)
    coded = compress(make, tokens, artifact_sha256=sha256, span=span)
    covered: dict[str, Any] = {
        "tokens": coded.tokens,
        "bits": coded.words_bits,
        "ledger_bits": coded.ledger_bits,
        "excess_bits": coded.words_bits - coded.ledger_bits,
    }
    report.covered["decode"] = covered
    allowed = coded.ledger_bits * (1 + DECODE_SLACK_SHARE) + DECODE_SLACK_BITS
    if coded.words_bits > allowed:
        excess = (coded.words_bits - coded.ledger_bits) * math.log(2)
        report.findings.append(
            Finding(
                axiom="normalisation",
                position=None,
                evidence={**covered, "nats": excess},
                message=f"A real code of the first {coded.tokens:,} tokens takes {coded.words_bits:,} bits; the scores "
                f"claim {coded.ledger_bits:,.0f}: their probabilities are not those that a decoder has.",
            )
        )
    try:
        decoded = decompress(make, coded.data, artifact_sha256=sha256)
        same = bool(np.array_equal(decoded, tokens))
    except InputError as error:
        same = False
        covered["error"] = str(error)
    covered["decoded"] = same
    if not same:
        report.findings.append(
            Finding(
                axiom="causality",
                position=None,
                evidence=covered,
                message="A decoder that has the artifact and the bits does not get the tokens back.",
            )
        )


def _no_arguments(make: Callable[[], Any]) -> Callable[[], Any]:
    """Return a plain function: audits tell factories of their own from names by type."""
    return lambda: make()


def _add(report: LegalityReport, name: str, findings: Sequence[Finding], covered: dict[str, Any]) -> None:
    report.findings.extend(findings)
    report.covered[name] = covered
