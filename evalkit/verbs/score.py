"""Score a stream with a session's forecaster and report the result."""

from __future__ import annotations

import dataclasses
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_atomically
from evalkit.plumbing.log import LOG
from evalkit.plumbing.profiling import Profile
from evalkit.plumbing.progress import Progress
from evalkit.prequential.ledger import Ledger, bits_per_byte
from evalkit.prequential.loop import run_prequential
from evalkit.prequential.reliability import ReliabilityForecaster
from evalkit.prequential.resume import RunFolder, StateUnavailableError
from evalkit.verbs.session import ScoreOptions, Session, open_session, versions

REPORT_FORMAT = 1
_CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """The result of a run; :meth:`to_dict` is the JSON of the contract.

    Attributes:
        values: the report's fields.
        nll: nats of each scored position, float64.
        num_bytes: bytes of each scored position, int32.
    """

    values: dict[str, Any]
    nll: np.ndarray[Any, np.dtype[np.float64]]
    num_bytes: np.ndarray[Any, np.dtype[np.int32]]

    @property
    def bpb(self) -> float:
        """Bits per byte."""
        return float(self.values["bpb"])

    @property
    def val_loss(self) -> float:
        """Nats per token."""
        return float(self.values["val_loss"])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON holds it."""
        return self.values

    def save_nll(self, path: str) -> None:
        """Write ``position``, ``nll`` and ``bytes`` of every scored position as npz, atomically."""
        position = np.arange(1, len(self.nll) + 1, dtype=np.int64)
        write_atomically(
            path, lambda file: np.savez_compressed(file, position=position, nll=self.nll, bytes=self.num_bytes)
        )


def score(options: ScoreOptions, *, resume: bool | None = None) -> ScoreReport:
    """Open the inputs, score every position once, and report.

    Args:
        options: what to score and how.
        resume: None keeps nothing on disk; False starts a run that can be resumed, True resumes one.

    Raises:
        InputError: an input is unusable.
        ForecasterError: a score is not a finite number.
    """
    return score_session(open_session(options), resume=resume)


def score_session(session: Session, *, resume: bool | None = None, profile: Profile | None = None) -> ScoreReport:
    """Score an opened session; see :func:`score`. The report holds the profile, if there is one, as it stands then."""
    if session.ranks is not None and resume is not None:
        raise InputError("several processes keep nothing to resume from; score without --resume, or in one process")
    started = time.monotonic()
    forecaster: Any = session.make_forecaster(profile)
    if session.options.reliability:
        if profile is not None:
            profile.time_methods(forecaster, "score", ("distribution",))
        forecaster = ReliabilityForecaster(forecaster, session.options.reliability, len(session.stream) - 1)
    folder = _open_folder(session, resume)
    ledger = folder.ledger if folder else Ledger()
    stateful = hasattr(forecaster, "state_dict")
    if folder and resume and stateful:
        state = folder.load_state()
        ledger = folder.ledger
        if state is not None:
            forecaster.load_state_dict(state)
    resumed_at = len(ledger)
    _log_plan(session, resumed_at, folder)
    progress = Progress("score", len(session.stream) - 1, done=resumed_at)
    saved = time.monotonic()

    def after_span(ledger: Ledger) -> None:
        nonlocal saved
        progress.update(len(ledger), f"{ledger.bpb:.4f} bpb")
        if folder and time.monotonic() - saved > _CHECKPOINT_SECONDS:
            folder.save_state(forecaster.state_dict()) if stateful else ledger.flush()
            saved = time.monotonic()

    try:
        run_prequential(
            forecaster,
            session.stream,
            session.tokenizer.byte_table,
            ledger,
            span=session.preferred_span,
            after_span=after_span,
        )
    except BaseException:
        # Whatever stopped the run, what has been scored is kept.
        if folder:
            with suppress(InputError):  # a full disk says so once
                folder.close()
        raise
    finally:
        progress.close()
    seconds = time.monotonic() - started
    LOG.debug("scored %s positions in %.2f s", f"{len(ledger) - resumed_at:,}", seconds)
    report = ScoreReport(
        values=_report_values(session, ledger, forecaster, seconds, len(ledger) - resumed_at),
        # Maps of the ledger's files: they outlive the files' names, and take no memory until they are read.
        nll=ledger.scores(),
        num_bytes=ledger.bytes(),
    )
    if folder:
        folder.remove()
    if profile is not None:
        report.values["profile"] = profile.to_dict()
    return report


def _log_plan(session: Session, resumed_at: int, folder: RunFolder | None) -> None:
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


def _open_folder(session: Session, resume: bool | None) -> RunFolder | None:
    """Return where the run keeps its state; None where it keeps none, or cannot and need not."""
    if resume is None:
        return None
    try:
        return RunFolder(session.identity(), resume=resume)
    except StateUnavailableError:
        if resume:
            raise
        return None


def _report_values(session: Session, ledger: Ledger, forecaster: Any, seconds: float, scored: int) -> dict[str, Any]:
    options, artifact = session.options, session.artifact
    bpb = bits_per_byte(ledger.nats, ledger.num_bytes)
    raw = session.stream.raw_bytes
    values: dict[str, Any] = {
        "format": REPORT_FORMAT,
        "artifact": None
        if artifact is None
        else {
            "path": artifact.path,
            "sha256": artifact.sha256,
            "bytes": artifact.size,
            "format": artifact.format,
            "compression": artifact.compression,
            "parameters": artifact.num_parameters,
            "cap_headroom_bytes": SIZE_CAP - artifact.size,
        },
        "recipe": options.recipe or (artifact.recognise() if artifact else None),
        "config": session.resolved.config.to_dict() if session.resolved else None,
        "config_origins": session.resolved.origins if session.resolved else None,
        "tokens": {"names": list(session.stream.names), "sha256": session.stream.sha256()},
        "tokenizer": {"path": session.tokenizer.path, "sha256": session.tokenizer.sha256},
        "tokens_scored": len(ledger),
        "bytes_scored": ledger.num_bytes,
        "bytes_raw": raw,
        "val_loss": ledger.nats / len(ledger),
        "bpb": bpb,
        "bpb_raw": bits_per_byte(ledger.nats, raw) if raw else None,
        "nats": ledger.nats,
        "stride": session.sliding.stride if session.sliding else None,
        "seq_len": session.sliding.seq_len if session.sliding else None,
        "device": session.sliding.device if session.sliding else "cpu",
        "dtype": session.sliding.dtype if session.sliding else "float64",
        "context": options.context if session.artifact else None,
        "mixer": options.mixer,
        "ttt": options.ttt,
        "settings": {section: dict(items) for section, items in options.settings.items()},
        "legal": None,
        "ledger_sha256": ledger.chain,
        "seconds": seconds,
        "tokens_per_second": scored / seconds if seconds > 0 else None,
        "versions": versions(),
    }
    if session.ranks is not None:
        values["ranks"] = session.ranks.count
    values |= _json_safe(forecaster.report()) if hasattr(forecaster, "report") else {}
    if "network_nats" in values:
        values["network_bpb"] = bits_per_byte(values["network_nats"], ledger.num_bytes)
    if session.mixer is not None:
        values["mixer_config"] = _json_safe(dataclasses.asdict(session.mixer))
    if options.ttt and session.ttt is not None:
        values["ttt_config"] = _json_safe(dataclasses.asdict(session.ttt))
    if "illegal_because" in values:
        values["legal"] = False
    return values


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if isinstance(value, np.ndarray):
        return _json_safe(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
