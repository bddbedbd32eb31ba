"""Check a session's scores, or a stranger's forecaster, for legality: the audits, the bytes, the budget, a decode."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evalkit.codec import compress, decompress
from evalkit.legality.audit import audit
from evalkit.legality.bytes import budget, recount_stream
from evalkit.legality.childhost import ChildFactory
from evalkit.legality.known import LATE_TOKENS
from evalkit.legality.options import OFFSETS, AuditOptions
from evalkit.legality.report import Finding, LegalityReport
from evalkit.network.factory import ModuleSource
from evalkit.plumbing.constants import BUDGET_SECONDS
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.log import LOG, timed
from evalkit.prequential.forecaster import preferred_span, warm_up_tokens
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.session import Session, open_session

if TYPE_CHECKING:
    from evalkit.network.causality import Leak

DECODE_SLACK_BITS = 64.0
DECODE_SLACK_SHARE = 1e-3
"""What a real code may take beyond the ledger's claim: a word of the coder, and the rounding of probabilities."""

STRANGERS_SPAN = 64
"""Short enough that a stranger's slow code can be asked about every position of a few thousand tokens."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How to check. How much is done follows from the stream and counts; the seconds can only cut it short.

    Attributes:
        span: tokens a span; 0 takes those in which ``score`` asks, and 64 for a stranger's forecaster.
        budget_seconds: wall time that the audits may take at most.
        positions: at how many positions sums over the vocabulary are made, each in two ways; None for the usual number.
        offsets: places of a span from which on later tokens are replaced.
        max_tokens: length of the part of the stream that every audit looks at; a stranger's scores of what follows are
            salted as far as the budget reaches.
        decode_tokens: compress and decompress this many tokens as well; 0 leaves it out.
        code: code files that ship with the artifact, for the size.
        seed: of every random choice.
    """

    span: int = 0
    budget_seconds: float = BUDGET_SECONDS
    positions: int | None = None
    offsets: int = OFFSETS
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
    forecaster = session.make_forecaster()
    span = session.preferred_span or preferred_span(forecaster)
    warm_up = warm_up_tokens(forecaster)
    needed = max(how.max_tokens, warm_up + 1 + LATE_TOKENS if warm_up else 0)
    tokens = session.stream.read(0, min(len(session.stream), needed)).astype(np.int64)
    counted = session.num_bytes.count_span(tokens, 1, len(tokens))
    options = _audit_options(
        how,
        span=how.span or span,
        stream_tokens=len(session.stream),
        bytes_per_token=max(float(counted.mean()), 1e-3),
        bos=max(session.tokenizer.bos_id, 0),
    )
    make = _no_arguments(session.make_forecaster)
    leak = session.find_leak()
    # A leak convicts: nothing that the audits could find would change the verdict.
    report = _of_leak(leak) if leak is not None else audit(_audited(session) or make, tokens, options)
    for name, facts in report.covered.items():
        LOG.debug("audit %s: %s", name, facts)
    LOG.debug("audits took %.2f s", report.seconds)
    report = replace(report, covered={**report.covered, "subject": session.subject()})
    with timed("counted bytes again"):
        report = _recounted(report, session)
    if session.artifact is not None:
        code = (*how.code, *(file.path for file in session.code))
        report = _with(report, "budget", *budget([*session.artifact.shipped, *code]))
    if how.decode_tokens:
        with timed(f"compressed and decompressed {how.decode_tokens:,} tokens"):
            report = _with(report, "decode", *_decode(session, make, how.decode_tokens, preferred_span(forecaster)))
    return report


def check_forecaster(
    spec: str,
    tokens: np.ndarray[Any, Any],
    how: CheckOptions,
    *,
    bos: int = 1,
    stream_files: Sequence[str] = (),
    stream_tokens: int = 0,
) -> LegalityReport:
    """Check a stranger's forecaster, ``FILE.py:FACTORY`` or ``package.module:FACTORY``, in child processes.

    Args:
        spec: names the factory.
        tokens: the stream, or its beginning.
        how: span, budget and so on.
        bos: token that opens a document.
        stream_files: files that hold the stream, which the forecaster must not open.
        stream_tokens: length of the whole stream, where ``tokens`` are its beginning.

    Raises:
        InputError: the factory cannot be loaded, or the stream is unusable.
    """
    options = _audit_options(
        how,
        span=how.span or STRANGERS_SPAN,
        stream_tokens=stream_tokens,
        stream_files=tuple(stream_files),
        bos=max(bos, 0),
    )
    report = audit(spec, tokens, options)
    return _with(report, "budget", *budget(how.code)) if how.code else report


