"""Attention kernels of a GPU: which of torch's is the fastest for the shapes at hand, by a measurement at the start.

On one card cuDNN's is faster, on another flash attention; which one torch takes by itself has changed between its
versions. Both compute the same function with other roundings. Flash attention is taken unless cuDNN is clearly faster,
so that a busy machine does not turn the choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from evalkit.model.config import ModelConfig

NAMES = {
    SDPBackend.FLASH_ATTENTION: "flash attention",
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient attention",
    SDPBackend.MATH: "plain products",
}
CANDIDATES = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)

MARGIN = 1.1
"""How many times as fast as the candidates before it a kernel must be to be taken."""

_REPEATS = 5
_MEASURED_TOKENS = 131_072
"""Tokens of a measurement, which fill a GPU; more tell nothing new."""


@dataclass(frozen=True, kw_only=True)
class AttentionKernel:
    """The kernel that was chosen.

    Attributes:
        backend: torch's name of it.
        milliseconds: of each candidate that can do it, in the order in which they were tried.
    """

    backend: SDPBackend
    milliseconds: tuple[tuple[SDPBackend, float], ...]

    def active(self) -> AbstractContextManager[object]:
        """Have torch take this kernel wherever it can, for the length of a ``with`` block."""
        order = [self.backend, *(backend for backend in NAMES if backend != self.backend)]
        chosen: AbstractContextManager[object] = sdpa_kernel(order, set_priority=True)
        return chosen

    def __str__(self) -> str:
        """Say which, and how fast."""
        times = ", ".join(f"{NAMES[backend]} {value:.2f} ms" for backend, value in self.milliseconds)
        return f"attention by {NAMES[self.backend]} (measured: {times})"


@cache
def fastest_attention(
    config: ModelConfig, *, seq_len: int, device: torch.device, dtype: torch.dtype, training: bool = False
) -> AttentionKernel | None:
    """Return the fastest kernel for a model's causal attention; ``training`` measures the backward pass as well.

    None where there is nothing to choose: on a CPU, or in float32.
    """
    if device.type != "cuda" or dtype == torch.float32:
        return None
    batch = max(1, _MEASURED_TOKENS // seq_len)
    shape = (batch, config.num_heads, config.num_kv_heads, seq_len, config.head_dim)
    return choose(measure(CANDIDATES, shape, device, dtype, training=training))


def choose(milliseconds: Sequence[tuple[SDPBackend, float]]) -> AttentionKernel | None:
    """Return the first kernel that none of the later ones beats clearly; None where there is none at all."""
    if not milliseconds:
        return None
    best, least = milliseconds[0]
    for backend, value in milliseconds[1:]:
        if value * MARGIN < least:
            best, least = backend, value
    return AttentionKernel(backend=best, milliseconds=tuple(milliseconds))


def measure(
    candidates: Sequence[SDPBackend],
    shape: tuple[int, int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    *,
    training: bool,
) -> list[tuple[SDPBackend, float]]:
    """Return the milliseconds of each kernel that can compute the shape; the best of several repeats.

    A shape is windows, heads, heads of keys and values, tokens, width of a head; ``training`` times the backward pass
    as well.
    """
    batch, heads, kv_heads, rows, width = shape
    q, k, v = (
        torch.randn(batch, rows, count, width, device=device, dtype=dtype).transpose(1, 2).requires_grad_(training)
        for count in (heads, kv_heads, kv_heads)
    )

    def run() -> None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
        if training:
            torch.autograd.grad(y.sum(), (q, k, v))

    found = []
    for backend in candidates:
        try:
            with torch.set_grad_enabled(training), torch.inference_mode(False), sdpa_kernel(backend):
                run()
                found.append((backend, min(_milliseconds(run, device) for _ in range(_REPEATS))))
        except RuntimeError:  # this kernel does not know this card, shape or type
            continue
    return found


def _milliseconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - began)
