"""Score a stream with a session's forecaster and report the result."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from evalkit.legality.bytes import require_honest_bytes
from evalkit.network.causality import Leak
from evalkit.network.factory import SourceFile
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.log import LOG
from evalkit.plumbing.profiling import Profile
from evalkit.plumbing.progress import Progress
from evalkit.plumbing.provenance import code_identity, versions
from evalkit.plumbing.typed_json import to_json
from evalkit.prequential.forecaster import is_resumable, report_of
from evalkit.prequential.ledger import Ledger
from evalkit.prequential.loop import run_prequential
from evalkit.prequential.reliability import ReliabilityForecaster
from evalkit.prequential.resume import ResumeFolder, StateUnavailableError
from evalkit.report.score_report import (
    ArtifactIdentity,
    FileIdentity,
    Scored,
    TokenBytesIdentity,
    TokenizerIdentity,
    TokensIdentity,
)
from evalkit.verbs.command_line import score_words
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.session import Session, open_session

_CHECKPOINT_SECONDS = 2.0
"""A run that is killed loses this much work, and the span in hand; more where saving takes longer than a tenth of a
second: it may take a twentieth of the time."""

_CHEAP_SAVE_SECONDS = 0.1

_FOUND = ("attention", "network_nats", "network_stream", "mixer_report", "ttt_report", "reliability")
"""What a forecaster reports of itself under the names that the report of the score has for it."""


def score(options: ScoreOptions, *, resume: bool | None = None) -> Scored:
    """Open the inputs, score every position once, and report.

    Args:
        options: what to score and how.
        resume: None keeps nothing on disk; False starts a run that can be resumed, True resumes one.

    Raises:
        InputError: an input is unusable.
        ForecasterError: a score is not a finite number.
    """
    return score_session(open_session(options), resume=resume)


def score_session(
    session: Session, *, resume: bool | None = None, profile: Profile | None = None, outputs: Sequence[str] = ()
) -> Scored:
    """Score an opened session; see :func:`score`.

    Args:
        session: what to score and how.
        resume: see :func:`score`.
        profile: where the time goes; the report holds it as it stands then.
        outputs: further words of the command line, for what an interrupted run says about going on.
    """
    if session.ranks is not None and resume is not None:
        raise InputError("several processes keep nothing to resume from; score without --resume, or in one process")
    if session.options.mixer == "published":
        if resume:
            raise InputError(
                "--mixer published keeps nothing to resume from; score from the beginning, without --resume"
            )
        resume = None
    started = time.monotonic()
    if session.sidecar is None:
        require_honest_bytes(session.stream, session.tokenizer)
    leak = session.find_leak()
    if leak is not None:
        LOG.warning("%s", leak.message)
    forecaster: Any = session.make_forecaster(profile)
    if session.options.reliability:
        if profile is not None:
            profile.time_methods(forecaster, "score", ("distribution",))
        forecaster = ReliabilityForecaster(forecaster, session.options.reliability, len(session.stream) - 1)
    folder = _open_folder(session, resume)
    ledger = folder.ledger if folder else Ledger()
    stateful = is_resumable(forecaster)
    if folder and resume and stateful:
        state = folder.load_state()
        ledger = folder.ledger
        if state is not None:
            forecaster.load_state_dict(state)
    resumed_at = learned_to = len(ledger)
    _log_plan(session, resumed_at, folder)
    if folder and resume:
        _tell_resumed(folder, resumed_at, len(session.stream) - 1)
    progress = Progress("score", len(session.stream) - 1, done=resumed_at)
    next_save = time.monotonic() + _CHECKPOINT_SECONDS

    def save() -> None:
        nonlocal next_save
        began = time.monotonic()
        if folder:
            folder.save_state(forecaster.state_dict()) if stateful else folder.ledger.flush()
        ended = time.monotonic()
        next_save = ended + _CHECKPOINT_SECONDS * max(1.0, (ended - began) / _CHEAP_SAVE_SECONDS)

    def after_span(ledger: Ledger) -> None:
        nonlocal learned_to
        learned_to = len(ledger)
        progress.update(len(ledger), f"{ledger.bpb:.4f} bpb")
        if time.monotonic() >= next_save:
            save()

    try:
        run_prequential(
            forecaster,
            session.stream,
            session.num_bytes,
            ledger,
            span=session.preferred_span,
            after_span=after_span,
        )
    except BaseException as error:
        # Whatever stopped the run, what has been scored is kept.
        if folder:
            with suppress(InputError):  # a full disk says so once
                if isinstance(error, KeyboardInterrupt) and learned_to == len(ledger):
                    save()  # the interrupt came while scoring, which teaches nothing: the state is that of the ledger
                folder.close()
        if folder and isinstance(error, KeyboardInterrupt):
            progress.close()
            _tell_interrupted(session, outputs)
        raise
    finally:
        progress.close()
    seconds = time.monotonic() - started
    LOG.debug("scored %s positions in %.2f s", f"{len(ledger) - resumed_at:,}", seconds)
    report = _report(session, ledger, forecaster, leak, seconds, len(ledger) - resumed_at)
    if folder:
        folder.remove()
    return report if profile is None else dataclasses.replace(report, profile=profile.to_dict())


def _tell_resumed(folder: ResumeFolder, resumed_at: int, total: int) -> None:
    if resumed_at:
        LOG.info("resuming after %s of %s tokens", f"{resumed_at:,}", f"{total:,}")
        return
    other = folder.nearest()
    LOG.warning(
        "nothing to resume: no interrupted run of this very score is kept in %s%s; scoring from the beginning",
        folder.path.parent,
        "" if other is None else f" (one that differs in {' and '.join(other)} is)",
    )


def _tell_interrupted(session: Session, outputs: Sequence[str]) -> None:
    words = score_words(session)
    if words is None:
        LOG.warning("what has been scored is kept; score again with resume=True to go on")
        return
    again = [*words, *outputs, *([] if "--resume" in outputs else ["--resume"])]
    LOG.warning("what has been scored is kept; go on with:\n  %s", shlex.join(again))


def _log_plan(session: Session, resumed_at: int, folder: ResumeFolder | None) -> None:
    import torch

    options, window = session.options, session.sliding
    threads = window.threads if window is not None and window.threads else torch.get_num_threads()
    LOG.debug("threads: %d, device: %s", threads, options.device)
    if options.mixer == "hedge":
        LOG.debug("mixer: %s", session.mixer)
    if options.ttt:
        LOG.debug("ttt: %s", session.ttt)
    if folder is not None:
        LOG.debug("state for --resume: %s, from position %s on", folder.path, f"{resumed_at + 1:,}")


def _open_folder(session: Session, resume: bool | None) -> ResumeFolder | None:
    """Return where the run keeps its state; None where it keeps none, or cannot and need not."""
    if resume is None:
        return None
    try:
        return ResumeFolder(session.identity(), resume=resume)
    except StateUnavailableError as error:
        if resume:
            raise
        LOG.info("this run cannot be resumed if it is interrupted: %s", error)
        return None


def _identities(files: Iterable[SourceFile]) -> tuple[FileIdentity, ...]:
    return tuple(FileIdentity(path=file.path, sha256=file.sha256, bytes=file.bytes) for file in files)


def _report(
    session: Session, ledger: Ledger, forecaster: Any, leak: Leak | None, seconds: float, scored: int
) -> Scored:
    options, artifact, resolved, window = session.options, session.artifact, session.resolved, session.sliding
    found: dict[str, Any] = to_json(report_of(forecaster))
    shared: dict[str, Any] = {name: found.get(name) for name in _FOUND}
    because = leak.message if leak is not None else found.get("illegal_because")
    return Scored(
        artifact=None
        if artifact is None
        else ArtifactIdentity(
            path=artifact.path,
            sha256=artifact.sha256,
            bytes=artifact.size,
            format=artifact.format,
            compression=artifact.compression,
            parameters=artifact.num_parameters,
            files=_identities(getattr(artifact, "files", ())),
            code=_identities(session.code),
        ),
        recipe=options.recipe or (artifact.recognise() if artifact else None),
        config=resolved.config.to_dict() if resolved else None,
        config_origins=resolved.origins if resolved else None,
        tokens=TokensIdentity(names=tuple(session.stream.names), sha256=session.stream.sha256()),
        token_bytes=None
        if session.sidecar is None
        else TokenBytesIdentity(
            names=session.sidecar.counts.names, sha256=session.sidecar.sha256, documents=session.sidecar.documents
        ),
        tokenizer=TokenizerIdentity(path=session.tokenizer.path, sha256=session.tokenizer.sha256),
        tokens_scored=len(ledger),
        bytes_scored=ledger.num_bytes,
        bytes_raw=session.stream.raw_bytes,
        nats=ledger.nats,
        stride=window.stride if window else None,
        seq_len=window.seq_len if window else None,
        device=window.device if window else "cpu",
        dtype=window.dtype if window else "float64",
        context=options.context if artifact else None,
        mixer=options.mixer,
        ttt=options.ttt,
        settings=session.settings(),  # as a check of the score has them
        verdict="illegal" if because else None,
        illegal_because=because,
        ledger_sha256=ledger.chain,
        seconds=seconds,
        tokens_per_second=scored / seconds if seconds > 0 else None,
        versions=versions(),
        code=code_identity(),
        ranks=session.ranks.count if session.ranks else None,
        dtype_because=session.dtype_because,
        **shared,
        mixer_config=to_json(dataclasses.asdict(session.mixer)) if session.mixer is not None else None,
        ttt_config=to_json(dataclasses.asdict(session.ttt)) if options.ttt and session.ttt is not None else None,
        unknown_tokens=session.stream.count(session.tokenizer.unk_id) or None,
        command=score_words(session),
        # Maps of the ledger's files: they outlive the files' names, and take no memory until they are read.
        nll=ledger.scores(),
        num_bytes=ledger.bytes(),
    )
