"""Turn what the published exporters saved into stored tensors under the names of :class:`evalkit.model.gpt.GPT`.

Layout A (the challenge baseline, PR333, PR344) keeps integers, scales and the rest in separate dicts and says which
dtype each weight is held in. Layout B (PR592, PR634, PR849, and later ones) keeps everything in ``w`` with its kinds
in ``m``, as a dict such as ``{"type": "int6", "method": "gptq"}`` or, from PR1394 on, as words such as
``gptq (int6)``; its readers take the dtype from the model, which holds embedding tables in bfloat16 and everything
else in float32.
A plain state dict, banked or not, is read as well, wherever in a checkpoint it lies and whatever wrapped the model.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.artifact.state_dict import plain_name, weights_of
from evalkit.artifact.tensors import (
    INT_BITS,
    PlainTensor,
    QuantizedTensor,
    StoredTensor,
    bfloat16_bits_to_float32,
    float32_to_bfloat16_bits,
)
from evalkit.artifact.torchfile import RawTensor
from evalkit.plumbing.errors import ArtifactError

_RENAMED = (
    (re.compile(r"^smeargate\."), "smear."),
    (re.compile(r"^(bi|tri)gram_embed\.(embed|proj)\."), r"\1gram.\2."),
    (re.compile(r"^(bi|tri)gram_embed\.\1gram_scale$"), r"\1gram.scale"),
)
BANKS = {
    "qo_bank": ("attn.c_q.weight", "attn.proj.weight"),
    "kv_bank": ("attn.c_k.weight", "attn.c_v.weight"),
    "mlp_up_bank": ("mlp.fc.weight",),
    "mlp_down_bank": ("mlp.proj.weight",),
}
"""Matrices of all layers in one tensor, and what its halves hold."""

_TABLE = re.compile(r"(^tok_emb|\.embed)\.weight$")
_LAYOUT_B_BITS = {f"int{bits}": bits for bits in INT_BITS}
_PASSTHROUGH = ("passthrough", "passthrough_ctrl", "passthrough_fp16")
_KIND_IN_WORDS = re.compile(r"(gptq|passthrough) \((int[4-8]|float16|bfloat16|float32)\)")
_COMPUTED = re.compile(r"(^|[._])(inv_freq|(cos|sin)(_cached|_cache|_table)?|freqs(_cis)?|causal_mask|attn_mask)$")
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def is_quantised(content: Any) -> bool:
    """Whether what was saved is of a published layout, which keeps integers and scales apart from names."""
    return isinstance(content, dict) and ("__quant_format__" in content or set(content) == {"w", "m"})


def read_layout(content: Any) -> tuple[str, dict[str, StoredTensor]]:
    """Return the layout's label and the stored tensors by model name.

    Raises:
        ArtifactError: the content is none of the known layouts, or contradicts itself.
    """
    if not isinstance(content, dict):
        raise ArtifactError(f"the artifact holds a {type(content).__name__}; expected a dict of tensors")
    if "__quant_format__" in content:
        return f"layout A ({content['__quant_format__']})", _finish(_read_layout_a(content))
    if set(content) == {"w", "m"}:
        return f"layout B{_kinds(content['m'])}", _finish(_read_layout_b(content["w"], content["m"]))
    if content.get("format") == "evalkit-checkpoint":
        raise ArtifactError(
            "this is the checkpoint of a training run; make an artifact of it: evalkit export RUN -o FILE"
        )
    named = weights_of(content, RawTensor)
    if named is not None:
        # counters, masks and tables that the model computes itself are no parameters
        weights = {n: value for n, value in named.items() if value.dtype in _FLOATS and not _COMPUTED.search(n)}
        return "state dict", _finish({name: _plain(name, value, None) for name, value in weights.items()})
    keys = ", ".join(sorted(map(str, content))[:6])
    raise ArtifactError(f"the artifact's layout is unknown: its keys are {keys or 'none'}")


def _read_layout_a(content: dict[str, Any]) -> dict[str, StoredTensor]:
    quantized, scales, dtypes = (_section(content, key) for key in ("quantized", "scales", "dtypes"))
    passthrough = _section(content, "passthrough")
    metas, narrowed = content.get("qmeta", {}), content.get("passthrough_orig_dtypes", {})
    if not isinstance(metas, dict) or not isinstance(narrowed, dict):
        raise ArtifactError("layout A keeps qmeta and passthrough_orig_dtypes as dicts; this artifact does not")
    tensors: dict[str, StoredTensor] = {}
    for name, values in quantized.items():
        if name not in scales or name not in dtypes:
            raise ArtifactError(f"tensor {name} is quantised but has no scale or no dtype")
        meta = metas.get(name, {})
        bits = meta.get("bits") if isinstance(meta, dict) else None
        tensors[name] = _quantized(name, values, scales[name], bits, str(dtypes[name]))
    for name, values in passthrough.items():
        if name in tensors:
            raise ArtifactError(f"tensor {name} is stored twice")
        tensors[name] = _plain(name, values, narrowed.get(name))
    return tensors


def _read_layout_b(weights: Any, metas: Any) -> dict[str, StoredTensor]:
    if not isinstance(weights, dict) or not isinstance(metas, dict):
        raise ArtifactError("layout B keeps tensors in a dict w and their kinds in a dict m; this artifact does not")
    tensors: dict[str, StoredTensor] = {}
    used = set()
    for name, meta in metas.items():
        dtype = "bfloat16" if _TABLE.search(model_name(str(name))) else "float32"
        kind = _kind(meta)
        if kind in _PASSTHROUGH:
            used.add(name)
            if name not in weights:
                raise ArtifactError(f"tensor {name} is announced but missing")
            tensors[name] = _plain(name, weights[name], dtype)
        elif isinstance(kind, str) and kind in _LAYOUT_B_BITS:
            values, scale = f"{name}.q", f"{name}.scale"
            used |= {values, scale}
            if values not in weights or scale not in weights:
                raise ArtifactError(f"tensor {name} is announced as {kind} but {values} or {scale} is missing")
            tensors[name] = _quantized(name, weights[values], weights[scale], _LAYOUT_B_BITS[kind], dtype)
        else:
            raise ArtifactError(f"tensor {name} is of unknown kind {str(kind)[:40]!r}")
    for name in weights:
        if name not in used:
            raise ArtifactError(f"tensor {name} is stored but not announced")
    return tensors


def _kind(meta: Any) -> Any:
    """Return ``passthrough...`` or the integers' width, ``int6``, whichever way an entry of ``m`` says it."""
    if isinstance(meta, dict):
        return meta.get("type")
    in_words = _KIND_IN_WORDS.fullmatch(meta) if isinstance(meta, str) else None
    if in_words is None:
        return meta
    method, stored = in_words.groups()
    return stored if method == "gptq" else method


