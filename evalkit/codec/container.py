"""The compressed file: magic, JSON header, the coder's words, side information, and a digest over all of it.

``b"EVKC" | version u8 | header length u32 | header JSON | words | extra | SHA-256 of everything before``, little
endian. The digest turns any change or cut of the file into an error before anything is decoded.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.errors import InputError

MAGIC = b"EVKC"
VERSION = 1
MAX_TOKENS = 1 << 31
MAX_HEADER = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the decoder must know besides the artifact.

    Attributes:
        artifact_sha256: Digest of the artifact that the file was made with.
        options: The options of the forecaster (mixer, TTT, model settings), JSON types.
        tokens: Number of tokens, the given first one included.
        first: The first token, which is given and not coded; None for an empty stream.
        vocab_size: Size of the alphabet.
        span: Largest number of tokens between two calls of ``observe``.
        tokens_sha256: Digest of the tokens as little-endian int64.
        words_bytes: Length of the coded words.
        extra_bytes: Length of the side information that follows them.
        text: How the text is restored from tokens and side information; empty for bare tokens.
    """

    artifact_sha256: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tokens: int
    first: int | None
    vocab_size: int
    span: int
    tokens_sha256: str
    words_bytes: int
    extra_bytes: int = 0
    text: Mapping[str, Any] = field(default_factory=dict)


def digest(tokens: npt.NDArray[np.int64]) -> str:
    """Return the SHA-256 of ``tokens`` in hexadecimal."""
    return hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()


def pack(header: Header, words: bytes, extra: bytes) -> bytes:
    """Return the file."""
    text = json.dumps(header.__dict__, sort_keys=True, separators=(",", ":")).encode()
    body = MAGIC + struct.pack("<BI", VERSION, len(text)) + text + words + extra
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes) -> tuple[Header, bytes, bytes]:
    """Return header, words and side information.

    Raises:
        InputError: the file is cut, altered, or not one of ours.
    """
    if data[:4] != MAGIC:
        raise InputError("this is not a file made by evalkit compress (it does not begin with EVKC)")
    if len(data) < 41:
        raise InputError(f"the compressed file is cut short: {len(data)} bytes are less than the smallest one")
    if data[4] != VERSION:
        raise InputError(f"the compressed file has version {data[4]}; this evalkit reads version {VERSION}")
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise InputError("the compressed file is cut short or altered: its checksum does not fit its content")
    (length,) = struct.unpack("<I", data[5:9])
    body = data[9:-32]
    if length > min(MAX_HEADER, len(body)):
        raise InputError(f"the compressed file declares a header of {length} bytes and holds {len(body)}")
    try:
        header = Header(**json.loads(body[:length]))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"the header of the compressed file cannot be read: {error}") from None
    _check_types(header)
    payload = body[length:]
    if len(payload) != header.words_bytes + header.extra_bytes or header.words_bytes % 4:
        raise InputError(
            f"the compressed file holds {len(payload)} bytes of code; its header says "
            f"{header.words_bytes} + {header.extra_bytes}"
        )
    if not 0 <= header.tokens <= MAX_TOKENS or header.span < 1:
        raise InputError(f"the header declares {header.tokens} tokens in spans of {header.span}")
    return header, payload[: header.words_bytes], payload[header.words_bytes :]


def _check_types(header: Header) -> None:
    """Refuse a header whose fields are of other types or beyond all bounds: its author may be anyone."""
    problem = ""
    kinds: dict[str, type] = dict.fromkeys(("tokens", "first", "vocab_size", "span", "words_bytes", "extra_bytes"), int)
    kinds |= {"artifact_sha256": str, "tokens_sha256": str, "options": dict, "text": dict}
    for name, kind in kinds.items():
        value = getattr(header, name)
        fits = type(value) is kind and (kind is not int or 0 <= value < 1 << 48)
        if not fits and not (name == "first" and value is None):
            problem = name
    if problem:
        raise InputError(
            f"the header of the compressed file is damaged: its {problem} is no value that compress writes"
        )


def read_header(data: bytes) -> Header:
    """Return the header of a compressed file, whose integrity is checked first.

    Raises:
        InputError: see :func:`unpack`.
    """
    return unpack(data)[0]
