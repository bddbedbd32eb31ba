"""Files: tokens for what the tokenizer keeps of a text, and side information for what it loses.

A tokenizer normalises: newlines become spaces, runs of blanks shrink. The original is restored from the decoded
text and a zstd frame that has the decoded text as its dictionary, so that only the differences cost bytes
(the method of ``zstd --patch-from``). What is not text at all is stored as one plain zstd frame. With ``exact`` off
there is no side information, and the text comes back as the tokenizer normalises it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from evalkit.codec.coder import Coded, compress, decompress
from evalkit.codec.container import unpack
from evalkit.plumbing.errors import InputError
from evalkit.prequential.forecaster import Forecaster

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[list[int]], str]

MAX_TEXT = 1 << 31
SCRAP = 0.01
"""Share of unreadable characters beyond which a file is not coded as text at all."""


@dataclass(frozen=True, kw_only=True)
class TextCoded:
    """A compressed text.

    Attributes:
        coded: The file and the cost of its tokens.
        extra_bytes: Bytes of side information; 0 where the text comes back by itself or ``exact`` was off.
        raw_bytes: Bytes of the input.
        normalised_bytes: Bytes of the text that the tokens decode to.
    """

    coded: Coded
    extra_bytes: int
    raw_bytes: int
    normalised_bytes: int

    @property
    def data(self) -> bytes:
        """The file."""
        return self.coded.data


def _squeeze(raw: bytes, known: bytes) -> bytes:
    """Return a zstd frame of ``raw`` that leans on ``known``."""
    dictionary = zstandard.ZstdCompressionDict(known, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if known else None
    size = len(raw) + len(known)
    window = min(30, max(10, size.bit_length() + 1))
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=window, enable_ldm=size > 1 << 20)
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(raw)


def _expand(frame: bytes, known: bytes, size: int) -> bytes:
    """Undo :func:`_squeeze`; never more than ``size`` bytes."""
    dictionary = zstandard.ZstdCompressionDict(known, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if known else None
    try:
        decompressor = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << 31)
        declared = zstandard.frame_content_size(frame)
        if declared != size:
            raise InputError(f"the side information declares {declared} bytes; the header says {size}")
        return decompressor.decompress(frame)
    except zstandard.ZstdError as error:
        raise InputError(f"the side information cannot be expanded: {error}") from None


def split(raw: bytes, encode: Encode, decode: Decode, *, exact: bool) -> tuple[list[int], str, bytes, str]:
    """Return tokens, what they decode to, the side information, and how it restores ``raw``.

    Raises:
        InputError: the bytes are not UTF-8 and ``exact`` is off.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if not exact:
            raise InputError(
                f"the text is not UTF-8 (byte {error.start}); leave out --normalised to keep its bytes as they are"
            ) from None
        text = raw.decode("utf-8", "replace")
        if text.count("�") > SCRAP * len(text):
            text = ""
    tokens = [int(token) for token in encode(text)] if text else []
    decoded = decode(tokens) if tokens else ""
    if not exact:
        return tokens, decoded, b"", "normalised"
    known = decoded.encode("utf-8")
    if known == raw:
        return tokens, decoded, b"", "same"
    return tokens, decoded, _squeeze(raw, known), "difference"


def compress_text(
    make: Callable[[], Forecaster],
    raw: bytes,
    encode: Encode,
    decode: Decode,
    *,
    bos: int = 1,
    exact: bool = True,
    artifact_sha256: str = "",
    options: Mapping[str, Any] | None = None,
    span: int | None = None,
) -> TextCoded:
    """Compress a text: BOS and its tokens through the coder, and unless ``exact`` is off what the tokens do not say.

    Args:
        make: Factory of the forecaster.
        raw: The input; any bytes, or UTF-8 where ``exact`` is off.
        encode: Text to token ids, without BOS.
        decode: Token ids to text.
        bos: Id that the stream begins with; it is given, not coded.
        exact: Whether every byte must come back; else the text comes back as the tokenizer normalises it.
        artifact_sha256: See :func:`~evalkit.codec.coder.compress`.
        options: See there.
        span: See there.

    Raises:
        InputError: not UTF-8 with ``exact`` off, or tokens that cannot be coded.
    """
    tokens, decoded, extra, how = split(raw, encode, decode, exact=exact)
    coded = compress(
        make,
        np.array([bos, *tokens], np.int64),
        artifact_sha256=artifact_sha256,
        options=options,
        span=span,
        extra=extra,
        text={"how": how, "raw_bytes": len(raw)},
    )
    return TextCoded(
        coded=coded,
        extra_bytes=len(extra),
        raw_bytes=len(raw),
        normalised_bytes=len(decoded.encode("utf-8")),
    )


def decompress_text(make: Callable[[], Forecaster], data: bytes, decode: Decode, *, artifact_sha256: str = "") -> bytes:
    """Return the text of a file made by :func:`compress_text`.

    Raises:
        InputError: see :func:`~evalkit.codec.coder.decompress`.
    """
    header, _, extra = unpack(data)
    how, size = header.text.get("how"), header.text.get("raw_bytes")
    if how not in ("normalised", "same", "difference") or not isinstance(size, int) or not 0 <= size <= MAX_TEXT:
        raise InputError("the compressed file holds bare tokens, or a text of a kind that this evalkit does not know")
    tokens = decompress(make, data, artifact_sha256=artifact_sha256)[1:].tolist()
    decoded = (decode(tokens) if tokens else "").encode("utf-8")
    if how == "difference":
        return _expand(extra, decoded, size)
    if how == "same" and len(decoded) != size:
        raise InputError(f"the tokens decode to {len(decoded)} bytes; the header says {size}: another tokenizer?")
    return decoded
