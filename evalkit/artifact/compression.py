"""Recognise a compressed file by its first bytes and inflate it within a stated bound."""

from __future__ import annotations

import lzma
import zlib

import zstandard

from evalkit.plumbing.errors import ArtifactError

MAX_INFLATED_BYTES = 256 * 2**20
"""Bound on the inflated size. The largest published model is 131 MB in full precision."""

_MAX_ZSTD_WINDOW = 2**27  # what zstd level 22 may ask for
_MAX_XZ_MEMORY = 2**28
_CHUNK = 2**20
_ZSTD_PIECE = 512


def compression_of(data: bytes) -> str:
    """Return ``zstd``, ``xz``, ``zlib`` or ``none``, judged by the first bytes alone."""
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return "zstd"
    if data[:6] == b"\xfd7zXZ\x00":
        return "xz"
    if len(data) >= 2 and data[0] == 0x78 and (data[0] * 256 + data[1]) % 31 == 0:
        return "zlib"
    return "none"


def inflate(data: bytes, *, max_bytes: int = MAX_INFLATED_BYTES) -> bytes:
    """Return the content of a zstd, xz or zlib stream; anything else is returned as it is.

    The output is produced in pieces and abandoned once it passes ``max_bytes``, so that a small file cannot claim an
    unbounded amount of memory.

    Raises:
        ArtifactError: the stream is damaged, is cut short, is followed by other bytes, or inflates past the bound.
    """
    kind = compression_of(data)
    if kind == "none":
        return data
    try:
        return {"zstd": _inflate_zstd, "xz": _inflate_xz, "zlib": _inflate_zlib}[kind](data, max_bytes)
    except (zstandard.ZstdError, lzma.LZMAError, zlib.error, EOFError, MemoryError) as error:
        raise ArtifactError(f"the {kind} stream is damaged ({error}); expected a complete {kind} file") from None


def _inflate_zstd(data: bytes, max_bytes: int) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW).decompressobj()
    output = bytearray()
    fed = 0
    while fed < len(data) and not decompressor.eof:
        # The smallest block, four bytes, inflates to 128 KiB: small pieces keep each step's output small.
        piece = data[fed : fed + _ZSTD_PIECE]
        output += decompressor.decompress(piece)
        fed += len(piece)
        _check_bound(len(output), max_bytes, "zstd")
    _check_end(decompressor.eof, len(decompressor.unused_data) + len(data) - fed, "zstd")
    return bytes(output)


def _inflate_xz(data: bytes, max_bytes: int) -> bytes:
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MAX_XZ_MEMORY)
    output = bytearray(decompressor.decompress(data, max_length=_CHUNK))
    while not decompressor.eof and not decompressor.needs_input:
        output += decompressor.decompress(b"", max_length=_CHUNK)
        _check_bound(len(output), max_bytes, "xz")
    _check_end(decompressor.eof, len(decompressor.unused_data), "xz")
    return bytes(output)


def _inflate_zlib(data: bytes, max_bytes: int) -> bytes:
    decompressor = zlib.decompressobj()
    output = bytearray(decompressor.decompress(data, _CHUNK))
    while not decompressor.eof and decompressor.unconsumed_tail:
        output += decompressor.decompress(decompressor.unconsumed_tail, _CHUNK)
        _check_bound(len(output), max_bytes, "zlib")
    _check_end(decompressor.eof, len(decompressor.unused_data), "zlib")
    return bytes(output)


def _check_bound(size: int, max_bytes: int, kind: str) -> None:
    if size > max_bytes:
        raise ArtifactError(f"the {kind} stream inflates past {max_bytes:,} bytes, the most that evalkit accepts")


def _check_end(reached: bool, unused: int, kind: str) -> None:
    if not reached:
        raise ArtifactError(f"the {kind} stream is cut short; the file is incomplete")
    if unused:
        raise ArtifactError(f"{unused:,} bytes follow the end of the {kind} stream; expected nothing after it")
