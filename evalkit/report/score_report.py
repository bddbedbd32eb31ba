"""The report of a score: one frozen type that every command writes and reads (``--json`` of ``evalkit score``).

:data:`ScoreReport.format` changes with the layout and with anything that can change a score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from evalkit.legality.report import LegalityReport, Verdict
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.files import write_atomically
from evalkit.plumbing.provenance import CodeIdentity
from evalkit.plumbing.typed_json import read_versioned, to_json
from evalkit.prequential.ledger import bits_per_byte


@dataclass(frozen=True, kw_only=True)
class FileIdentity:
    """A file that ships: its path, hash and size."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ArtifactIdentity:
    """The artifact that was scored.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        bytes: its size.
        format: layout, as ``evalkit inspect`` names it.
        compression: of the container.
        parameters: how many numbers the model has.
        files: of a user's module: its code and its weights, whose bytes are ``bytes``.
        code: what ships besides, named with ``--code``.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("shipped_bytes", "cap_headroom_bytes")

    path: str
    sha256: str
    bytes: int
    format: str
    compression: str
    parameters: int
    files: tuple[FileIdentity, ...] = ()
    code: tuple[FileIdentity, ...] = ()

    @property
    def shipped_bytes(self) -> int:
        """Bytes of everything that ships."""
        return self.bytes + sum(file.bytes for file in self.code)

    @property
    def cap_headroom_bytes(self) -> int:
        """Bytes left under the challenge's cap; below 0 what ships is too large."""
        return SIZE_CAP - self.shipped_bytes


