"""Row scales and rounding: the one definition of the quantisation step, for export and for training-time rounding.

A weight row ``w`` becomes ``round(w / step)`` with ``step = max(clip / limit, min_step)``, where ``limit`` is 15, 31,
127 for 5, 6, 8 bits. The step is rounded to float16 *before* the integers are made, because float16 is what is stored.

``min_step`` is the published systems' hidden floor made explicit: they write ``max(clip, 1) / limit``, so that every
row whose largest weight is below 1 gets the fixed step ``1 / limit`` (PR592, PR344, PR634, PR849). It controls the
rate: a larger step means fewer distinct integers and a smaller file. 0 turns it off (PR333).
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalkit.artifact.tensors import INT_BITS
from evalkit.plumbing.errors import InputError

# PR592, PR634, PR849: quantiles of |row| tried as clip
PERCENTILES = (0.9990, 0.9995, 0.9999, 0.99999, 1.0)
# int8 rows of the challenge baseline and of PR592, PR634, PR849
INT8_QUANTILE = 0.9999984

_SMALLEST_STEP = 2.0**-14  # the smallest normal float16
_LARGEST_STEP = 65504.0
_QUANTILE_CHUNK = 1 << 23  # torch.quantile refuses more than 2^24 elements


def integer_limit(bits: int) -> int:
    """Return the largest integer of a signed width: 15, 31, 127 for 5, 6, 8 bits.

    Raises:
        InputError: ``bits`` is not a width that artifacts hold.
    """
    if bits not in INT_BITS:
        raise InputError(f"{bits} bits is not a width that an artifact holds; choose one of {INT_BITS}")
    return (1 << (bits - 1)) - 1


def published_min_step(bits: int) -> float:
    """Return the published systems' hidden floor of the step, ``1 / limit``."""
    return 1.0 / integer_limit(bits)


def row_clips(weight: Tensor, quantiles: tuple[float, ...]) -> Tensor:
    """Return some quantiles of each row's magnitudes (1 is the largest), float32 ``[quantiles, rows]``.

    Args:
        weight: ``[rows, ...]``; the rest is flattened.
        quantiles: in (0, 1], linearly interpolated between order statistics.
    """
    magnitude = weight.detach().reshape(weight.shape[0], -1).float().abs()
    if magnitude.shape[1] == 0:
        return magnitude.new_zeros(len(quantiles), magnitude.shape[0])
    if quantiles == (1.0,):
        return magnitude.amax(dim=1)[None]
    rows = max(1, _QUANTILE_CHUNK // magnitude.shape[1])
    wanted = torch.tensor(quantiles, dtype=torch.float32, device=magnitude.device)
    return torch.cat([part.quantile(wanted, dim=1) for part in magnitude.split(rows)], dim=1)


def deviation_clips(weight: Tensor, deviations: float) -> Tensor:
    """Return so many standard deviations of each row, float32 ``[rows]`` ("SDClip", the records from PR1394 on).

    A step is then a fixed share of the row's deviation, whatever its outliers: the size of the file is tuned by the
    number of deviations, and rows of the same shape take the same bits.

    Args:
        weight: ``[rows, ...]`` with two entries or more in a row; the rest is flattened.
        deviations: at least 1; with 10 and more next to nothing is clipped.
    """
    return deviations * weight.detach().reshape(weight.shape[0], -1).float().std(dim=1)


def row_step(clip: Tensor, bits: int, min_step: float = 0.0) -> Tensor:
    """Return the step of each row as it is stored: ``max(clip / limit, min_step)`` in float16, never below its normals.

    Raises:
        InputError: a clip is not finite, or so large that float16 cannot hold the step.
    """
    step = (clip.float() / integer_limit(bits)).clamp_min(max(min_step, _SMALLEST_STEP))
    if not bool(torch.isfinite(step).all()) or bool((step > _LARGEST_STEP).any()):
        raise InputError("a weight is not finite or too large for a float16 scale")
    return step.half()


def round_to_step(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """Return ``round(weight / step)`` clamped to ``[-limit - 1, limit]``, int8 of the weight's shape.

    Args:
        weight: ``[rows, ...]``.
        step: float16 ``[rows]``.
        bits: width of the integers.
    """
    limit = integer_limit(bits)
    divisor = step.float().reshape(-1, *([1] * (weight.ndim - 1)))
    return (weight.float() / divisor).round().clamp(-limit - 1, limit).to(torch.int8)


def search_clip(
    weight: Tensor,
    bits: int,
    *,
    min_step: float = 0.0,
    clips: tuple[float, ...] = PERCENTILES,
    hessian: Tensor | None = None,
) -> Tensor:
    """Choose each row's clip among quantiles of its magnitudes by the error that rounding then makes.

    The error of a row is ``e H e^T`` with ``e`` the rounding error, or ``e e^T`` where no Hessian is given: what the
    layer's output loses, not what the weights lose.

    Args:
        weight: ``[rows, ...]``; the rest is flattened.
        bits: width of the integers.
        min_step: floor of the step; where it binds, all candidates are the same.
        clips: candidates in (0, 1].
        hessian: ``[cols, cols]``, sum or mean of ``x x^T`` over the layer's inputs.

    Returns:
        The step of every row, float16 ``[rows]``.
    """
    matrix = weight.detach().reshape(weight.shape[0], -1).float()
    steps = [row_step(clip, bits, min_step) for clip in row_clips(matrix, clips)]
    if len(steps) == 1:
        return steps[0]
    errors = [rounding_error(matrix, round_to_step(matrix, step, bits), step, hessian) for step in steps]
    best = torch.stack(errors).argmin(dim=0, keepdim=True)
    return torch.stack(steps).gather(0, best)[0]


def rounding_error(matrix: Tensor, values: Tensor, step: Tensor, hessian: Tensor | None) -> Tensor:
    """Return :func:`weighted_row_error` of a matrix that is stored as ``values`` times the ``step`` of each row."""
    return weighted_row_error(matrix - values.float() * step.float()[:, None], hessian)


def weighted_row_error(error: Tensor, hessian: Tensor | None) -> Tensor:
    """Return ``e H e^T`` for every row of ``error`` ``[rows, cols]``, float64 ``[rows]``."""
    projected = error if hessian is None else error @ hessian.to(error.dtype)
    return (projected.double() * error.double()).sum(dim=1)
