"""Approximate orthogonalisation by quintic Newton-Schulz iterations (Jordan et al., 2024, "Muon")."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Polynomial = tuple[float, float, float]
"""a, b, c of X <- a X + (b A + c A^2) X, A = X X^T, which takes a singular value s to a s + b s^3 + c s^5."""

COEFFICIENTS: Polynomial = (3.4445, -4.7750, 2.0315)
"""Jordan's: steep at 0 rather than convergent at 1."""

POLAR_EXPRESS: tuple[Polynomial, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
"""A polynomial for each iteration: each is the best for the interval in which the ones before it leave the singular
values that start in [0.001, 1] (Amsel et al. 2025, "The Polar Express", arXiv:2505.16932)."""

Coefficients = Literal["jordan", "polar_express"]

_SAFETY = 1.01  # Polar Express: rounding may push a singular value above the interval, where its polynomials diverge
_EPS = 1e-7


def polynomials(kind: Coefficients, steps: int) -> tuple[Polynomial, ...]:
    """Return the polynomial of every iteration.

    Polar Express converges within its five; more iterations repeat the fixed point of its recursion, the best
    polynomial for values that are near 1 already.
    """
    if kind == "jordan":
        return (COEFFICIENTS,) * steps
    wide = tuple((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in POLAR_EXPRESS)
    return (wide + ((1.875, -1.25, 0.375),) * steps)[:steps]


def newton_schulz(
    g: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16, coefficients: Coefficients = "jordan"
) -> Tensor:
    """Return matrices with the singular vectors of ``g`` and singular values near 1.

    Args:
        g: one matrix ``[m, n]`` or a batch ``[..., m, n]``, each normalised by its own Frobenius norm; zeros
            stay zero.
        steps: iterations.
        dtype: dtype of the products.
        coefficients: the polynomials of the iterations.

    Returns:
        Like ``g``, in ``dtype``.
    """
    x = g.to(dtype).reshape(-1, *g.shape[-2:])
    margin = _SAFETY if coefficients == "polar_express" else 1.0
    x = x / (x.float().square().sum(dim=(-2, -1), keepdim=True).sqrt() * margin + _EPS).to(dtype)
    tall = g.shape[-2] > g.shape[-1]
    if tall:
        x = x.mT
    for a, b, c in polynomials(coefficients, steps):
        gram = x @ x.mT
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # sums and products in one, which saves a fifth
        x = torch.baddbmm(x, factor, x, beta=a)
    return (x.mT if tall else x).reshape(g.shape)


def aspect_scale(m: int, n: int) -> float:
    """Return sqrt(max(1, m / n)), Muon's factor for a matrix of m outputs and n inputs."""
    return math.sqrt(max(1.0, m / n))
