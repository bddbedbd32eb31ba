"""Quantisation-aware training: the forward pass sees weights that have been through the quantiser.

The quantiser is applied to the weights' dictionary inside the differentiated function, after banks are cut
into slices. Whether it is on is an argument of that function, and the sharpness of soft rounding is a tensor,
so a compiled step is traced once with and once without it and can hold neither as a stale constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from evalkit.train.config import QatConfig
from evalkit.train.parameters import role_of

_TINY = 1e-12


def bits_of(name: str, config: QatConfig) -> int:
    """Return the width that the weight ``name`` is trained for, 0 if it is left alone."""
    role = role_of(name)
    if role not in ("attention", "mlp", "projection"):
        return 0
    bits = {"mlp": config.mlp_bits, "attention": config.attention_bits, "projection": config.projection_bits}[role]
    for item in config.layer_bits:
        pattern, _, width = item.rpartition("=")
        if fnmatchcase(name, pattern):
            bits = int(width)
    return bits


def with_width(weights: Mapping[str, Tensor], config: QatConfig) -> list[tuple[str, Tensor, int]]:
    """Return name, weight and width of every weight that QAT reaches."""
    named = [(name, w, bits_of(name, config)) for name, w in weights.items()]
    return [one for one in named if one[2]]


def row_clip(w: Tensor, config: QatConfig) -> Tensor:
    """Return the clip of every row, ``[..., rows, 1]``: amax or a quantile, at least the floor."""
    magnitude = w.abs()
    if config.row_clip == "amax" or config.quantile == 1.0:
        clip = magnitude.amax(dim=-1, keepdim=True)
    else:
        # Only the few largest entries matter, and torch.quantile refuses large tensors.
        columns = w.shape[-1]
        position = config.quantile * (columns - 1)
        below = math.floor(position)
        top = magnitude.topk(min(columns - below, columns), dim=-1).values
        low = top[..., columns - 1 - below].unsqueeze(-1)
        high = top[..., max(columns - 2 - below, 0)].unsqueeze(-1)
        clip = low + (position - below) * (high - low)
    return clip.clamp_min(max(config.clip_floor, _TINY))


def step_size(w: Tensor, bits: int, config: QatConfig) -> Tensor:
    """Return the distance between neighbouring grid points of every row, ``[..., rows, 1]``."""
    return row_clip(w, config) / max_int(bits)


def max_int(bits: int) -> int:
    """Return the largest integer of the symmetric range: 15 for int5, 31 for int6."""
    return int(2 ** (bits - 1) - 1)


def round_to_grid(w: Tensor, bits: int, config: QatConfig) -> Tensor:
    """Return the nearest grid point of every weight (no gradient)."""
    with torch.no_grad():
        step = step_size(w, bits, config)
        return torch.clamp(torch.round(w / step), -max_int(bits), max_int(bits)) * step


def straight_through(w: Tensor, bits: int, config: QatConfig) -> Tensor:
    """Return the nearest grid point, with the identity as gradient (Bengio et al., 2013)."""
    # w - w.detach() is exactly zero, so the value is exactly on the grid.
    return round_to_grid(w.detach(), bits, config) + (w - w.detach())


def soft_round(y: Tensor, alpha: Tensor) -> Tensor:
    """Return a staircase of sharpness ``alpha``: the identity for alpha -> 0, rounding for alpha -> infinity.

    s(y) = floor(y) + 0.5 tanh(alpha r) / tanh(alpha / 2) + 0.5, with r = y - floor(y) - 0.5 (Agustsson and
    Theis, 2020; PR849).
    """
    floor = torch.floor(y)
    r = y - floor - 0.5
    return floor + 0.5 * torch.tanh(alpha * r) / torch.tanh(alpha / 2) + 0.5


def soft_quantise(w: Tensor, bits: int, alpha: Tensor, config: QatConfig) -> Tensor:
    """Return softly rounded weights; weight, clip and step are all differentiated (PR849)."""
    step = step_size(w, bits, config)
    return torch.clamp(soft_round(w / step, alpha), -max_int(bits), max_int(bits)) * step


def fake_quantise(weights: Mapping[str, Tensor], alpha: Tensor, config: QatConfig) -> dict[str, Tensor]:
    """Return a GPT's float32 state dict with the weights that have a width passed through the quantiser.

    ``alpha`` is the sharpness of soft rounding, a tensor without dimensions; unused by ``ste``.
    """
    result = dict(weights)
    soft = config.rounding == "soft"
    for name, w, bits in with_width(weights, config):
        result[name] = soft_quantise(w, bits, alpha, config) if soft else straight_through(w, bits, config)
    return result


def crown_q_penalty(weights: Mapping[str, Tensor], config: QatConfig) -> Tensor:
    """Return crown_q / 12 times the sum (or sum of means) of w^2 step^2, the step without gradient (PR849).

    step^2 / 12 is the variance of rounding noise, and w^2 stands in for the curvature; the penalty shrinks
    weights in rows with a coarse grid.
    """
    total = torch.zeros(())
    for i, (_, w, bits) in enumerate(with_width(weights, config)):
        noise = w.square() * step_size(w.detach(), bits, config).square()
        term = noise.mean() if config.crown_q_reduction == "mean" else noise.sum()
        total = total + term if i else term
    return config.crown_q / 12.0 * total


def kept_distance(before: float, after: float, config: QatConfig) -> float:
    """Return the factor of one step on distances to the grid, which makes them follow 1 - progress^grid_pull.

    Args:
        before: progress of QAT's part of the run before the step, in [0, 1).
        after: progress after it, in [0, 1].
        config: the exponent.
    """
    return float(max(1.0 - after**config.grid_pull, 0.0) / (1.0 - before**config.grid_pull))


@torch.no_grad()
def pull_to_grid(weights: Mapping[str, Tensor], keep: float, config: QatConfig) -> None:
    """Shrink the distance of weights to their nearest grid points to ``keep`` of what it is, in place.

    A proximal step (ProxQuant: Bai et al., 2019). It leaves the rounded weights, hence the loss, as they are, and makes
    a weight that sits between two grid points settle on one instead of oscillating (Nagel et al., 2022).
    """
    for _, w, bits in with_width(weights, config):
        w.lerp_(round_to_grid(w, bits, config), 1.0 - keep)


def soft_alpha(config: QatConfig, progress: float) -> float:
    """Return the sharpness of soft rounding when ``progress`` (in [0, 1]) of QAT's part of the run is over.

    PR849 has it follow the learning rate, which falls along a line and so gives the same.
    """
    return config.soft_alpha_start + (config.soft_alpha_end - config.soft_alpha_start) * progress


@torch.no_grad()
def grid_distance(weights: Mapping[str, Tensor], config: QatConfig) -> float:
    """Return the root mean square distance to the nearest grid point in steps, over all weights QAT reaches.

    Weights spread evenly over the cells give 1 / sqrt(12) = 0.289. NaN if QAT reaches nothing.
    """
    squares, count = 0.0, 0
    for _, w, bits in with_width(weights, config):
        offset = (w.float() - round_to_grid(w.float(), bits, config)) / step_size(w.float(), bits, config)
        squares += float(offset.double().square().sum())
        count += w.numel()
    return math.sqrt(squares / count) if count else math.nan
