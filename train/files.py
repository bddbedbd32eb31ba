"""Files of a run folder, written so that a crash leaves the old one or the new one, and never half of it."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from evalkit.errors import InputError


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write ``path`` through a temporary file that is synced and renamed.

    Raises:
        InputError: the disk is full or the folder cannot be written; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns a failed write into a RuntimeError without the cause.
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise InputError(
            f"{path} cannot be written ({reason}); earlier files are intact: make room and --resume"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def save_tensors(path: Path, value: Any) -> None:
    """Write nested dictionaries of tensors and plain values atomically."""
    write_atomically(path, lambda file: torch.save(value, file))


def load_tensors(path: Path) -> Any:
    """Read :func:`save_tensors`'s output onto the CPU, executing nothing.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"{path} cannot be read as a checkpoint: {reason}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def plain_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous float32 copies on the CPU, as weight files hold them."""
    return {name: value.detach().float().cpu().contiguous().clone() for name, value in weights.items()}