@dataclass(frozen=True, kw_only=True)
class TokensIdentity:
    """The stream that was scored: its files, and the hash of its tokens."""

    names: tuple[str, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TokenBytesIdentity:
    """The shards that say how many bytes each token stands for (``--token-bytes``).

    Attributes:
        names: of their files.
        sha256: of the numbers of the whole stream.
        documents: documents of the original text whose bytes were found equal; None where no text was given.
    """

    names: tuple[str, ...]
    sha256: str
    documents: int | None


@dataclass(frozen=True, kw_only=True)
class TokenizerIdentity:
    """The tokenizer's file and its hash."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """What was scored, with what, how, and the number.

    Attributes:
        format: of the JSON; a reader takes no other.
        artifact: None for the online mixer alone.
        recipe: the system, named or recognised.
        config: every field of the model.
        config_origins: what decided each of them.
        tokens: the stream.
        token_bytes: where the bytes of each token come from, unless the tokenizer counts them.
        tokenizer: its tokenizer.
        tokens_scored: positions in the ledger.
        bytes_scored: bytes of text that they stand for, as the tokenizer normalises it, or as ``token_bytes`` says.
        bytes_raw: bytes of the text before normalisation, where it is known.
        nats: sum of all scores.
        stride: distance between windows in tokens.
        seq_len: window in tokens.
        device: of the model.
        dtype: of its matrices.
        dtype_because: why they have it.
        attention: the attention kernel that was measured to be the fastest, on a GPU.
        context: ``sliding``, ``documents`` or ``streaming``.
        mixer: ``none``, ``hedge`` or ``published``.
        ttt: whether the model trained on what had been scored.
        settings: ``--set`` overrides by section.
        verdict: None until something was found (:meth:`checked`).
        illegal_because: why the verdict is ``illegal``, and only then.
        ledger_sha256: hash that vouches for every score and their order.
        seconds: wall time.
        tokens_per_second: of this run; None if it took no time.
        versions: of what the numbers depend on.
        code: commit of the checkout; None where evalkit is installed.
        ranks: processes that shared the work; None for one.
        network_nats: what the network alone would have scored, beside a mixer.
        network_stream: the same along the stream: ``tokens`` of a bucket and ``nats`` of each.
        mixer_report: experts, their gains and weights.
        mixer_config: every setting of the mixer.
        ttt_report: chunks of the test-time training and its gain; where it was compared, ``frozen_stream``: nats of the
            frozen network along the stream, as ``network_stream``.
        ttt_config: every setting of it.
        reliability: counts of the reliability curve.
        profile: where the time went.
        unknown_tokens: of the stream, those that stand for text which the tokenizer cannot write: they cost nats
            and count no bytes. None where there are none.
        command: the command line that repeats the score, word by word; None where the model was an object of Python's.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("legal", "val_loss", "bpb", "bpb_raw", "network_bpb")

    format: Literal[2] = 2
    artifact: ArtifactIdentity | None
    recipe: str | None
    config: Mapping[str, Any] | None
    config_origins: Mapping[str, str] | None
    tokens: TokensIdentity
    tokenizer: TokenizerIdentity
    tokens_scored: int
    bytes_scored: int
    bytes_raw: int | None
    nats: float
    stride: int | None
    seq_len: int | None
    device: str
    dtype: str
    context: str | None
    mixer: str
    ttt: bool
    settings: Mapping[str, Mapping[str, str]]
    verdict: Verdict | None
    illegal_because: str | None = None
    token_bytes: TokenBytesIdentity | None = None
    ledger_sha256: str
    seconds: float
    tokens_per_second: float | None
    versions: Mapping[str, str]
    code: CodeIdentity | None
    ranks: int | None = None
    dtype_because: str | None = None
    attention: str | None = None
    network_nats: float | None = None
    network_stream: Mapping[str, Any] | None = None
    mixer_report: Mapping[str, Any] | None = None
    mixer_config: Mapping[str, Any] | None = None
    ttt_report: Mapping[str, Any] | None = None
    ttt_config: Mapping[str, Any] | None = None
    reliability: Mapping[str, Any] | None = None
    profile: Mapping[str, Any] | None = None
    unknown_tokens: int | None = None
    command: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if min(self.tokens_scored, self.bytes_scored) < 1:
            raise ValueError("tokens_scored and bytes_scored must be whole numbers above 0")
        if self.nats < 0:
            raise ValueError(f"nats is {self.nats:g}; a score is at least 0")
        if (self.verdict == "illegal") != (self.illegal_because is not None):
            raise ValueError(f"the verdict is {self.verdict}, illegal_because is {self.illegal_because!r:.60}")

    @property
    def legal(self) -> bool | None:
        """The verdict in one word; None where it was not checked, or not proven."""
        return None if self.verdict in (None, "unproven") else self.verdict == "legal"

    @property
    def val_loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens_scored

    @property
    def bpb(self) -> float:
        """Bits per byte: nats / ln 2 / bytes."""
        return bits_per_byte(self.nats, self.bytes_scored)

    @property
    def bpb_raw(self) -> float | None:
        """Bits per byte of the text before normalisation."""
        return bits_per_byte(self.nats, self.bytes_raw) if self.bytes_raw else None

    @property
    def network_bpb(self) -> float | None:
        """Bits per byte of the network alone."""
        return None if self.network_nats is None else bits_per_byte(self.network_nats, self.bytes_scored)

    def checked(self, check: LegalityReport) -> Self:
        """Return this report with the verdict of a check of it; what is illegal stays so, whatever the check found.

        A run may know of itself what no audit sees: that a time limit struck.
        """
        if self.verdict == "illegal":
            return self
        because = check.findings[0].message if check.findings else None
        return replace(self, verdict=check.verdict, illegal_because=because)

    def subject(self) -> dict[str, Any]:
        """Return what a check of this score must have been of, as ``Session.subject`` says it."""
        return {
            "artifact_sha256": self.artifact.sha256 if self.artifact else None,
            "tokenizer_sha256": self.tokenizer.sha256,
            "token_bytes_sha256": self.token_bytes.sha256 if self.token_bytes else None,
            **{name: getattr(self, name) for name in ("mixer", "ttt", "context", "seq_len", "stride", "settings")},
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON holds it."""
        return dict(to_json(self))

    @classmethod
    def from_dict(cls, values: Any, where: str = "the report") -> ScoreReport:
        """Return the report that ``values`` hold.

        Raises:
            InputError: they are of another format, incomplete, or contradict each other.
        """
        return read_versioned(ScoreReport, values, where, "score again with evalkit score --json")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored(ScoreReport):
    """The report of a run that has just been made, with the score of every position, which its JSON leaves out.

    Attributes:
        nll: nats of each scored position, float64.
        num_bytes: bytes of each scored position, int32.
    """

    nll: npt.NDArray[np.float64]
    num_bytes: npt.NDArray[np.int32]

    def without_scores(self) -> ScoreReport:
        """Return the report alone; it keeps no file of the ledger."""
        return ScoreReport(**{field.name: getattr(self, field.name) for field in fields(ScoreReport)})

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON holds it."""
        return self.without_scores().to_dict()

    def save_nll(self, path: str) -> None:
        """Write ``position``, ``nll`` and ``bytes`` of every scored position as npz, atomically."""
        position = np.arange(1, len(self.nll) + 1, dtype=np.int64)
        write_atomically(
            path, lambda file: np.savez_compressed(file, position=position, nll=self.nll, bytes=self.num_bytes)
        )
