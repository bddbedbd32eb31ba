"""Rotary position embedding (Su et al., 2021), half-split layout, with NTK-aware rescaling of the base."""

from __future__ import annotations

import torch
from torch import Tensor

from evalkit.model.config import ModelConfig


def rotary_tables(
    config: ModelConfig, fed_length: int, device: torch.device, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of positions ``0 .. fed_length - 1``, or of others.

    Beyond ``rope_train_len`` the base grows to base * (fed_length / rope_train_len)^(R / (R - 2)), with R rotated
    dimensions, so the tables depend on the length of the window that is fed and not on the position alone.

    Args:
        config: the model.
        fed_length: length of the window in tokens, padding included.
        device: where the tables live.
        positions: float64 ``[n]``, in place of the window's own; their angles are taken in float64, so that they are
            exact however far a stream has come.

    Returns:
        Two float32 tensors ``[n, R / 2]``.
    """
    rotated = config.rotated_dims
    base = config.rope_base
    rescaled = 0 < config.rope_train_len < fed_length
    if rescaled:
        base = base * (fed_length / config.rope_train_len) ** (rotated / (rotated - 2))
    exponent = torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated
    frequencies = 1.0 / (base**exponent)
    if config.rope_table == "bf16" and not rescaled:
        # The published modules hold this vector in a bfloat16 buffer, and rebuild it in float32 when they rescale.
        frequencies = frequencies.bfloat16().float()
    if positions is not None:
        far = torch.outer(positions.to(device), frequencies.double())
        return far.cos().float(), far.sin().float()
    angles = torch.outer(torch.arange(fed_length, dtype=torch.float32, device=device), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R dimensions of every head, pairing dimension p with p + R / 2; the others pass through.

    Args:
        x: ``[B, H, T, D]``.
        cos: ``[T, R / 2]`` in the dtype of ``x``.
        sin: like ``cos``.

    Returns:
        Like ``x``.
    """
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    rotated = [first * cos + second * sin, second * cos - first * sin]
    if 2 * half < x.shape[-1]:
        rotated.append(x[..., 2 * half :])
    return torch.cat(rotated, dim=-1)
