"""Recognise a compressed file by its content and inflate it within a stated bound.

Later published systems shuffle bytes before they compress: ``BSHF``, one byte that holds the stride s, and the
content's bytes at 0, s, 2s, ..., then those at 1, s + 1, ..., and so on, so that the high bytes of all float16 numbers
stand together. They compress with brotli, which marks its streams by nothing: what is no other format is tried as
brotli, and must inflate to shuffled bytes or to a torch file.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator

import brotli
import numpy as np
import zstandard

from evalkit.plumbing.errors import ArtifactError

MAX_INFLATED_BYTES = 256 * 2**20
"""Bound on the inflated size. The largest published model is 131 MB in full precision."""

_MAX_ZSTD_WINDOW = 2**27  # what zstd level 22 may ask for
_MAX_XZ_MEMORY = 2**28
_CHUNK = 2**20
_ZSTD_PIECE = 512
_SHUFFLED = b"BSHF"
_TORCH_FILE = b"PK\x03\x04"


def compression_of(data: bytes) -> str:
    """Return ``zstd``, ``xz``, ``zlib`` or ``none``, judged by the first bytes alone; brotli cannot be told by them."""
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return "zstd"
    if data[:6] == b"\xfd7zXZ\x00":
        return "xz"
    if len(data) >= 2 and data[0] == 0x78 and (data[0] * 256 + data[1]) % 31 == 0:
        return "zlib"
    return "none"


def unwrap(data: bytes) -> tuple[bytes, str]:
    """Return a file's content, inflated and with its bytes in order, and what was done to it in words.

    The output is produced in pieces and abandoned once it passes the bound, so that a small file cannot claim an
    unbounded amount of memory. What is not compressed in any known way is returned as it is, as ``none``.

    Raises:
        ArtifactError: the stream is damaged, is cut short, is followed by other bytes, or inflates past the bound.
    """
    kind, content = compression_of(data), data
    if kind != "none":
        content = _inflate(data, kind)
    elif data[:4] not in (_SHUFFLED, _TORCH_FILE) and _is_brotli(data):
        kind, content = "brotli", _inflate(data, "brotli")
    if content[:4] == _SHUFFLED:
        content, stride = _unshuffle(content)
        kind = f"{kind}, bytes shuffled by {stride}"
    return content, kind


def inflate(data: bytes) -> bytes:
    """Return the content alone; see :func:`unwrap`."""
    return unwrap(data)[0]


def _inflate(data: bytes, kind: str) -> bytes:
    pieces = {"zstd": _zstd_pieces, "xz": _xz_pieces, "zlib": _zlib_pieces, "brotli": _brotli_pieces}[kind](data)
    output = bytearray()
    try:
        for piece in pieces:
            output += piece
            if len(output) > MAX_INFLATED_BYTES:
                raise ArtifactError(
                    f"the {kind} stream inflates past {MAX_INFLATED_BYTES:,} bytes, the most that evalkit accepts"
                )
    except (zstandard.ZstdError, lzma.LZMAError, zlib.error, brotli.error, EOFError, MemoryError) as error:
        raise ArtifactError(f"the {kind} stream is damaged ({error}); expected a complete {kind} file") from None
    return bytes(output)


def _is_brotli(data: bytes) -> bool:
    """Whether a brotli stream begins here that holds shuffled bytes or a torch file."""
    decompressor = brotli.Decompressor()
    try:
        first = decompressor.process(data, output_buffer_limit=4)
    except brotli.error:
        return False
    return first[:4] in (_SHUFFLED, _TORCH_FILE)


def _brotli_pieces(data: bytes) -> Iterator[bytes]:
    decompressor = brotli.Decompressor()
    yield decompressor.process(data, output_buffer_limit=_CHUNK)
    while not decompressor.is_finished():
        piece = decompressor.process(b"", output_buffer_limit=_CHUNK)
        if not piece and decompressor.can_accept_more_data():
            break
        yield piece
    _check_end(decompressor.is_finished(), 0, "brotli")


def _unshuffle(data: bytes) -> tuple[bytes, int]:
    """Return shuffled content in its order, and the stride; 0 and 1 stand for bytes as they are."""
    if len(data) < 5:
        raise ArtifactError("the shuffled bytes end before their stride; the file is incomplete")
    stride, shuffled = data[4], np.frombuffer(data, dtype=np.uint8, offset=5)
    if stride < 2:
        return shuffled.tobytes(), stride
    content = np.empty_like(shuffled)
    begin = 0
    for first in range(min(stride, len(shuffled))):
        count = -(-(len(shuffled) - first) // stride)
        content[first::stride] = shuffled[begin : begin + count]
        begin += count
    return content.tobytes(), stride


def _zstd_pieces(data: bytes) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW).decompressobj()
    fed = 0
    while fed < len(data) and not decompressor.eof:
        # The smallest block, four bytes, inflates to 128 KiB: small pieces keep each step's output small.
        piece = data[fed : fed + _ZSTD_PIECE]
        fed += len(piece)
        yield decompressor.decompress(piece)
    _check_end(decompressor.eof, len(decompressor.unused_data) + len(data) - fed, "zstd")


def _xz_pieces(data: bytes) -> Iterator[bytes]:
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MAX_XZ_MEMORY)
    yield decompressor.decompress(data, max_length=_CHUNK)
    while not decompressor.eof and not decompressor.needs_input:
        yield decompressor.decompress(b"", max_length=_CHUNK)
    _check_end(decompressor.eof, len(decompressor.unused_data), "xz")


def _zlib_pieces(data: bytes) -> Iterator[bytes]:
    decompressor = zlib.decompressobj()
    yield decompressor.decompress(data, _CHUNK)
    while not decompressor.eof and decompressor.unconsumed_tail:
        yield decompressor.decompress(decompressor.unconsumed_tail, _CHUNK)
    _check_end(decompressor.eof, len(decompressor.unused_data), "zlib")


def _check_end(reached: bool, unused: int, kind: str) -> None:
    if not reached:
        raise ArtifactError(f"the {kind} stream is cut short; the file is incomplete")
    if unused:
        raise ArtifactError(f"{unused:,} bytes follow the end of the {kind} stream; expected nothing after it")