def _audit_options(how: CheckOptions, **stream: Any) -> AuditOptions:
    asked = ("budget_seconds", "positions", "offsets", "seed", "max_tokens")
    return AuditOptions(**{name: getattr(how, name) for name in asked}, **stream)


def _recounted(report: LegalityReport, session: Session) -> LegalityReport:
    """Return the report with what another count of the bytes says."""
    sidecar = session.sidecar
    if sidecar is None:
        findings, covered, doubts = recount_stream(session.stream, session.tokenizer)
        return _with(report, "bytes", findings, covered).with_(uncovered=doubts)
    facts = {"token_bytes_sha256": sidecar.sha256, "documents": sidecar.documents}
    if sidecar.documents is not None:  # compared with the text when it was opened, or there would be no session
        return report.with_(covered={"bytes": facts})
    gap = "the bytes are those that --token-bytes says; without the original (--text) they were compared with nothing"
    return report.with_(covered={"bytes": facts}, uncovered=[gap])


def _decode(session: Session, make: Callable[[], Any], count: int, span: int) -> tuple[list[Finding], dict[str, Any]]:
    """Code the first tokens for real and compare the bits with the ledger; nothing convinces more."""
    tokens = session.stream.read(0, min(len(session.stream), count + 1)).astype(np.int64)
    sha256 = session.artifact.sha256 if session.artifact else ""
    coded = compress(make, tokens, artifact_sha256=sha256, span=span)
    covered: dict[str, Any] = {
        "tokens": coded.tokens,
        "bits": coded.words_bits,
        "ledger_bits": coded.ledger_bits,
        "excess_bits": coded.words_bits - coded.ledger_bits,
    }
    findings = []
    if coded.words_bits > coded.ledger_bits * (1 + DECODE_SLACK_SHARE) + DECODE_SLACK_BITS:
        excess = (coded.words_bits - coded.ledger_bits) * math.log(2)
        findings.append(
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
        covered["decoded"] = bool(np.array_equal(decoded, tokens))
    except InputError as error:
        covered |= {"decoded": False, "error": str(error)}
    if not covered["decoded"]:
        findings.append(
            Finding(
                axiom="causality",
                position=None,
                evidence=covered,
                message="A decoder that has the artifact and the bits does not get the tokens back.",
            )
        )
    return findings, covered


def _audited(session: Session) -> ChildFactory | None:
    """Return the module of a session as a stranger in a child process; None for evalkit's own code."""
    source, window = session.artifact, session.sliding
    if not isinstance(source, ModuleSource) or not source.files or window is None or window.device != "cpu":
        return None  # a model object cannot be sent anywhere, and a GPU cannot be shared with a forked copy
    from evalkit.verbs.served import child_factory

    return child_factory(session)


def _of_leak(leak: Leak) -> LegalityReport:
    finding = Finding(
        axiom="causality",
        position=leak.row + 1,
        evidence={"nats": leak.nats, "distance": leak.distance, "tolerance": leak.tolerance},
        message=f"{leak.message[0].upper()}{leak.message[1:]}.",
    )
    return LegalityReport(findings=(finding,), covered={"module causality": {"row": leak.row, "nats": leak.nats}})


def _no_arguments(make: Callable[[], Any]) -> Callable[[], Any]:
    """Return a plain function: audits tell factories of their own from names by type."""
    return lambda: make()


def _with(report: LegalityReport, name: str, findings: Sequence[Finding], covered: Mapping[str, Any]) -> LegalityReport:
    """Return the report with what one more check says."""
    return report.with_(findings=findings, covered={name: covered})
