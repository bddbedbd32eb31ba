"""``evalkit.load_state``: weights from a file, for a factory, without executing anything in it.

def make(weights):
model = MyModel()
model.load_state_dict(evalkit.load_state(weights))
return model
"""

from __future__ import annotations

import json
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalkit.artifact.compression import inflate
from evalkit.artifact.layouts import held_values, is_quantised, read_layout
from evalkit.artifact.load import MAX_ARTIFACT_BYTES, load_artifact
from evalkit.artifact.native import is_native
from evalkit.artifact.state_dict import weights_of
from evalkit.artifact.tensors import bfloat16_bits_to_float32
from evalkit.artifact.torchfile import RawTensor, is_torch_file, read_torch_file
from evalkit.plumbing.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

MAX_STATE_BYTES = 64 * 2**30
"""Bound on an uncompressed file of weights; a compressed one is bounded as artifacts are."""

MAX_INFLATED_BYTES = 4 * 2**30
"""Bound on the arrays of a compressed numpy file."""


def load_state(path: str | Path | None) -> dict[str, Tensor]:
    """Return the named weights of a file, on the CPU.

    Reads what ``torch.save`` and ``numpy.savez`` write, safetensors, and every compressed layout that evalkit reads,
    whose integers come back dequantised to float32. What wrappers put into names (``module.``, ``_orig_mod.``) is taken
    out. Nothing in the file is executed.

    Raises:
        ArtifactError: the file is missing, damaged, or of another kind.
    """
    if path is None:
        raise ArtifactError("there are no weights to load: name a file, with --weights for a factory")
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"weights {path} do not exist or are not a file")
    size = path.stat().st_size
    if size > MAX_STATE_BYTES:
        raise ArtifactError(f"weights {path} are {size:,} bytes; expected at most {MAX_STATE_BYTES:,}")
    with path.open("rb") as file:
        head = file.read(4096)
    try:
        if _is_safetensors(head, size):
            return _read_safetensors(path)
        if (arrays := _numpy_arrays(path, size)) is not None:
            return _tensors(arrays)
        if is_torch_file(head):
            return _from_torch(path.read_bytes())
        if not is_native(head) and size <= MAX_ARTIFACT_BYTES and is_torch_file(content := inflate(path.read_bytes())):
            return _from_torch(content)
        return _tensors({name: held_values(tensor) for name, tensor in load_artifact(path).tensors.items()})
    except ArtifactError as error:
        text = str(error)
        raise ArtifactError(text if str(path) in text else f"{path}: {text}") from None


def _numpy_arrays(path: Path, size: int) -> dict[str, Any] | None:
    """Return the arrays of a file that ``numpy.savez`` wrote; None where it is another."""
    if not zipfile.is_zipfile(path):
        return None
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as members:
        infos = members.infolist()
        if infos and all(info.filename.endswith(".npy") for info in infos):
            return _read_arrays(path, max(size, MAX_INFLATED_BYTES), sum(info.file_size for info in infos))
    return None


def _read_arrays(path: Path, bound: int, held: int) -> dict[str, Any] | None:
    if held > bound:
        raise ArtifactError(f"its arrays would take {held:,} bytes; expected at most {bound:,}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return weights_of({name: arrays[name] for name in arrays.files}, np.ndarray)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"not a readable file of numpy arrays ({error})") from None


def _from_torch(content: bytes) -> dict[str, Tensor]:
    saved = read_torch_file(content)
    named = None if is_quantised(saved) else weights_of(saved, RawTensor)
    if named is not None:
        return _tensors({name: _values(tensor) for name, tensor in named.items()})
    _, tensors = read_layout(saved)
    return _tensors({name: held_values(tensor) for name, tensor in tensors.items()})


def _values(tensor: RawTensor) -> np.ndarray[Any, Any]:
    return bfloat16_bits_to_float32(tensor.values) if tensor.dtype == "bfloat16" else tensor.values


def _tensors(arrays: dict[str, Any]) -> dict[str, Tensor]:
    import torch

    return {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 9 and head[8:9] == b"{" and 2 <= length <= size - 8


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        named = weights_of(load_file(path), torch.Tensor)
    except (SafetensorError, json.JSONDecodeError, ValueError, KeyError) as error:
        raise ArtifactError(f"not a readable safetensors file ({error})") from None
    if named is None:
        raise ArtifactError("the safetensors file holds no tensors")
    return named
