"""Approximate orthogonalisation by a quintic Newton-Schulz iteration (Jordan et al., 2024, "Muon")."""

from __future__ import annotations

import math

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of X <- a X + (b A + c A^2) X, A = X X^T: steep at 0 rather than convergent at 1."""

_EPS = 1e-7


def newton_schulz(g: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return matrices with the singular vectors of ``g`` and singular values near 1.

    Args:
        g: one matrix ``[m, n]`` or a batch ``[..., m, n]``, each normalised by its own Frobenius norm; zeros
            stay zero.
        steps: iterations.
        dtype: dtype of the products.

    Returns:
        Like ``g``, in ``dtype``.
    """
    a, b, c = COEFFICIENTS
    x = g.to(dtype)
    x = x / (x.float().square().sum(dim=(-2, -1), keepdim=True).sqrt() + _EPS).to(dtype)
    tall = g.shape[-2] > g.shape[-1]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


def aspect_scale(m: int, n: int) -> float:
    """Return sqrt(max(1, m / n)), Muon's factor for a matrix of m outputs and n inputs."""
    return math.sqrt(max(1.0, m / n))
