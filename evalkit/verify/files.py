"""Opens a stranger's folder: regular files only, no link followed, every size bounded."""

from __future__ import annotations

import codecs
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from evalkit.plumbing.errors import InputError
from evalkit.verify.statements import Text

MAX_FILES = 20_000
MAX_FILE_BYTES = 8 << 20
MAX_TOTAL_BYTES = 24 << 20
MAX_LINE = 2_000


@dataclass
class Reader:
    """Reads files below a folder until a budget is spent.

    Attributes:
        root: the folder.
        notes: what was left out and why; grows.
        left: bytes that may still be read.
    """

    root: Path
    notes: list[str]
    left: int = MAX_TOTAL_BYTES

    def list_files(self) -> dict[str, int]:
        """Return path (with ``/``) and size of every regular file, sorted; at most 20,000.

        Raises:
            InputError: the folder does not exist or cannot be read.
        """
        if not self.root.is_dir():
            raise InputError(
                f"{self.root} is not a folder; expected a submission folder (submission.json, logs, script)"
            )
        found: dict[str, int] = {}
        pending = [self.root]
        links = 0
        while pending:
            folder = pending.pop()
            try:
                entries = sorted(os.scandir(folder), key=lambda e: e.name)
            except OSError as error:
                if folder == self.root:
                    raise InputError(f"{folder} cannot be read: {error.strerror}") from None
                self.notes.append(f"{folder.relative_to(self.root)} cannot be read: {error.strerror}")
                continue
            for entry in entries:
                if entry.is_symlink():
                    links += 1
                elif entry.is_dir(follow_symlinks=False):
                    if entry.name != ".git":
                        pending.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    name = Path(entry.path).relative_to(self.root).as_posix()
                    found[name] = entry.stat(follow_symlinks=False).st_size
                if len(found) >= MAX_FILES:
                    self.notes.append(f"only the first {MAX_FILES:,} files were looked at")
                    pending.clear()
                    break
        if links:
            self.notes.append(f"{links} links were not followed")
        return dict(sorted(found.items()))

    def read(self, name: str) -> bytes:
        """Return the content of a file; of one over 8 MiB the first and last 4 MiB."""
        path = self.root / name
        try:
            # O_NOFOLLOW and O_NONBLOCK: a file that has become a link or a pipe since it was listed is not read.
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            self.notes.append(f"{name} cannot be read: {error.strerror}")
            return b""
        with os.fdopen(handle, "rb") as file:
            information = os.fstat(file.fileno())
            if not stat.S_ISREG(information.st_mode):
                return b""
            size = information.st_size
            if min(size, MAX_FILE_BYTES) > self.left:
                self.notes.append(f"{name} was not read: the files before it filled {MAX_TOTAL_BYTES >> 20} MiB")
                return b""
            if size <= MAX_FILE_BYTES:
                content = file.read(MAX_FILE_BYTES)
            else:
                content = file.read(MAX_FILE_BYTES // 2) + b"\n"
                file.seek(size - MAX_FILE_BYTES // 2)
                content += file.read(MAX_FILE_BYTES // 2)
                self.notes.append(f"{name} has {size:,} bytes; its first and last {MAX_FILE_BYTES >> 21} MiB were read")
        self.left -= len(content)
        return content

    def read_text(self, name: str, size: int) -> Text | None:
        """Return a file as text with cut lines; None where it is not text."""
        text = decode(self.read(name))
        if text is None:
            return None
        return Text(name, size, tuple(line[:MAX_LINE] for line in text.split("\n")))


def decode(content: bytes) -> str | None:
    r"""Return text from UTF-8 or UTF-16 bytes, with ``\n`` alone between lines; None where it is not text.

    A carriage return inside a line (a progress bar) also ends it.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", errors="replace")
    elif b"\0" not in content[:4096]:
        text = content.decode("utf-8", errors="replace")
    elif any(content[1:200:2]):
        return None
    elif any(content[:200:2]):  # every other byte of English in UTF-16 is zero
        text = content.decode("utf-16-le", errors="replace")
    else:
        return None
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
