"""Means of ratios with documents as the units: tokens of one document are not independent.

With sums S_d and weights n_d of G documents the mean m is ``sum S_d / sum n_d``, and its variance
``G / (G - 1) * sum (S_d - m n_d)^2 / (sum n_d)^2`` (cluster-robust variance of a ratio; Cochran, Sampling Techniques,
1977, chapter 6), with Student's t on G - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


def clustered_mean(sums: npt.NDArray[Any], weights: npt.NDArray[Any]) -> tuple[float, float | None, float | None]:
    """Return ``sum(sums) / sum(weights)`` with clusters as units.

    Returns:
        The mean, half of its 95% interval, and the one-sided p-value that it is below 0; the latter two are None for
        a single cluster.
    """
    from scipy.special import stdtr, stdtrit

    total = math.fsum(weights.tolist())
    mean = math.fsum(sums.tolist()) / total
    clusters = len(sums)
    if clusters < 2:
        return mean, None, None
    residual = sums - mean * weights
    error = math.sqrt(clusters / (clusters - 1) * math.fsum((residual**2).tolist())) / total
    if error == 0:
        return mean, 0.0, 0.0 if mean < 0 else 1.0
    half = float(stdtrit(clusters - 1, 0.975)) * error
    return mean, half, float(stdtr(clusters - 1, mean / error))


def interval_halves(
    values: npt.NDArray[Any],
    weights: npt.NDArray[Any],
    clusters: npt.NDArray[Any],
    groups: npt.NDArray[Any],
    count: int,
) -> list[float | None]:
    """Return half of the 95% interval of ``sum(values) / sum(weights)`` in each of ``count`` groups, by clusters.

    Args:
        values: what is summed, ``[n]``.
        weights: what it is divided by, ``[n]``.
        clusters: cluster of each, from 0, ``[n]``.
        groups: group of each, 0 to count - 1, ``[n]``.
        count: how many groups there are.

    Returns:
        None for a group that a single cluster fills, or that weighs nothing.
    """
    shape = (int(clusters.max(initial=-1)) + 1, count)
    cell = clusters * count + groups
    sums = np.bincount(cell, weights=values, minlength=shape[0] * count).reshape(shape)
    sizes = np.bincount(cell, weights=weights, minlength=shape[0] * count).reshape(shape)
    halves: list[float | None] = []
    for group in range(count):
        held = sizes[:, group] > 0
        enough = int(held.sum()) > 1
        halves.append(clustered_mean(sums[held, group], sizes[held, group])[1] if enough else None)
    return halves
