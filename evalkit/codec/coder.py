"""Encoder and decoder: one loop, one conversion, one call of the forecaster per token on both sides.

Legal means decodable, so this is the proof that needs no statistics: the decoder has the artifact, the options and
the bits, and rebuilds the tokens. Both sides ask for the row of position p with the same arguments (a zero stands
in for the token that the decoder does not have yet), so they compute the same floats on the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt

from evalkit.codec.container import Header, digest, pack, unpack
from evalkit.codec.fixed import PRECISION, frequencies
from evalkit.plumbing.errors import InputError
from evalkit.prequential.forecaster import (
    DistributionForecaster,
    Forecaster,
    next_boundary_of,
    next_distribution_of,
    preferred_span,
    require_distribution,
)
from evalkit.prequential.spans import spans

Ids = npt.NDArray[np.int64]
Coder = Callable[[int, npt.NDArray[np.float64]], int]


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A compressed stream.

    Attributes:
        data: The file.
        words_bits: Bits of the code itself, without header and side information.
        ledger_bits: What ``score`` charges for the same tokens in the same spans: the ledger's claim.
        fixed_bits: What the integer frequencies charge: the loss of the conversion shows here.
        tokens: Tokens coded (the first one is given).
    """

    data: bytes
    words_bits: int
    ledger_bits: float
    fixed_bits: float
    tokens: int


def _walk(forecaster: Forecaster, span: int, tokens: Ids, code: Coder) -> tuple[float, float]:
    """Take a forecaster through a stream token by token, the same way for encoder and decoder.

    Fills ``tokens[1:]`` with what ``code(position, probabilities)`` returns; token 0 is given. Returns the nats that
    the ledger charges, and the bits that the integer frequencies charge.
    """
    stating = require_distribution(forecaster, "coding")
    nats: list[float] = []
    fixed_bits: list[float] = []
    for start, stop in spans(len(tokens), span, next_boundary_of(stating)):
        for position in range(start, stop):
            counts = frequencies(_row(stating, tokens[:position], start), position)
            token = code(position, counts / float(1 << PRECISION))
            tokens[position] = token
            fixed_bits.append(PRECISION - math.log2(float(counts[token])))
        # both sides know these tokens now, so both can ask for the ledger's own numbers
        nats.extend(np.asarray(stating.score(tokens[:stop].copy(), start, stop)).tolist())
        stating.observe(tokens[:stop].copy(), start, stop)
    return math.fsum(nats), math.fsum(fixed_bits)


def _row(forecaster: DistributionForecaster, prefix: Ids, start: int) -> npt.NDArray[np.float64]:
    """Return the log-probabilities after ``prefix``, ``[V]`` in nats; ``start`` is where the span began."""
    position = len(prefix)
    if (quick := next_distribution_of(forecaster)) is not None:
        row = np.asarray(quick(prefix.copy()), dtype=np.float64)
    else:
        tokens = np.append(prefix, 0)  # the decoder does not know this one, so the encoder does not say it
        row = np.asarray(forecaster.distribution(tokens, start, position + 1), dtype=np.float64)[-1]
    if row.shape != (forecaster.vocab_size,):
        raise InputError(
            f"the distribution at position {position} has shape {list(row.shape)}, expected [{forecaster.vocab_size}]"
        )
    return row


def _model(probabilities: npt.NDArray[np.float64]) -> Any:
    return constriction.stream.model.Categorical(probabilities, lazy=True)


