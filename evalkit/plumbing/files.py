"""Write files so that a reader never meets half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from evalkit.plumbing.errors import InputError


def write_atomically(path: str | Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write under a temporary name in the same folder, flush to disk, then rename: the whole file, or the old one.

    Args:
        path: the file.
        content: its bytes, or a function that writes them.

    Raises:
        InputError: the folder is missing or not writable, or the disk is full. Nothing is left behind.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
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


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with a stable layout, atomically."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def check_writable(path: str | Path | None) -> None:
    """Find out before the work that its result can be written.

    Raises:
        InputError: the path is a folder, or its folder is missing or not writable.
    """
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected the name of a file to write")
    if not path.parent.is_dir():
        raise InputError(f"folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"folder {path.parent} is not writable")
