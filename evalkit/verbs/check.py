"""Check a session's scores, or a stranger's forecaster, for legality: the audits, the bytes, the budget, a decode."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evalkit.codec import compress, decompress
from evalkit.legality.audit import audit
from evalkit.legality.bytes import budget, recount
from evalkit.legality.evalue import bounded_bets
from evalkit.legality.options import FALSE_ALARM, AuditOptions
from evalkit.legality.report import Finding, LegalityReport
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.log import LOG, timed
from evalkit.prequential.loop import DEFAULT_SPAN
from evalkit.verbs.session import ScoreOptions, Session, open_session

DECODE_SLACK_BITS = 64.0
DECODE_SLACK_SHARE = 1e-3
"""What a real code may take beyond the ledger's claim: a word of the coder, and the rounding of probabilities."""

_RECOUNT_TOKENS = 2_000_000
_SALTED_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How to check.

    Attributes:
        span: tokens a span.
        budget_seconds: wall time for the audits.
        max_tokens: length of the part of the stream that every audit looks at; a stranger's scores of what follows are
            salted as far as the budget reaches.
        decode_tokens: compress and decompress this many tokens as well; 0 leaves it out.
        code: code files that ship with the artifact, for the size.
        seed: of every random choice.
    """

    span: int = 256
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
    bytes_per_token = max(float(counted.mean()), 1e-3)
    late = _salt_after_warm_up(session, how, bytes_per_token)
    if late.findings:
        # Convicted: nothing that the other audits could find would change the verdict.
        report = late
    else:
        report = audit(
            _no_arguments(session.make_forecaster),
            tokens,
            _audit_options(how, len(session.stream), bytes_per_token=bytes_per_token, bos=session.tokenizer.bos_id),
        ).merged(late)
    report = report.with_(covered={"subject": session.subject()})
    for name, facts in report.covered.items():
        LOG.debug("audit %s: %s", name, facts)
    LOG.debug("audits took %.2f s", report.seconds)
    with timed("counted bytes again"):
        report = _with(report, "bytes", *_recount(session))
    if session.artifact is not None:
        report = _with(report, "budget", *budget([session.artifact.path, *how.code]))
    if how.decode_tokens:
        span = int(getattr(session.make_forecaster(), "preferred_span", DEFAULT_SPAN))
        with timed(f"compressed and decompressed {how.decode_tokens:,} tokens"):
            report = _with(report, "decode", *_check_decode(session, how.decode_tokens, span))
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
    options = _audit_options(how, stream_tokens, bytes_per_token=None, bos=bos)
    report = audit(spec, tokens, replace(options, stream_files=tuple(stream_files)))
    if how.code:
        report = _with(report, "budget", *budget(how.code))
    return report


def _audit_options(how: CheckOptions, stream_tokens: int, *, bytes_per_token: float | None, bos: int) -> AuditOptions:
    return AuditOptions(
        span=how.span,
        budget_seconds=how.budget_seconds,
        seed=how.seed,
        max_tokens=how.max_tokens,
        stream_tokens=stream_tokens,
        bytes_per_token=bytes_per_token,
        bos=max(bos, 0),
    )


def _salt_after_warm_up(session: Session, how: CheckOptions, bytes_per_token: float) -> LegalityReport:
    """Estimate what the probabilities sum to where a forecaster says that its warm-up is over.

    A forecaster that changes its ways after ``warm_up_tokens`` learns that much text unscored, and is then scored once
    on text in which every eighth token is drawn uniformly: at those, V p(v) has mean sum_v p(v), at most 1 for a code.
    """
    forecaster: Any = session.make_forecaster()
    warm_up = int(getattr(forecaster, "warm_up_tokens", 0))
    if not warm_up:
        return LegalityReport()
    began = time.monotonic()
    end = warm_up + 1 + _SALTED_TOKENS
    tokens = session.stream.read(0, min(len(session.stream), end)).astype(np.int64)
    while len(tokens) < end:
        tokens = np.concatenate([tokens, tokens])[:end]  # a short stream is gone through again
    vocab_size = session.vocab_size
    generator = np.random.default_rng([how.seed, 17])
    salted = np.arange(warm_up + 8, end, 8)
    tokens[salted] = generator.integers(0, vocab_size, len(salted))
    start = 1
    while start <= warm_up:
        stop = min(int(forecaster.next_boundary(start)), warm_up + 1)
        forecaster.observe(tokens[:stop], start, stop)
        start = stop
    nll = np.concatenate(
        [forecaster.score(tokens[:stop], start, stop) for start, stop in _pieces(forecaster, warm_up + 1, end)]
    )
    ratios = vocab_size * np.exp(-nll[salted - warm_up - 1])
    evidence = bounded_bets(ratios)
    mean_sum = float(ratios.mean())
    nats = max(math.log(max(mean_sum, 1e-300)), 0.0)
    facts = {
        "positions": len(salted),
        "warm_up_tokens": warm_up,
        "mean_sum": mean_sum,
        "standard_error": float(ratios.std() / math.sqrt(len(ratios))),
        "p_value": evidence.p_value,
        "nats": nats,
        "bpb": nats / math.log(2) / bytes_per_token,
    }
    finding = Finding(
        axiom="normalisation",
        position=int(salted[0]),
        evidence=facts,
        message=f"After its warm-up of {warm_up:,} tokens the probabilities sum to {mean_sum:.2f} on average "
        f"(+-{facts['standard_error']:.2f}), where 1 is the most that a code can have: about "
        f"{facts['bpb']:.3f} bits per byte of the score are fiction (p = {evidence.p_value:.2g}).",
    )
    return LegalityReport(
        findings=(finding,) if evidence.p_value < FALSE_ALARM / 5 else (),
        covered={"salting after warm-up": facts},
        seconds=time.monotonic() - began,
    )


def _pieces(forecaster: Any, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        stop = min(int(forecaster.next_boundary(start)), end)
        yield start, stop
        start = stop


def _recount(session: Session) -> tuple[list[Finding], dict[str, Any]]:
    """Count the bytes again from the decoded text; of a very long stream, from its first two million tokens."""
    tokens = session.stream.read(0, min(len(session.stream), _RECOUNT_TOKENS)).astype(np.int64)
    claimed = session.tokenizer.byte_table.count(tokens[:-1], tokens[1:])
    return recount(tokens, claimed, session.tokenizer.decode, bos=session.tokenizer.bos_id)


def _check_decode(session: Session, count: int, span: int) -> tuple[list[Finding], dict[str, Any]]:
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
    findings = []
    allowed = coded.ledger_bits * (1 + DECODE_SLACK_SHARE) + DECODE_SLACK_BITS
    if coded.words_bits > allowed:
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
        same = bool(np.array_equal(decoded, tokens))
    except InputError as error:
        same = False
        covered["error"] = str(error)
    covered["decoded"] = same
    if not same:
        findings.append(
            Finding(
                axiom="causality",
                position=None,
                evidence=covered,
                message="A decoder that has the artifact and the bits does not get the tokens back.",
            )
        )
    return findings, covered


def _no_arguments(make: Callable[[], Any]) -> Callable[[], Any]:
    """Return a plain function: audits tell factories of their own from names by type."""
    return lambda: make()


def _with(report: LegalityReport, name: str, findings: Sequence[Finding], covered: Mapping[str, Any]) -> LegalityReport:
    return report.with_(findings=findings, covered={name: covered})