def compress(
    make: Callable[[], Forecaster],
    tokens: npt.NDArray[Any],
    *,
    artifact_sha256: str = "",
    options: Mapping[str, Any] | None = None,
    span: int | None = None,
    extra: bytes = b"",
    text: Mapping[str, Any] | None = None,
) -> Coded:
    """Code ``tokens[1:]`` with a fresh forecaster.

    Args:
        make: Factory of the forecaster; it must offer ``distribution`` (``next_distribution(prefix) -> [V]`` is
            used instead where it is offered).
        tokens: Token ids; the first is stored in the header.
        artifact_sha256: What the decoder must have; checked there.
        options: What the decoder needs to build the same forecaster, JSON types.
        span: Tokens between two calls of ``observe``; ``next_boundary`` may cut it shorter. By default that of
            ``score``, where rows come from ``next_distribution``; else 1, since ``distribution`` computes the
            rows of the whole span again for each token.
        extra: Side information, stored as it is.
        text: How a text is restored, stored in the header.

    Raises:
        InputError: a token outside the vocabulary, or a row that cannot be coded.
    """
    stream = np.asarray(tokens, dtype=np.int64)
    if stream.ndim != 1:
        raise InputError(f"the tokens have shape {list(stream.shape)}; one dimension is needed")
    forecaster = make()
    if span is None:
        span = preferred_span(forecaster) if next_distribution_of(forecaster) is not None else 1
    if span < 1:
        raise InputError(f"span is {span}; a span holds at least one token")
    vocab = int(forecaster.vocab_size)
    if len(stream) and not (stream.min() >= 0 and stream.max() < vocab):
        raise InputError(f"the tokens range from {stream.min()} to {stream.max()}; the vocabulary has {vocab}")
    encoder = constriction.stream.queue.RangeEncoder()

    def code(position: int, probabilities: npt.NDArray[np.float64]) -> int:
        token = int(stream[position])
        encoder.encode(token, _model(probabilities))
        return token

    visible = np.zeros_like(stream)
    visible[:1] = stream[:1]
    ledger_nats, fixed_bits = _walk(forecaster, span, visible, code)
    words = np.asarray(encoder.get_compressed(), dtype="<u4").tobytes() if len(stream) > 1 else b""
    header = Header(
        artifact_sha256=artifact_sha256,
        options=dict(options or {}),
        tokens=len(stream),
        first=int(stream[0]) if len(stream) else None,
        vocab_size=vocab,
        span=span,
        tokens_sha256=digest(stream),
        words_bytes=len(words),
        extra_bytes=len(extra),
        text=dict(text or {}),
    )
    return Coded(
        data=pack(header, words, extra),
        words_bits=8 * len(words),
        ledger_bits=ledger_nats / math.log(2),
        fixed_bits=fixed_bits,
        tokens=max(len(stream) - 1, 0),
    )


def decompress(make: Callable[[], Forecaster], data: bytes, *, artifact_sha256: str = "") -> Ids:
    """Return the tokens of a compressed file.

    Raises:
        InputError: the file is cut or altered, was made with another artifact, or decodes to other tokens (a
            machine whose floats differ): never are wrong tokens returned.
    """
    header, words, _ = unpack(data)
    if header.artifact_sha256 != artifact_sha256:
        raise InputError(
            f"the file was made with the artifact {header.artifact_sha256[:16] or '(none)'}..., not with "
            f"{artifact_sha256[:16] or '(none)'}...: use the artifact it was compressed with"
        )
    forecaster = make()
    if int(forecaster.vocab_size) != header.vocab_size:
        raise InputError(
            f"the file was made with {header.vocab_size} tokens, the forecaster has {forecaster.vocab_size}"
        )
    tokens = np.zeros(header.tokens, np.int64)
    if header.first is not None and header.tokens:
        tokens[0] = header.first
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(words, dtype="<u4").astype(np.uint32))

    def code(_: int, probabilities: npt.NDArray[np.float64]) -> int:
        try:
            return int(decoder.decode(_model(probabilities)))
        except (ValueError, AssertionError) as error:
            raise InputError(f"the code ends in nonsense ({error}): the forecaster is not the encoder's") from None

    _walk(forecaster, header.span, tokens, code)
    if digest(tokens) != header.tokens_sha256:
        raise InputError(
            "the decoded tokens fail their checksum: the forecaster computes other numbers here than it did when "
            "the file was made (another machine, library version or option)"
        )
    return tokens
