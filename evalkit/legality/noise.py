"""How far two scores of the same thing may lie apart: tolerances derived from the numbers themselves.

A float64 forecaster repeats itself to the bit when only tokens it must not see have changed, so there any
difference counts. Values that were rounded to float32, bfloat16 or float16 on their way are recognised by their
grid, and noise that depends on the content of a batch is measured; what exceeds the grid and the noise is a
breach, and so is noise of any size that turns out to be systematic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from evalkit.legality.hosts import Floats

Grid = Literal["float64", "float32", "bfloat16", "float16"]

SAME = 1e-9
"""Relative difference up to which two float64 scores are the same number: 10^6 roundings of 2^-53."""

EXACT = 1e-6
"""Nats that one float32 rounding inside an otherwise exact forecaster can move a score of a few nats."""

FLOAT32 = 1e-4
"""Nats that float32 arithmetic can move a score: some 30 roundings (2^-24) of logits as large as 50."""

BFLOAT16 = 0.15
"""Nats that bfloat16 can move a score: one step of logits between 16 and 32 is 0.125."""

ROUNDING = 0.3
"""Nats that no rounding explains: one step of bfloat16 logits between 32 and 64 is 0.25."""

P_SYSTEMATIC = 1e-9
"""Level of each single test of noise; with at most a few hundred tests the whole stays below 1e-6."""

_BITS: dict[Grid, int] = {"float64": 52, "float32": 23, "bfloat16": 7, "float16": 10}


def grid_of(values: Floats) -> Grid:
    """Return the coarsest float type that holds every one of ``values`` exactly."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return "float64"
    single = finite.astype(np.float32)
    if not np.array_equal(single.astype(np.float64), finite):
        return "float64"
    if not np.any(single.view(np.uint32) & np.uint32(0xFFFF)):
        return "bfloat16"
    with np.errstate(over="ignore"):
        if np.array_equal(finite.astype(np.float16).astype(np.float64), finite):
            return "float16"
    return "float32"


def step(values: Floats, grid: Grid) -> Floats:
    """Return the distance between neighbours on ``grid`` around each of ``values``."""
    size = np.maximum(np.abs(np.where(np.isfinite(values), values, 1.0)), 2.0**-14)
    return np.asarray(2.0 ** (np.floor(np.log2(size)) - _BITS[grid]))


def difference(a: Floats, b: Floats) -> Floats:
    """Return ``b - a`` with two equal infinities zero apart."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, b - a)


def moved(a: Floats, b: Floats) -> npt_bool:
    """Return where two scores are not the same number."""
    return np.asarray(~(np.abs(difference(a, b)) <= SAME * (1.0 + np.abs(np.where(np.isfinite(a), a, 0.0)))))


npt_bool = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class NoiseProfile:
    """What is known of a forecaster's noise.

    Attributes:
        grid: Float type of its values.
        median: Median over positions of how far a score moved, in nats, when only later tokens changed.
        upper: The size of the noise: the 90th percentile of the same, or a quarter of the largest once all of them
            are taken for noise (a sum over the vocabulary is allowed eight times this).
        largest: The largest of the same, breaches included.
    """

    grid: Grid = "float64"
    median: float = 0.0
    upper: float = 0.0
    largest: float = 0.0

    @classmethod
    def measured(cls, grid: Grid, largest_moves: Floats) -> NoiseProfile:
        """Summarise the largest move of each position."""
        if largest_moves.size == 0:
            return cls(grid=grid)
        finite = np.where(np.isfinite(largest_moves), largest_moves, ROUNDING)
        return cls(
            grid=grid,
            median=float(np.median(finite)),
            upper=float(np.quantile(finite, 0.9)),
            largest=float(np.max(finite)),
        )

    @property
    def exact(self) -> bool:
        """Whether most positions do not move at all."""
        return self.median <= 1e-12

    def material(self) -> float:
        """Return the move in nats below which no test is made: it cannot be told from arithmetic."""
        return EXACT if self.exact and self.grid == "float64" else FLOAT32

    def innocent(self) -> NoiseProfile:
        """Return the profile once the moves are taken for noise: the largest of them then tells its size."""
        return replace(self, upper=min(self.largest, BFLOAT16) / 4)


def one_sided_gain(gains: Floats) -> tuple[float, float]:
    """Return the mean of ``gains`` and the p-value of a t-test that their mean is above zero.

    Each gain must stem from its own span, so that what tokens of a span have in common counts once.
    """
    finite = gains[np.isfinite(gains)]
    if finite.size < 3:
        return (float(np.mean(finite)) if finite.size else 0.0), 1.0
    mean, spread = float(np.mean(finite)), float(np.std(finite, ddof=1))
    if spread == 0.0:
        return mean, 0.0 if mean > 0 else 1.0
    statistic = mean / (spread / np.sqrt(finite.size))
    return mean, float(stats.t.sf(statistic, finite.size - 1))


def two_groups(first: Floats, second: Floats) -> tuple[float, float]:
    """Return the difference of the means and the two-sided p-value of Welch's t-test."""
    gap = float(np.mean(second) - np.mean(first))
    parts = np.array([np.var(first, ddof=1) / len(first), np.var(second, ddof=1) / len(second)])
    spread = float(np.sqrt(parts.sum()))
    if spread <= SAME * (1.0 + abs(float(np.mean(first)))):
        return gap, 0.0 if abs(gap) > EXACT else 1.0
    freedom = parts.sum() ** 2 / float(np.sum(parts**2 / np.array([len(first) - 1, len(second) - 1])))
    return gap, float(2.0 * stats.t.sf(abs(gap) / spread, freedom))
