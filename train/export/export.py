"""From a state dict to an artifact: quantise by a plan, pack into a container, write."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from evalkit.artifact.native import Modes, NativeMetadata, write_native
from evalkit.artifact.tensors import PlainTensor, QuantizedTensor, StoredTensor
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_atomically
from evalkit.plumbing.progress import tracked
from evalkit.train.export.torch_layouts import TorchCompression, TorchLayout, compress_payload, torch_payload
from evalkit.train.quantization.gptq import gptq_search, rounded
from evalkit.train.quantization.plan import QuantizationPlan, TensorRule, layer_count
from evalkit.train.quantization.pruning import magnitude_prune
from evalkit.train.quantization.rows import deviation_clips, round_to_step, row_step, search_clip

Container = Literal["evalkit", "torch-zstd", "torch-xz", "torch-zlib", "torch-brotli"]
_KEPT = 4  # artifacts, of a few megabytes each
CONTAINERS: tuple[Container, ...] = ("evalkit", "torch-zstd", "torch-xz", "torch-zlib", "torch-brotli")


@dataclass(frozen=True, kw_only=True)
class ArtifactFile:
    """A file that was written.

    Attributes:
        path: where.
        n_bytes: its size.
        sha256: its hex digest.
    """

    path: Path
    n_bytes: int
    sha256: str


def quantize_state_dict(
    state: Mapping[str, Tensor], plan: QuantizationPlan, hessians: Mapping[str, Tensor] | None = None
) -> dict[str, StoredTensor]:
    """Quantise every tensor of a model.

    Args:
        state: name to float tensor; not modified. The work happens on each tensor's device.
        plan: what each tensor becomes.
        hessians: mean of ``x x^T`` by module name (the tensor's name without ``.weight``). Used by the clip
            searches, and by GPTQ where the plan asks for it.

    Returns:
        Name to stored tensor, in the order of ``state``.

    Raises:
        InputError: no rule matches, a value is not finite or does not fit its format, or a rule asks for
            GPTQ and ``hessians`` is given without that module.
    """
    layers = layer_count(state)
    return {
        name: quantize_tensor(name, tensor, plan, plan.rule_for(name, tensor.numel(), layers), hessians)
        for name, tensor in tracked(list(state.items()), "quantise", unit="weights", size=lambda item: item[1].numel())
    }


@torch.no_grad()
def quantize_tensor(
    name: str,
    tensor: Tensor,
    plan: QuantizationPlan,
    rule: TensorRule,
    hessians: Mapping[str, Tensor] | None,
) -> StoredTensor:
    """Quantise one tensor by one rule; the plan says what else there is to know. Arguments and errors as above."""
    dtype = plan.dtype_of(name)
    if not tensor.is_floating_point():
        raise InputError(f"tensor {name!r} has dtype {tensor.dtype}, not a floating-point one")
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"tensor {name!r} holds values that are not finite")
    weight = magnitude_prune(tensor.detach().float(), plan.magnitude_prune)
    if not rule.bits or not weight.ndim:
        return store_plain(name, weight, rule.format if not rule.bits else "float32", dtype)
    hessian = None if hessians is None else hessians.get(name.removesuffix(".weight"))
    if rule.gptq and hessians is not None and hessian is None:
        raise InputError(f"the plan asks for GPTQ on {name!r}, and there is no Hessian for it")
    if hessian is not None:
        hessian = hessian.to(weight.device)
    compensated = hessian if rule.gptq and weight.ndim == 2 else None
    if rule.deviations and weight.ndim > 1:
        step = row_step(deviation_clips(weight, rule.deviations), rule.bits, rule.min_step)
        values = rounded(weight, step, rule.bits, compensated)
    elif compensated is not None:
        values, step = gptq_search(weight, compensated, rule.bits, min_step=rule.min_step, clips=rule.clips)
    else:
        step = search_clip(weight, rule.bits, min_step=rule.min_step, clips=rule.clips, hessian=hessian)
        values = round_to_step(weight, step, rule.bits)
    return QuantizedTensor(
        values=values.cpu().contiguous().numpy(), scale=step.cpu().numpy(), bits=rule.bits, dtype=dtype
    )


def store_plain(name: str, weight: Tensor, stored: str, dtype: str) -> PlainTensor:
    """Return a tensor in a floating-point format, by way of bfloat16 if the model holds it in that.

    Raises:
        InputError: a value is too large for float16.
    """
    # A tensor the model holds in bfloat16 loses nothing by being rounded now, and its zero bits cost nothing.
    held = weight.bfloat16().float() if dtype == "bfloat16" else weight
    if stored == "bfloat16":
        bits = held.bfloat16().cpu().contiguous().view(torch.int16).numpy().view("uint16")
        return PlainTensor(values=bits, stored=stored, dtype=dtype)
    narrow = held.half() if stored == "float16" else held
    if not bool(torch.isfinite(narrow).all()):
        raise InputError(f"tensor {name!r} holds values too large for float16")
    return PlainTensor(values=narrow.cpu().contiguous().numpy().copy(), stored=stored, dtype=dtype)


def pack_artifact(
    tensors: Mapping[str, StoredTensor],
    container: Container,
    *,
    layout: TorchLayout | None = None,
    metadata: NativeMetadata | None = None,
    modes: Modes | None = None,
) -> bytes:
    """Return the bytes of an artifact.

    Args:
        tensors: what it holds.
        container: ``evalkit``, or a torch save compressed by zstd, xz, zlib or brotli.
        layout: arrangement of the torch containers; they need one, ``evalkit`` has none.
        metadata: what an ``evalkit`` container says about itself.
        modes: as for :func:`~evalkit.artifact.native.write_native`.

    Raises:
        InputError: the container is unknown, or a torch container lacks its layout.
    """
    if container == "evalkit":
        return write_native(tensors, metadata or NativeMetadata(), modes=modes)
    if container not in CONTAINERS:
        raise InputError(f"container {container!r} is none of {', '.join(CONTAINERS)}")
    if layout is None:
        raise InputError(f"container {container} needs the layout of a published system")
    compression = cast(TorchCompression, container.removeprefix("torch-"))
    return compress_payload(torch_payload(tensors, layout), compression)


def write_artifact(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    container: Container,
    *,
    layout: TorchLayout | None = None,
    metadata: NativeMetadata | None = None,
) -> ArtifactFile:
    """Write an artifact in one step: an interruption leaves no half-written file.

    Arguments as :func:`pack_artifact`.
    """
    return write_packed(path, pack_artifact(tensors, container, layout=layout, metadata=metadata))


def write_packed(path: Path, data: bytes) -> ArtifactFile:
    """Write what :func:`pack_artifact` returned, in one step."""
    write_atomically(path, data)
    return ArtifactFile(path=path, n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


class Packer:
    """Packs tensors for one file, as :func:`pack_artifact` does, and no tensors twice in a row.

    A search packs to learn sizes, changes a few tensors and packs again, and what it ends with is written: the last few
    artifacts are kept, and what was measured of tensors that stay. Tensors must not be modified in between.
    """

    def __init__(self, container: Container, *, layout: TorchLayout | None, metadata: NativeMetadata) -> None:
        self._container, self._layout, self._metadata = container, layout, metadata
        self._modes: Modes = {}
        self._kept: list[tuple[Mapping[str, StoredTensor], bytes]] = []

    def __call__(self, tensors: Mapping[str, StoredTensor]) -> bytes:
        """Return the artifact's bytes."""
        for held, data in self._kept:
            if held.keys() == tensors.keys() and all(held[name] is tensor for name, tensor in tensors.items()):
                return data
        data = pack_artifact(tensors, self._container, layout=self._layout, metadata=self._metadata, modes=self._modes)
        self._kept = [*self._kept[1 - _KEPT :], (dict(tensors), data)]
        return data


def code_size(paths: list[Path]) -> int:
    """Return the bytes of the code files that count towards the cap.

    Raises:
        InputError: a file does not exist.
    """
    for path in paths:
        if not path.is_file():
            raise InputError(f"code file {path} does not exist")
    return sum(path.stat().st_size for path in paths)
