"""Read safetensors without torch."""

from __future__ import annotations

import numpy as np

from evalkit.artifact.torchfile import RawTensor
from evalkit.plumbing.errors import ArtifactError

_DTYPES = {
    "F64": ("float64", "<f8"),
    "F32": ("float32", "<f4"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    "I64": ("int64", "<i8"),
    "I32": ("int32", "<i4"),
    "I16": ("int16", "<i2"),
    "I8": ("int8", "i1"),
    "U8": ("uint8", "u1"),
    "BOOL": ("bool", "?"),
}


def is_safetensors(head: bytes) -> bool:
    """Whether a file starts as safetensors do: the length of a JSON object, and its brace."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 2**27


def read_safetensors(content: bytes) -> dict[str, RawTensor]:
    """Return the tensors of a file by name.

    Raises:
        ArtifactError: it is damaged, or holds a dtype that no artifact has.
    """
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(content)
    except SafetensorError as error:
        raise ArtifactError(f"not a readable safetensors file ({error})") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise ArtifactError(f"tensor {name} is of dtype {entry['dtype']}; expected {', '.join(_DTYPES)}")
        label, dtype = _DTYPES[entry["dtype"]]
        tensors[name] = RawTensor(np.frombuffer(entry["data"], dtype=dtype).reshape(entry["shape"]), label)
    return tensors
