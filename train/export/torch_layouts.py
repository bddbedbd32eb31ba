"""The published systems' containers: a torch save of one dict, compressed, for their own loaders.

Layout A (challenge baseline, PR333, PR344) keeps integers, scales, dtypes and the rest in separate dicts;
layout B (PR592, PR634, PR849 and later ones) keeps ``<name>.q`` and ``<name>.scale`` beside each other and by name
either a dict with a ``type`` or, from PR1394 on, words such as ``gptq (int6)``. From PR1218 on files are compressed
with brotli, with the bytes of all float16 numbers sorted into high and low ones.
"""

from __future__ import annotations

import io
import lzma
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import brotli
import numpy as np
import torch
import zstandard
from torch import Tensor

from evalkit.artifact.tensors import INT_BITS, PlainTensor, QuantizedTensor, StoredTensor
from evalkit.plumbing.errors import InputError

TorchCompression = Literal["zstd", "xz", "zlib", "brotli"]
_LAYOUT_B_BITS = (5, 6, 8)
_STRIDE = 2


@dataclass(frozen=True, kw_only=True)
class TorchLayout:
    """One published arrangement of the dict.

    Attributes:
        kind: ``A`` or ``B``.
        format_tag: layout A's ``__quant_format__``.
        bits_in_meta: whether layout A's ``qmeta`` holds the width.
        kinds: how layout B says what a tensor is: by a ``types`` dict, the same with the ``methods`` of its integers,
            or in ``words``.
        renames: regular expression and replacement, applied to our names in turn.
    """

    kind: Literal["A", "B"]
    format_tag: str = ""
    bits_in_meta: bool = False
    kinds: Literal["types", "methods", "words"] = "types"
    renames: tuple[tuple[str, str], ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of integers that the layout has a name for, ascending."""
        return _LAYOUT_B_BITS if self.kind == "B" and self.kinds != "words" else INT_BITS

    def published_name(self, name: str) -> str:
        """Return the name that the published system has for one of our tensors."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


LAYOUTS: dict[str, TorchLayout] = {
    "baseline": TorchLayout(kind="A", format_tag="int8_clean_per_row_v1"),
    "pr333": TorchLayout(kind="A", format_tag="int6_clean_per_row_v1", bits_in_meta=True),
    "pr344": TorchLayout(
        kind="A",
        format_tag="int8_clean_per_row_v1",
        renames=(
            (r"^smear\.", "smeargate."),
            (r"^(bigram|trigram)\.scale$", r"\1_embed.\1_scale"),
            (r"^(bigram|trigram)\.", r"\1_embed."),
        ),
    ),
    **dict.fromkeys(("pr592", "pr634", "pr849"), TorchLayout(kind="B")),
    **dict.fromkeys(("pr1218", "pr1334"), TorchLayout(kind="B", kinds="methods")),
    **dict.fromkeys(("pr1394", "pr1477", "pr1493", "pr1529", "best"), TorchLayout(kind="B", kinds="words")),
}


def torch_object(tensors: Mapping[str, StoredTensor], layout: TorchLayout) -> dict[str, Any]:
    """Return the dict that is saved.

    Raises:
        InputError: the layout cannot express a tensor (a float32 scale, or a width its readers do not know).
    """
    named = {layout.published_name(name): tensor for name, tensor in tensors.items()}
    for name, tensor in named.items():
        if isinstance(tensor, QuantizedTensor) and tensor.scale.dtype != np.float16:
            raise InputError(f"the published layouts hold float16 scales; {name!r} has {tensor.scale.dtype}")
    return _layout_a(named, layout) if layout.kind == "A" else _layout_b(named, layout)


def torch_payload(tensors: Mapping[str, StoredTensor], layout: TorchLayout) -> bytes:
    """Return the uncompressed torch save of :func:`torch_object`."""
    stream = io.BytesIO()
    torch.save(torch_object(tensors, layout), stream)
    return stream.getvalue()


def compress_payload(payload: bytes, compression: TorchCompression) -> bytes:
    """Compress as the published exporters do: zstd level 22, .xz preset 6, zlib level 9, or shuffled and brotli 11."""
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=22).compress(payload)
    if compression == "xz":
        return lzma.compress(payload, preset=6)
    if compression == "zlib":
        return zlib.compress(payload, 9)
    if compression == "brotli":
        return bytes(brotli.compress(shuffled(payload), quality=11))
    raise InputError(f"compression {compression!r} is none of zstd, xz, zlib, brotli")


def shuffled(content: bytes) -> bytes:
    """Return the bytes at even places and then those at odd ones, behind a mark and the stride of 2."""
    return b"BSHF" + bytes([_STRIDE]) + b"".join(content[first::_STRIDE] for first in range(_STRIDE))


def _layout_a(named: Mapping[str, StoredTensor], layout: TorchLayout) -> dict[str, Any]:
    plain = {name: tensor for name, tensor in named.items() if isinstance(tensor, PlainTensor)}
    integers = {name: tensor for name, tensor in named.items() if isinstance(tensor, QuantizedTensor)}
    result: dict[str, Any] = {
        "__quant_format__": layout.format_tag,
        "quantized": {name: torch.from_numpy(tensor.values.copy()) for name, tensor in integers.items()},
        "scales": {name: torch.from_numpy(tensor.scale.copy()) for name, tensor in integers.items()},
        "dtypes": {name: tensor.dtype for name, tensor in integers.items()},
        "passthrough": {name: _plain(tensor) for name, tensor in plain.items()},
    }
    meta = {
        name: {"scheme": "per_row", "axis": 0} | ({"bits": tensor.bits} if layout.bits_in_meta else {})
        for name, tensor in integers.items()
        if tensor.scale.ndim
    }
    narrowed = {name: tensor.dtype for name, tensor in plain.items() if tensor.stored == "float16"}
    if meta:
        result["qmeta"] = meta
    if narrowed:
        result["passthrough_orig_dtypes"] = narrowed
    return result


def _layout_b(named: Mapping[str, StoredTensor], layout: TorchLayout) -> dict[str, Any]:
    weights: dict[str, Tensor] = {}
    meta: dict[str, Any] = {}
    for name, tensor in named.items():
        if isinstance(tensor, PlainTensor):
            weights[name] = _plain(tensor)
            meta[name] = f"passthrough ({tensor.stored})" if layout.kinds == "words" else "passthrough"
            continue
        if tensor.bits not in layout.widths:
            raise InputError(f"layout B names int5, int6 and int8 only; {name!r} has {tensor.bits} bits")
        weights[name + ".q"] = torch.from_numpy(tensor.values.copy())
        weights[name + ".scale"] = torch.from_numpy(tensor.scale.copy())
        meta[name] = _integer_kind(tensor.bits, layout)
    return {"w": weights, "m": meta}


def _integer_kind(bits: int, layout: TorchLayout) -> str | dict[str, str]:
    if layout.kinds == "words":
        return f"gptq (int{bits})"
    # The dicts with methods have one for matrices, which are int6, and none for the int8 tables.
    method = {"method": "gptq"} if layout.kinds == "methods" and bits < 8 else {}
    return {"type": f"int{bits}"} | method


def _plain(tensor: PlainTensor) -> Tensor:
    if tensor.stored == "bfloat16":
        return torch.from_numpy(tensor.values.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(tensor.values.copy())
