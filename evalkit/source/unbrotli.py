"""Inflate brotli within a bound."""

from __future__ import annotations

from evalkit.plumbing.errors import InputError


def inflate_brotli(data: bytes, limit: int) -> bytes:
    """Return what a brotli stream holds.

    Raises:
        InputError: the package ``brotli`` is missing.
        ValueError: the stream is damaged, or inflates past ``limit``.
    """
    try:
        import brotli
    except ImportError:
        raise InputError("this file is compressed with brotli; install the package Brotli to read it") from None
    decompressor = brotli.Decompressor()
    output = bytearray()
    try:
        output += decompressor.process(data, output_buffer_limit=limit + 1)
        while not decompressor.can_accept_more_data() and len(output) <= limit:
            output += decompressor.process(b"", output_buffer_limit=limit + 1)
    except brotli.error as error:
        raise ValueError(f"the brotli stream is damaged ({error})") from None
    if len(output) > limit:
        raise ValueError(f"it inflates past {limit:,} bytes")
    if not decompressor.is_finished():
        raise ValueError("the compressed script is cut short")
    return bytes(output)
