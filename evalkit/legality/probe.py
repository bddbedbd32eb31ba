"""Audit a program that cannot be imported, from the loss that it reports on streams from a known source.

``emit`` writes two validation shards in the challenge's format, one a prefix of the other, and a sealed record of
ln q of every token. The program is run on each as it stands. For a legal code exp(sum(ln p - ln q)) has mean at most
1 over the stream, and given the prefix also over the rest of it; the difference of the two totals is the total of
that rest, so a poor start cannot hide a fiction that comes later.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
import zipfile
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from evalkit.legality.evalue import restarted
from evalkit.legality.options import FALSE_ALARM, size_of
from evalkit.legality.report import Finding, LegalityReport
from evalkit.legality.sources import AboveControls, BigramSource, Source, UniformSource
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import sha256_of, write_atomically
from evalkit.tokens.shards import open_shard, write_shard

Kind = Literal["uniform", "ngram"]
SHARD = "fineweb_val_000000.bin"
WHOLE, PREFIX = "whole", "prefix"
RECORD = "record.json"
SEALED = Path("sealed") / "log_q.npz"


@dataclass(frozen=True, kw_only=True)
class Emitted:
    """What :func:`emit` wrote.

    Attributes:
        folder: Where.
        whole: Folder of the whole stream's shard.
        prefix: Folder of the prefix's shard.
        tokens: Tokens in the whole stream.
        prefix_tokens: Tokens in the prefix.
        entropy_nats: Mean of -ln q per token: what an honest program cannot beat for long.
        commitment: SHA-256 over a secret salt and the sealed log-probabilities; publish it before the run.
    """

    folder: Path
    whole: Path
    prefix: Path
    tokens: int
    prefix_tokens: int
    entropy_nats: float
    commitment: str


def emit(
    kind: Kind,
    tokens_count: int,
    out: str | Path,
    *,
    seed: int | None = None,
    vocab_size: int = 1024,
    bos: int = 1,
    control_ids: int = 4,
    multiple: int = 1024,
    like: npt.NDArray[Any] | None = None,
) -> Emitted:
    """Write a pair of shards drawn from a known source, and the sealed record.

    Args:
        kind: ``uniform``: every token equally likely; ``ngram``: a text-like bigram source.
        tokens_count: Tokens wanted; rounded to ``multiple`` n + 1, since published programs drop what does not fill
            a sequence.
        out: Folder; ``whole/`` and ``prefix/`` hold a shard each, ``sealed/`` what the program must not see.
        seed: For a repeatable stream; a secret one is drawn by default, so that nobody can know the tokens.
        vocab_size: Size of the alphabet, at most 65,536.
        bos: First token.
        control_ids: Ids below this are never drawn: SentencePiece keeps 0 to 3 for padding, document marks and the
            unknown token, which programs refuse or skip.
        multiple: Sequence length of the audited program.
        like: A stream whose bigrams the source takes; by default they are made up.

    Raises:
        InputError: unusable numbers, or a folder that already holds a probe.
    """
    folder = Path(out)
    if kind not in ("uniform", "ngram"):
        raise InputError(f"the kind of source is {kind!r}; it is uniform or ngram")
    if not 2 <= vocab_size <= 1 << 16 or not 0 <= bos < vocab_size:
        raise InputError(f"a vocabulary of {vocab_size} with first token {bos} does not fit a shard of uint16 tokens")
    if not 0 <= control_ids <= vocab_size - 2:
        raise InputError(f"{control_ids} control ids of a vocabulary of {vocab_size} leave fewer than 2 to draw from")
    blocks = round((tokens_count - 1) / max(multiple, 1))
    if multiple < 1 or blocks < 2:
        raise InputError(f"{tokens_count} tokens are too few: two sequences of {multiple} and one token are needed")
    if (folder / RECORD).exists():
        raise InputError(f"{folder} already holds a probe; give a new folder, since a used stream is no longer secret")
    seed = secrets.randbits(63) if seed is None else seed
    inner: Source
    ordinary = vocab_size - control_ids
    if kind == "uniform":
        inner = UniformSource(ordinary)
    elif like is not None:
        text = np.asarray(like, np.int64) - control_ids
        inner = BigramSource.fitted(text[(text >= 0) & (text < ordinary)], ordinary)
    else:
        inner = BigramSource.invented(ordinary, seed)
    source = AboveControls(inner, control_ids)
    count, first = blocks * multiple + 1, (blocks // 2) * multiple + 1
    tokens, log_q = source.sample(count, bos, np.random.default_rng([seed, 1]))
    salt = secrets.token_bytes(16)
    for name, length in ((WHOLE, count), (PREFIX, first)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_shard(folder / name / SHARD, tokens[:length])
    (folder / SEALED).parent.mkdir(parents=True, exist_ok=True)
    np.savez(folder / SEALED, log_q=log_q, salt=np.frombuffer(salt, np.uint8))
    commitment = hashlib.sha256(salt + log_q.astype("<f8").tobytes()).hexdigest()
    facts: dict[str, Any] = {
        "tokens": count,
        "prefix_tokens": first,
        "entropy_nats": float(-np.mean(log_q)),
        "commitment": commitment,
    }
    hashes = {name: sha256_of(folder / name / SHARD) for name in (WHOLE, PREFIX)}
    record = {"kind": kind, "vocab_size": vocab_size, **facts, "sha256": hashes}
    write_atomically(folder / RECORD, json.dumps(record, indent=1).encode())
    return Emitted(folder=folder, whole=folder / WHOLE, prefix=folder / PREFIX, **facts)


def _record(folder: Path) -> tuple[dict[str, Any], npt.NDArray[np.float64]]:
    """Return the record and ln q, after checking both and the shards against each other."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
        with np.load(folder / SEALED) as sealed:
            log_q, salt = sealed["log_q"].astype(np.float64), sealed["salt"].tobytes()
        for name in (WHOLE, PREFIX):
            if sha256_of(folder / name / SHARD) != record["sha256"][name]:
                raise InputError(f"{folder / name / SHARD} is not the shard that was emitted")
        whole, first = open_shard(folder / WHOLE / SHARD), open_shard(folder / PREFIX / SHARD)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder} holds no readable probe ({error}); make one with evalkit probe emit") from None
    if hashlib.sha256(salt + log_q.astype("<f8").tobytes()).hexdigest() != record["commitment"]:
        raise InputError(f"{folder / SEALED} does not match the commitment in {RECORD}")
    if len(whole) != len(log_q) + 1 or not np.array_equal(whole[: len(first)], first):
        raise InputError(f"the shards in {folder} do not belong together")
    return record, log_q