def _kinds(metas: Any) -> str:
    """Return how ``m`` tells the kinds, in words for the label, and by which methods integers were found."""
    entries = list(metas.values()) if isinstance(metas, dict) else []
    if any(isinstance(meta, str) and _KIND_IN_WORDS.fullmatch(meta) for meta in entries):
        return ", kinds in words"
    methods = sorted({str(meta["method"])[:20] for meta in entries if isinstance(meta, dict) and "method" in meta})
    return f" ({', '.join(methods[:4])})" if methods else ""


def _section(content: dict[str, Any], key: str) -> dict[str, Any]:
    section = content.get(key)
    if not isinstance(section, dict):
        raise ArtifactError(f"layout A has a dict {key!r}; this artifact does not")
    return section


def _quantized(name: str, values: Any, scale: Any, bits: Any, dtype: str) -> QuantizedTensor:
    if not isinstance(values, RawTensor) or values.dtype != "int8" or values.values.ndim == 0:
        raise ArtifactError(f"tensor {name} is quantised but its integers are not an int8 tensor")
    if isinstance(scale, float):
        scale = RawTensor(np.full((), scale, dtype=np.float32), "float32")
    if not isinstance(scale, RawTensor) or scale.dtype not in ("float16", "float32"):
        raise ArtifactError(f"the scales of tensor {name} are not float16 or float32")
    scales = scale.values
    rows = values.values.shape[:-1] if values.values.ndim > 2 else values.values.shape[:1]
    if scales.size == 1 and scales.shape != rows:
        scales = scales.reshape(())
    elif scales.size == int(np.prod(rows)):
        scales = scales.reshape(rows)
    else:
        raise ArtifactError(
            f"tensor {name} of shape {values.values.shape} has {scales.size} scales; expected one a row"
        )
    if dtype not in ("float32", "bfloat16"):
        raise ArtifactError(f"tensor {name} is held in {dtype!r}; expected float32 or bfloat16")
    if bits is None:
        peak = int(np.abs(values.values.astype(np.int16)).max(initial=0))
        bits = 5 if peak <= 16 else 6 if peak <= 32 else 8
    if bits not in INT_BITS:
        raise ArtifactError(f"tensor {name} has {bits!r} bits; expected 4 to 8")
    return QuantizedTensor(values=values.values, scale=scales, bits=bits, dtype=dtype)


