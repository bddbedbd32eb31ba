"""Files in and out: which paths may be written, and how, so that a reader never meets half of one.

An output replaces a regular file in one step, goes through symbolic links to what they point at, and keeps the file's
mode. Pipes and devices are written to as they are. :func:`check_outputs` is asked before any work is done.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from evalkit.plumbing.errors import InputError


def write_atomically(path: str | Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write under a temporary name in the same folder, flush to disk, then rename: the whole file, or the old one.

    What is no regular file (a pipe, ``/dev/stdout``) is written to directly. ``content`` is the bytes, or writes them.

    Raises:
        InputError: the folder is missing or not writable, or the disk is full. Nothing is left behind.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name[:200]}.{os.getpid()}.partial")
    try:
        old = _stat(path)
        if old is not None and (not stat.S_ISREG(old.st_mode) or _own_descriptor(old) is not None):
            _write_directly(path, old, content)
            return
        with partial.open("wb") as file:
            _fill(file, content)
            os.fsync(file.fileno())
            if old is not None:
                with suppress(PermissionError):  # another's file: it becomes ours, the mode stays
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
        partial.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns a failed write into a RuntimeError without the cause.
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise InputError(
            f"{path} cannot be written ({reason}); what was there before is intact; make room or name another place, "
            f"then --resume or repeat"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _write_directly(path: str | Path, old: os.stat_result, content: bytes | Callable[[BinaryIO], object]) -> None:
    own = _own_descriptor(old)
    if own is not None:
        # Opening /dev/stdout anew would write from the start of a file that is already being written to.
        (sys.stdout if own == 1 else sys.stderr).flush()
        descriptor = os.dup(own)
    else:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise InputError(f"{path} is a pipe that nobody reads; start its reader first") from None
            raise
        os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        _fill(file, content)


def _fill(file: BinaryIO, content: bytes | Callable[[BinaryIO], object]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content)
    file.flush()


def _own_descriptor(found: os.stat_result) -> int | None:
    """Return 1 or 2 if a path is this process's standard output or error."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
    return None


def write_json(path: str | Path | None, value: Any) -> None:
    """Write JSON with a stable layout, atomically; nothing where no file is named (``--json`` was left out)."""
    if path:
        write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def check_outputs(outputs: Mapping[str, str | Path], inputs: Iterable[str | Path] = ()) -> None:
    """Find out before the work that its results can be written, and that none of them would destroy an input.

    Files are compared by what they are, not by name: links of both kinds are seen through.

    Args:
        outputs: files to write, by the option that names each.
        inputs: files that are read; of a folder every file in it counts.

    Raises:
        InputError: an output is an input or another output, is a folder, or cannot be written.
    """
    seen: dict[tuple[int, int] | tuple[int, int, str], str] = {}
    for option, path in outputs.items():
        check_writable(path)
        key = _identity(path)
        if key is None:
            continue
        if key in seen:
            raise InputError(f"{seen[key]} and {option} both name {outputs[seen[key]]}; give each a file of its own")
        seen[key] = option
    if not seen:
        return
    for file in (file for path in inputs for file in files_below(Path(path))):
        found = _stat(file)
        option = seen.get((found.st_dev, found.st_ino), "") if found is not None else ""
        if option:
            name = outputs[option]
            same = "" if str(name) == str(file) else f" (the same file as {file})"
            raise InputError(f"{option} names {name}, which is one of the inputs{same}; name another file to write")


def check_writable(path: str | Path | None) -> None:
    """Find out before the work that its result can be written.

    Raises:
        InputError: the path is a folder, it or its folder is not writable, or its folder is missing.
    """
    if path is None:
        return
    found = _stat(path)
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a folder; expected the name of a file to write")
    if found is not None and not os.access(path, os.W_OK):
        raise InputError(f"{path} is not writable")
    if found is not None and not stat.S_ISREG(found.st_mode):
        return
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        shown = Path(path).parent if not os.path.islink(path) else folder
        raise InputError(f"folder {shown} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"folder {folder} is not writable")


def _identity(path: str | Path) -> tuple[int, int] | tuple[int, int, str] | None:
    """Return what tells a file to write from others; None for what any number of outputs may share (``/dev/null``)."""
    found = _stat(path)
    if found is None:
        target = Path(os.path.realpath(path))
        folder = target.parent.stat()
        return folder.st_dev, folder.st_ino, target.name
    return None if stat.S_ISCHR(found.st_mode) else (found.st_dev, found.st_ino)


def _stat(path: str | Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def files_below(path: Path) -> list[Path]:
    """Return the files of a folder and of those in it, in the order of their names; of a file itself."""
    return sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read a piece at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_folder(variable: str, standard: str, usual: str) -> Path:
    """Return evalkit's folder of a kind: what ``variable`` names, else inside the user's, as the XDG rules name it.

    Args:
        variable: evalkit's own, such as ``EVALKIT_CACHE``.
        standard: the rules', such as ``XDG_CACHE_HOME``.
        usual: what holds without it, such as ``~/.cache``.
    """
    if configured := os.environ.get(variable):
        return Path(configured)
    return Path(os.environ.get(standard) or os.path.expanduser(usual)) / "evalkit"


def read_input(path: str, what: str) -> bytes:
    """Return the bytes of a file, a pipe or standard input (``-``), as they are.

    Raises:
        InputError: it is missing or a folder.
    """
    if path == "-":
        return sys.stdin.buffer.read()
    if not os.path.exists(path) or os.path.isdir(path):
        raise InputError(f"{what} {path} does not exist or is not a file")
    return Path(path).read_bytes()


def expand(pattern: str) -> list[Path]:
    """Return the files that a name or glob pattern stands for, numbers in their order: 2 before 10.

    A leading ``~`` is the home folder. What exists under the very name is meant by it, brackets and all; so are the
    leading folders of a pattern.
    """
    pattern = os.path.expanduser(pattern)
    if os.path.lexists(pattern):
        return [Path(pattern)]
    parts = Path(pattern).parts
    plain = next((n for n in range(len(parts) - 1, 0, -1) if os.path.isdir(os.path.join(*parts[:n]))), 0)
    literal = [glob.escape(os.path.join(*parts[:plain]))] if plain else []
    found = glob.glob(os.path.join(*literal, *parts[plain:])) if parts else []
    return sorted(map(Path, found), key=in_order)


def no_match(pattern: str) -> str:
    """Return the sentence that a pattern stands for no shard."""
    return f"no shard matches {pattern!r}; give a file, a folder or a quoted glob such as 'data/val_*.bin'"


def in_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Return a key that sorts names with the numbers in them by size, with leading zeros or without."""
    pieces = re.split(r"(\d+)", str(path))
    return [(int(p), "") if p.isdecimal() else (0, p) for p in pieces], str(path)