def reported(loss: float | str) -> tuple[float, float]:
    """Return a reported loss and half a unit of its last digit, by which rounding may have flattered it."""
    text = str(loss).strip()
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"the loss is {text!r}; a number of nats per token is needed") from None
    if not math.isfinite(value):
        raise InputError(f"the loss is {text!r}; a finite number of nats per token is needed")
    return value, 0.5 * 10.0 ** int(Decimal(text).as_tuple().exponent)


def judge(
    folder: str | Path,
    *,
    val_loss: float | str | None = None,
    prefix_loss: float | str | None = None,
    nll: str | Path | npt.NDArray[np.float64] | None = None,
    bytes_per_token: float | None = None,
) -> LegalityReport:
    """Judge what a program reported on a probe.

    Args:
        folder: What :func:`emit` wrote.
        val_loss: Mean nats per token on ``whole/``, as printed (a string keeps its digits: rounding is allowed for).
        prefix_loss: The same on ``prefix/``.
        nll: In their place the nats of every position: an array, or an npz with ``nll`` (as of ``--dump-nll``).
        bytes_per_token: For sizes in bits per byte.

    Returns:
        ``illegal`` where a legal code would do this with probability below 10^-6, else ``unproven``: losses can
        convict a program, they cannot acquit it.

    Raises:
        InputError: nothing to judge, or a damaged probe.
    """
    began = time.monotonic()
    record, log_q = _record(Path(folder))
    if (val_loss is None) == (nll is None):
        raise InputError("give either the reported loss (--val-loss) or the nats of every position (--nll)")
    if nll is not None:
        values = _positions(nll)
        if len(values) != len(log_q):
            raise InputError(f"{len(values)} positions were scored; the stream has {len(log_q)} after its first token")
        evidence = restarted(-values - log_q)
        log_e, place = evidence.log_e, evidence.start + 1
        length = max(evidence.at - evidence.start + 1, 1)
        beaten = evidence.nats / length
        facts: dict[str, Any] = {"from": place, "to": evidence.at + 2, "mean_score_nats": float(np.mean(values))}
    else:
        log_e, place, beaten, facts = _totals(record, log_q, val_loss, prefix_loss)  # type: ignore[arg-type]
    p_value = min(1.0, math.exp(-max(log_e, 0.0)))
    covered = {
        "kind": record["kind"],
        "tokens": record["tokens"],
        "entropy_nats": record["entropy_nats"],
        "commitment": record["commitment"],
        "log_e": log_e,
        "p_value": p_value,
        "level": FALSE_ALARM,
        "beaten_nats_per_token": beaten,
        **facts,
    }
    finding = Finding(
        axiom="normalisation",
        position=place,
        evidence={"p_value": p_value, "log_e": log_e, **size_of(beaten, bytes_per_token), **facts},
        message=(
            f"A legal code beats the {record['kind']} source like this with probability at most "
            f"10^-{log_e / math.log(10):.0f}: {beaten:.4g} nats per token from position {place} on. Either its "
            f"probabilities sum to more than 1 or its scores know what follows. To see it again: run the program on "
            f"{WHOLE}/ and {PREFIX}/ and judge what it reports."
        ),
    )
    convicted = p_value < FALSE_ALARM
    return LegalityReport(
        findings=(finding,) if convicted else (),
        covered={"probe": covered},
        uncovered=() if convicted else ("reported losses can convict a program, not acquit it: nothing was found",),
        seconds=time.monotonic() - began,
    )


