"""Read what ``evalkit score`` and ``evalkit check`` wrote, and open the stream that a report is about."""

from __future__ import annotations

import glob
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.legality.report import LegalityReport
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.typed_json import refuse_constant
from evalkit.report.score_report import ScoreReport
from evalkit.tokens.kinds import open_tokenizer
from evalkit.tokens.shards import NAMES
from evalkit.tokens.stream import TokenStream, open_shards, tokenize_file
from evalkit.tokens.tokenizer import TextTokenizer

_MAX_JSON_BYTES = 256 * 2**20
_BYTES_A_TOKEN = 24  # position int64, nll float64, bytes int32, or int64 where another program wrote it
_NPZ_HEADERS = 4096


@dataclass(frozen=True, kw_only=True)
class SavedReport:
    """A score report, and the file that holds it."""

    path: Path
    report: ScoreReport


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Nats and bytes of every scored position, position 1 first.

    Attributes:
        nll: nats, float64 ``[n]``.
        num_bytes: bytes, int64 ``[n]``.
    """

    nll: npt.NDArray[np.float64]
    num_bytes: npt.NDArray[np.int64]


def read_json(path: Path, what: str) -> Any:
    """Return the JSON in a file.

    Raises:
        InputError: there is no such file, it is huge, or it is not JSON.
    """
    if not path.is_file():
        raise InputError(f"{what} {path} does not exist or is not a file")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise InputError(f"{what} {path} is {path.stat().st_size:,} bytes; expected at most {_MAX_JSON_BYTES:,}")
    try:
        return json.loads(path.read_bytes(), parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        raise InputError(f"{what} {path} is not JSON; expected what --json of evalkit wrote") from None


def read_report(path: str | Path) -> SavedReport:
    """Return a score report.

    Raises:
        InputError: the file is not one, or is of another format.
    """
    path = Path(path)
    values = read_json(path, "report")
    if isinstance(values, dict) and isinstance(values.get("stages"), dict):
        raise InputError(
            f"{path} is the summary of evalkit run; name one of its scores, such as "
            f"{path.parent / 'score-sliding.json'}"
        )
    return SavedReport(path=path, report=ScoreReport.from_dict(values, f"report {path}"))


def read_check(path: Path, saved: SavedReport) -> LegalityReport:
    """Return what ``evalkit check --json`` wrote about the scores of a report.

    Raises:
        InputError: the file is no check, or is about another artifact, mixer, window or setting.
    """
    check = LegalityReport.from_dict(read_json(path, "check"), f"check {path}")
    if "subject" not in check.covered:
        raise InputError(f"{path} does not say what was checked; check the artifact again with evalkit check --json")
    scored = saved.report.subject()
    for name, checked in check.covered["subject"].items():
        if checked != scored.get(name):
            raise InputError(
                f"{path} checked {name} {checked}, report {saved.path} has {scored.get(name)}; check with the options "
                f"of the score"
            )
    return check


def read_token_scores(path: str | Path, saved: SavedReport) -> TokenScores:
    """Return what ``--dump-nll`` wrote, checked against its report.

    Raises:
        InputError: the file is not such a file, or belongs to another report.
    """
    path, report = Path(path), saved.report
    if not path.is_file():
        raise InputError(f"per-token file {path} does not exist or is not a file")
    n = report.tokens_scored
    try:
        with zipfile.ZipFile(path) as members:
            inflated = sum(member.file_size for member in members.infolist())
        if inflated > _BYTES_A_TOKEN * n + _NPZ_HEADERS:
            raise InputError(f"{path} inflates to {inflated:,} bytes, too much for {n:,} scored tokens")
        with np.load(path, allow_pickle=False) as archive:
            position, nll, num_bytes = (np.asarray(archive[name]) for name in ("position", "nll", "bytes"))
    except InputError:
        raise
    except (Exception, MemoryError):  # zipfile and numpy raise a dozen kinds of error on damaged input
        raise InputError(f"{path} is not what --dump-nll wrote; expected arrays position, nll and bytes") from None
    if not (nll.shape == num_bytes.shape == position.shape == (n,)) or nll.dtype.kind != "f":
        raise InputError(f"{path} holds {nll.shape} scores; report {saved.path} has {n:,} scored tokens")
    if num_bytes.dtype.kind not in "iu" or (num_bytes.size and int(num_bytes.min()) < 0):
        raise InputError(f"{path}: the bytes of tokens are not whole numbers of at least 0")
    if not np.array_equal(position, np.arange(1, n + 1)) or not np.isfinite(nll).all():
        raise InputError(f"{path}: positions are not 1 to {n:,}, each once and in order, with finite scores")
    if abs(float(nll.sum()) / n - report.val_loss) > 1e-6 * max(1.0, abs(report.val_loss)):
        raise InputError(
            f"{path} has {float(nll.sum()) / n:.6f} nats per token, report {saved.path} says {report.val_loss:.6f}: "
            f"they are not of the same run"
        )
    if int(num_bytes.sum(dtype=np.int64)) != report.bytes_scored:
        raise InputError(
            f"{path} counts {int(num_bytes.sum(dtype=np.int64)):,} bytes, report {saved.path} says "
            f"{report.bytes_scored:,}: they are not of the same run"
        )
    return TokenScores(nll=nll.astype(np.float64), num_bytes=num_bytes.astype(np.int64))


def find_token_scores(saved: SavedReport) -> Path | None:
    """Return the per-token file beside a report (the same name with ``.npz``), if there is one."""
    path = saved.path.with_suffix(".npz")
    return path if path.is_file() else None


def files_behind(saved: SavedReport) -> list[Path]:
    """Return the files that a report stands on, as it names them: per-token file, tokens, tokenizer, model and code."""
    report, beside = saved.report, find_token_scores(saved)
    named = [report.tokenizer.path, *report.tokens.names]
    if report.token_bytes is not None:
        named += report.token_bytes.names
    if report.artifact is not None:
        shipped = (*report.artifact.files, *report.artifact.code)
        named += [report.artifact.path, *(file.path for file in shipped)]
    return [*map(Path, named), *([beside] if beside else [])]


def open_report_stream(
    saved: SavedReport, *, tokens: str | None = None, tokenizer: str | None = None
) -> tuple[TokenStream, TextTokenizer]:
    """Open the stream and the tokenizer that a report names, or others in their place; check that they are the ones.

    Raises:
        InputError: they are missing, or are others.
    """
    named, names = saved.report.tokenizer, saved.report.tokens.names
    model = open_tokenizer(tokenizer or named.path)
    if named.sha256 != model.sha256:
        raise InputError(f"tokenizer {model.path} is not the one of {saved.path}; name the right one with --tokenizer")
    if tokens is not None:
        stream = open_shards(tokens)
    elif not names:
        raise InputError(f"{saved.path} names no token files; name them with --tokens")
    elif all(name.endswith(NAMES) for name in names):
        opened = [open_shards(glob.escape(name)) for name in names]
        stream = TokenStream(parts=sum((o.parts for o in opened), ()), names=names)
    else:
        stream = tokenize_file(names[0], model)
    stream = stream.truncated(saved.report.tokens_scored + 1)
    if stream.sha256() != saved.report.tokens.sha256:
        raise InputError(
            f"the tokens in {', '.join(stream.names[:3])} are not those that {saved.path} scored; name them with "
            f"--tokens"
        )
    return stream, model


def require_same_tokens(reports: Sequence[SavedReport]) -> None:
    """Check that all reports are about the same stream.

    Raises:
        InputError: they are not; scores of different texts say nothing about each other.
    """
    first = reports[0]
    for other in reports[1:]:
        hashes = other.report.tokens.sha256, first.report.tokens.sha256
        if hashes[0] != hashes[1]:
            raise InputError(
                f"{other.path} and {first.path} scored different tokens (sha256 {hashes[0][:12]} and "
                f"{hashes[1][:12]}); score both on the same shards with the same --limit-tokens"
            )
        if other.report.bytes_scored != first.report.bytes_scored:
            raise InputError(f"{other.path} and {first.path} count different bytes for the same tokens")
