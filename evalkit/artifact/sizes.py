"""Where the bytes of an artifact go, tensor by tensor or group by group."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.artifact.load import Artifact
from evalkit.artifact.tensors import QuantizedTensor, StoredTensor


def group_bytes(artifact: Artifact, *, each: bool) -> list[dict[str, Any]]:
    """Return parameters and bytes of each tensor, or of each group of tensors of one role and width.

    ``stored_bytes`` is what the tensors take before compression; ``entropy_bytes`` is the sum of the order-0
    entropies of their bytes, a guide to what a compressor makes of them. ``file_bytes`` is there where the container
    tells what each tensor takes in the file; with the header they add up to its size.
    """
    groups: dict[tuple[str, str], list[tuple[str, StoredTensor]]] = defaultdict(list)
    for name, tensor in artifact.tensors.items():
        groups[name if each else _role(name), tensor.format].append((name, tensor))
    rows = []
    coded = artifact.coded_bytes
    for (name, kind), members in groups.items():
        row = {
            "name": name,
            "kind": kind,
            "parameters": sum(t.values.size for _, t in members),
            "stored_bytes": sum(array.nbytes for _, t in members for array in _arrays(t)),
            "entropy_bytes": round(sum(_entropy_bytes(t) for _, t in members)),
        }
        if coded:
            row["file_bytes"] = sum(coded[name] for name, _ in members)
        rows.append(row)
    largest = "file_bytes" if coded else "entropy_bytes"
    return rows if each else sorted(rows, key=lambda row: -row[largest])


def _role(name: str) -> str:
    parts = name.split(".")
    return "blocks.*." + ".".join(parts[2:]) if parts[0] == "blocks" else name


def _arrays(tensor: StoredTensor) -> list[npt.NDArray[Any]]:
    return [tensor.values, tensor.scale] if isinstance(tensor, QuantizedTensor) else [tensor.values]


def _entropy_bytes(tensor: StoredTensor) -> float:
    total = 0.0
    for data in (array.tobytes() for array in _arrays(tensor)):
        counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
        p = counts[counts > 0] / max(len(data), 1)
        total += float(-(p * np.log2(p)).sum() * len(data) / 8)
    return total
