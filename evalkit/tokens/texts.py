"""Documents out of the files that people have: plain text, JSON lines, JSON; plain, gzip or zstd; standard input.

A file's name says how documents lie in it, its first bytes say how it is packed. What cannot be read is refused by its
true name, with the command that makes it readable.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from evalkit.plumbing.errors import TokenError
from evalkit.plumbing.log import LOG

_ZSTD_PIECE = 4096  # inflated at a time, which bounds what one step can make of it
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_LINES = (".jsonl", ".ndjson")
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_REFUSED = {
    b"PAR1": (
        "a parquet file",
        "python -c \"import pandas; pandas.read_parquet('{path}')[['text']]"
        ".to_json('docs.jsonl', orient='records', lines=True)\"",
    ),
    b"ARROW1": ("an Arrow file", "datasets.Dataset.from_file('{path}').to_json('docs.jsonl') in Python"),
    b"\xfd7zXZ\x00": ("compressed with xz", "xz -dk {path}"),
    b"BZh": ("compressed with bzip2", "bzip2 -dk {path}"),
    b"PK\x03\x04": ("a zip archive", "unzip {path}"),
    b"%PDF-": ("a PDF file", "pdftotext {path}"),
}


def read_documents(path: str | Path) -> Iterator[str]:
    """Yield the documents of a file, or of standard input (``-``).

    A name that ends in ``.jsonl`` or ``.ndjson`` holds ``{"text": ...}`` on every line, one in ``.json`` the same or an
    array of such objects, every other one text, before an ending ``.gz`` or ``.zst`` in each case. What has no name
    (standard input, a pipe) holds JSON lines if its first line is such an object, text otherwise.

    Raises:
        TokenError: the file is missing, is not UTF-8, or is not what its name says.
    """
    name = source_name(path).removesuffix(".gz").removesuffix(".zst")
    with open_input(path) as file:
        if name.endswith(_LINES):
            yield from _documents_of_lines(file, path)
        elif name.endswith(".json"):
            yield from _documents_of_json(file, path)
        else:
            first = file.readline()
            looks = _is_document(first)
            named = str(path) != "-" and Path(path).is_file()
            if looks and not named:
                LOG.info("%s: documents in JSON lines", path)
                yield from _documents_of_lines(itertools.chain([first], file), path)
                return
            if looks:
                LOG.warning("%s is read as one text; name it .jsonl if it holds documents in JSON lines", path)
            yield _decoded(_unmarked(first + file.read()), path, 0)


def source_name(path: str | Path) -> str:
    """Return what a text is called in reports and messages."""
    return "standard input" if str(path) == "-" else str(path)


@contextmanager
def open_input(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file or standard input (``-``) for reading, inflated where its first bytes are those of gzip or zstd.

    Raises:
        TokenError: it is missing, is a folder, or is of a kind that holds no text that can be read.
    """
    raw: BinaryIO
    if str(path) == "-":
        raw = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    elif not os.path.exists(path) or os.path.isdir(path):
        raise TokenError(f"text {path} does not exist or is not a file")
    else:
        raw = open(path, "rb")  # noqa: SIM115
    with raw:
        head = raw.peek(8)[:8]  # type: ignore[attr-defined]
        for start, (what, remedy) in _REFUSED.items():
            if head.startswith(start):
                raise TokenError(f"{path} is {what}; expected text or JSON lines: {remedy.format(path=path)}")
        if head.startswith(_GZIP):
            with gzip.open(raw) as unchecked, io.BufferedReader(_Checked(unchecked, path)) as inflated:
                yield inflated
        elif head.startswith(_ZSTD):
            with io.BufferedReader(_ZstdReader(raw, path)) as inflated:
                yield inflated
        else:
            for mark, encoding in _MARKS.items():
                if head.startswith(mark):
                    raise TokenError(
                        f"{path} is {encoding} text, as its byte order mark says; expected UTF-8: "
                        f"iconv -f {encoding} -t UTF-8 {path}"
                    )
            yield raw


class _Checked(io.RawIOBase):
    """A gzip file whose damage is an error of the input."""

    def __init__(self, file: gzip.GzipFile, path: str | Path) -> None:
        self._file, self._path = file, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._file.readinto(buffer)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TokenError(f"{self._path}: the gzip stream is damaged or cut short ({error})") from None


def _documents_of_lines(lines: Any, path: str | Path) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(lines, start=1):
        text = _decoded(_unmarked(line), path, offset + len(line) - len(_unmarked(line)), number)
        if text.strip():
            yield _document_of(text, path, f", line {number}")
        offset += len(line)


def _documents_of_json(file: BinaryIO, path: str | Path) -> Iterator[str]:
    content = file.read()
    text = _decoded(_unmarked(content), path, 0)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        yield from _documents_of_lines(io.BytesIO(content), path)
        return
    for number, document in enumerate(whole if isinstance(whole, list) else [whole], start=1):
        yield _text_of(document, path, f", document {number}")


def _is_document(line: bytes) -> bool:
    try:
        document = json.loads(_unmarked(line))
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and isinstance(document.get("text"), str)


def _unmarked(content: bytes) -> bytes:
    return content.removeprefix(codecs.BOM_UTF8)


def _decoded(content: bytes, path: str | Path, offset: int, line: int | None = None) -> str:
    """Decode UTF-8; a bad byte is placed in the file (inflated, where it is packed), counted from 0."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        number = content.count(b"\n", 0, at) + 1 if line is None else line
        raise TokenError(
            f"{source_name(path)} is not UTF-8 text (line {number:,}, byte {offset + at:,}); "
            f"expected text or JSON lines"
        ) from None


def _document_of(line: str, path: str | Path, where: str) -> str:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):  # a number of thousands of digits is a plain ValueError
        raise TokenError(f'{source_name(path)}{where}: not JSON; expected {{"text": ...}} on every line') from None
    return _text_of(document, path, where)


def _text_of(document: Any, path: str | Path, where: str) -> str:
    if not isinstance(document, dict) or not isinstance(document.get("text"), str):
        raise TokenError(f'{source_name(path)}{where}: no string "text"; expected {{"text": ...}} for every document')
    text: str = document["text"]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise TokenError(
            f"{source_name(path)}{where}: the text holds a lone surrogate, which is not UTF-8 text"
        ) from None
    return text


class _ZstdReader(io.RawIOBase):
    """Inflates a ``.zst`` file of one or more frames; a file that is cut short is an error, not an early end."""

    def __init__(self, file: BinaryIO, path: str | Path) -> None:
        import zstandard

        self._path = path
        self._file = file
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**27)
        self._frame = self._decompressor.decompressobj()
        self._inside = False
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._input and not (data := self._file.read(_ZSTD_PIECE)):
                if self._inside:
                    raise TokenError(f"{self._path} is cut short: its zstd stream has no end")
                return 0
            piece, self._input = self._input or data, b""
            try:
                self._output = memoryview(self._frame.decompress(piece))
            except self._error as error:
                raise TokenError(f"{self._path}: the zstd stream is damaged ({error})") from None
            self._inside = True
            if self._frame.eof:
                self._input, self._inside = self._frame.unused_data, False
                self._frame = self._decompressor.decompressobj()
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count
