"""Files of a run folder, written so that a crash leaves the old one or the new one, and never half of it."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_atomically


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