def _plain(name: str, tensor: Any, dtype: Any) -> PlainTensor:
    if not isinstance(tensor, RawTensor) or tensor.dtype not in _FLOATS:
        raise ArtifactError(f"tensor {name} is not a floating-point tensor")
    values, stored = tensor.values, tensor.dtype
    if stored == "float64":
        values, stored = values.astype(np.float32), "float32"
    held = str(dtype).removeprefix("torch.") if dtype is not None else stored
    return PlainTensor(values=values, stored=stored, dtype="bfloat16" if held == "bfloat16" else "float32")


def model_name(name: str) -> str:
    """Return the name that the model gives a published tensor."""
    name = plain_name(name)
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _finish(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Give tensors their model names, take banks apart and check that every number is finite."""
    finished: dict[str, StoredTensor] = {}
    for published, tensor in tensors.items():
        name = model_name(str(published))
        for part_name, part in _unbank(name, tensor) if name in BANKS else [(name, tensor)]:
            if part_name in finished:
                raise ArtifactError(f"tensor {part_name} is stored twice")
            finished[part_name] = part
    for name, tensor in finished.items():
        # Integers are finite: it is enough to look at the scales.
        numbers = tensor.dequantize() if isinstance(tensor, PlainTensor) else tensor.scale
        if not np.isfinite(numbers).all():
            raise ArtifactError(f"tensor {name} holds values that are not finite; the artifact is damaged")
    return finished


def bank_row(bank: str, row: int, rows: int) -> str:
    """Return the model's name of a row of a bank."""
    layers = rows // len(BANKS[bank])
    return f"blocks.{row % layers}.{BANKS[bank][row // layers]}"


def _unbank(name: str, tensor: StoredTensor) -> list[tuple[str, StoredTensor]]:
    suffixes = BANKS[name]
    banks = tensor.values.shape[0] if tensor.values.ndim == 3 else 0
    if banks == 0 or banks % len(suffixes):
        raise ArtifactError(
            f"bank {name} has shape {tensor.values.shape}; expected [layers x {len(suffixes)}, out, in]"
        )
    parts: list[tuple[str, StoredTensor]] = []
    for i in range(banks):
        part_name = bank_row(name, i, banks)
        part = replace(tensor, values=tensor.values[i])
        if isinstance(part, QuantizedTensor) and part.scale.ndim:
            part = replace(part, scale=part.scale[i])
        parts.append((part_name, part))
    return parts


def held_values(tensor: StoredTensor) -> npt.NDArray[np.float32]:
    """Return a tensor's values as the model holds them: dequantised, rounded to bfloat16 where it is held in that."""
    values = tensor.dequantize()
    if tensor.dtype == "bfloat16":
        values = bfloat16_bits_to_float32(float32_to_bfloat16_bits(values))
    return values
