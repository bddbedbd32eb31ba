"""Full-Hessian GPTQ (Frantar et al. 2023, arXiv:2210.17323): later columns make up for the rounding of earlier ones.

With ``H`` the mean of ``x x^T`` over the layer's inputs and ``U`` the upper Cholesky factor of its inverse
(``U^T U = H^-1``), column ``j`` is rounded to ``q_j``, and every later column ``k`` takes
``- (w_j - q_j) / U_jj * U_jk``.
Inputs that are always zero are taken out first; the diagonal is damped once; columns go in descending order of their
input energy, so that the important ones are rounded while there is still freedom left.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from evalkit.plumbing.errors import InputError
from evalkit.train.quantization.rows import (
    PERCENTILES,
    integer_limit,
    round_to_step,
    rounding_error,
    row_clips,
    row_step,
)

_DAMPING = 0.01  # share of the mean diagonal of H that is added to the diagonal
_DAMPING_RETRIES = 4
_BLOCK = 128  # columns updated one by one before the rest is updated by one product


def gptq_round(weight: Tensor, hessian: Tensor, step: Tensor, bits: int) -> Tensor:
    """Return GPTQ's integers for a matrix whose row steps are fixed.

    Args:
        weight: ``[rows, cols]``.
        hessian: ``[cols, cols]``, sum or mean of ``x x^T``; its scale does not matter. Not modified.
        step: float16 ``[rows]``.
        bits: width of the integers, which stay in ``[-limit - 1, limit]``.

    Returns:
        int8 ``[rows, cols]``; columns of inputs that were always zero are 0.

    Raises:
        InputError: shapes do not fit, or H is not finite or cannot be made positive definite.
    """
    cols = weight.shape[1]
    if hessian.shape != (cols, cols):
        raise InputError(f"a weight of {cols} columns needs a {cols}x{cols} Hessian, not {tuple(hessian.shape)}")
    if not bool(torch.isfinite(hessian).all()):
        raise InputError("the Hessian is not finite: the calibration inputs hold infinities or NaN")
    limit = integer_limit(bits)
    left = weight.detach().float().clone()
    diagonal = hessian.diagonal()
    dead = diagonal <= 0
    left[:, dead] = 0
    order = torch.argsort(diagonal, descending=True, stable=True)
    factor = _inverse_factor(hessian, dead, order)
    # The columns go one by one, which is a loop for a compiler, on the CPU whatever device the matrices are on.
    left = left[:, order].contiguous().cpu()
    scale, factor = step.float().cpu().numpy(), factor.cpu()
    quantized = torch.empty(left.shape, dtype=torch.int8)
    for start in range(0, cols, _BLOCK):
        stop = min(start + _BLOCK, cols)
        errors = torch.empty(len(left), stop - start)
        _round_block(
            left[:, start:stop].numpy(),
            scale,
            factor[start:stop, start:stop].contiguous().numpy(),
            np.float32(limit),
            quantized[:, start:stop].numpy(),
            errors.numpy(),
        )
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    result = torch.empty_like(quantized)
    result[:, order.cpu()] = quantized
    return result.to(weight.device)


@numba.njit(cache=True)
def _round_block(left: Any, scale: Any, factor: Any, limit: Any, quantized: Any, errors: Any) -> None:
    """Round the columns ``[rows, block]`` of ``left`` in turn, and have the later ones of each row make up for it.

    ``quantized`` takes the integers, ``errors`` what the columns after the block are to make up for; ``left`` is spent.
    """
    rows, columns = left.shape
    for row in range(rows):
        for j in range(columns):
            value = left[row, j]
            q = min(max(np.rint(value / scale[row]), -limit - np.float32(1)), limit)
            error = (value - q * scale[row]) / factor[j, j]
            quantized[row, j] = np.int8(q)
            errors[row, j] = error
            for k in range(j + 1, columns):
                left[row, k] -= error * factor[j, k]


def rounded(weight: Tensor, step: Tensor, bits: int, hessian: Tensor | None) -> Tensor:
    """Return integers for given row steps: GPTQ's with a Hessian, the nearest without."""
    return round_to_step(weight, step, bits) if hessian is None else gptq_round(weight, hessian, step, bits)


def gptq_search(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    *,
    min_step: float = 0.0,
    clips: tuple[float, ...] = PERCENTILES,
) -> tuple[Tensor, Tensor]:
    """Round with every candidate clip, and keep what leaves the least output error *after* compensation.

    The clip that is best for rounding to nearest is not: what a tighter clip cuts off one weight, the others make up
    for. Rows do not depend on one another, so all candidates go through one column loop.

    Args:
        weight: ``[rows, cols]``.
        hessian: ``[cols, cols]``, sum or mean of ``x x^T``.
        bits: width of the integers.
        min_step: floor of the step; where it binds for all candidates, there is one to try.
        clips: quantiles of |row| to try.

    Returns:
        Integers int8 ``[rows, cols]`` and steps float16 ``[rows]``.

    Raises:
        InputError: as :func:`gptq_round`.
    """
    matrix = weight.detach().float()
    rows = matrix.shape[0]
    steps = torch.stack([row_step(clip, bits, min_step) for clip in row_clips(matrix, clips)]).unique(dim=0)
    values = gptq_round(matrix.repeat(len(steps), 1), hessian, steps.flatten(), bits)
    values = values.view(len(steps), rows, -1)
    errors = torch.stack(
        [rounding_error(matrix, value, step, hessian) for value, step in zip(values, steps, strict=True)]
    )  # [candidates, rows]
    chosen = errors.argmin(dim=0)
    row = torch.arange(rows, device=chosen.device)
    return values[chosen, row].contiguous(), steps[chosen, row]


def _inverse_factor(hessian: Tensor, dead: Tensor, order: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the damped, reordered Hessian's inverse, computed in float64."""
    work = hessian.double().clone()
    work[dead, :] = 0
    work[:, dead] = 0
    live = work.diagonal()[~dead]
    mean = live.mean() if live.numel() else work.new_ones(())
    work.diagonal()[dead] = mean
    work = work[order][:, order]
    for attempt in range(_DAMPING_RETRIES):
        damped = work.clone()
        damped.diagonal().add_(mean * _DAMPING * 10.0**attempt)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed) == 0:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if int(failed) == 0:
                factor: Tensor = upper.float()
                return factor
    raise InputError("the Hessian is not positive definite even with strong damping: calibrate on more tokens")