def _positions(nll: str | Path | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the nats of every position from an array or a file."""
    if not isinstance(nll, np.ndarray):
        try:
            loaded = np.load(nll, allow_pickle=False)
            nll = loaded if isinstance(loaded, np.ndarray) else loaded["nll"]
        except OSError as error:
            raise InputError(f"{nll}: {error.strerror or error}") from None
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise InputError(f"{nll} is no npz with an array nll, as score --dump-nll writes it, and no npy") from None
    values = np.asarray(nll, np.float64).reshape(-1)
    if np.isnan(values).any():
        raise InputError("some of the scores are not numbers")
    return values


def _totals(
    record: dict[str, Any],
    log_q: npt.NDArray[np.float64],
    val_loss: float | str,
    prefix_loss: float | str | None,
) -> tuple[float, int, float, dict[str, Any]]:
    """Return log e-value, first position, nats per token and facts from one or two mean losses.

    With both losses the e-value is the mean of three: whole stream, prefix, and what follows it.
    """
    loss, rounding = reported(val_loss)
    whole = len(log_q)
    total, slack = loss * whole, rounding * whole
    parts: list[tuple[float, int, int]] = [(-(total + slack) - float(log_q.sum()), 0, whole)]
    facts: dict[str, Any] = {"val_loss": loss, "rounding_nats": slack}
    if prefix_loss is not None:
        first_loss, first_rounding = reported(prefix_loss)
        head = int(record["prefix_tokens"]) - 1
        first_total, first_slack = first_loss * head, first_rounding * head
        parts.append((-(first_total + first_slack) - float(log_q[:head].sum()), 0, head))
        rest = total + slack - (first_total - first_slack)
        parts.append((-rest - float(log_q[head:].sum()), head, whole))
        facts |= {"prefix_loss": first_loss, "suffix_loss": (total - first_total) / (whole - head)}
    logs = np.array([part[0] for part in parts])
    log_e = float(np.logaddexp.reduce(logs)) - math.log(len(parts))
    best, start, stop = parts[int(np.argmax(logs))]
    return log_e, start + 1, best / (stop - start), facts
