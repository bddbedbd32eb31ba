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
from scipy import special

from evalkit.legality.hosts import Floats

Grid = Literal["float64", "float32", "bfloat16", "float16", "bfloat16 probabilities", "float16 probabilities"]
"""Float type of the scores, or, where it is coarser, of the probabilities that they were computed from."""

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

Z_SYSTEMATIC = 6.0
"""Deviations of a normal variable that are exceeded with probability P_SYSTEMATIC."""

HALF: tuple[Grid, ...] = ("bfloat16", "float16", "bfloat16 probabilities", "float16 probabilities")
"""The grids of half precision, in the order in which they are looked for."""

_BITS: dict[str, int] = {"float64": 52, "float32": 23, "bfloat16": 7, "float16": 10}


def grid_of(nats: Floats) -> Grid:
    """Return the coarsest float type that holds every one of ``nats``, or every probability ``exp(-nats)``."""
    finite = nats[np.isfinite(nats)]
    if finite.size == 0:
        return "float64"
    for grid in HALF:
        if lies_on(grid, finite):
            return grid
    return "float32" if np.array_equal(finite.astype(np.float32), finite) else "float64"


def lies_on(grid: Grid, nats: Floats) -> bool:
    """Return whether every one of the finite ``nats``, or every probability ``exp(-nats)``, is a number of a grid."""
    name, _, of_probabilities = grid.partition(" ")
    if not of_probabilities:
        return _holds(name, nats)
    with np.errstate(over="ignore"):
        # the logarithm was rounded to float32 at best: 1e-6 nats for scores below 16
        return _holds(name, np.exp(-nats), EXACT)


def _holds(grid: str, values: Floats, relative: float = 0.0) -> bool:
    """Return whether rounding to ``grid`` leaves ``values`` what they are, to a relative difference."""
    with np.errstate(over="ignore"):
        if grid == "float16":
            near = values.astype(np.float16).astype(np.float64)
        else:  # the upper half of a float32, rounded to nearest
            bits = values.astype(np.float32).view(np.uint32) + np.uint32(0x8000)
            near = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    return bool(np.all(np.abs(near - values) <= relative * np.abs(values)))


def step(nats: Floats, grid: Grid) -> Floats:
    """Return the distance in nats between neighbours on ``grid`` around each of ``nats``."""
    name, _, of_probabilities = grid.partition(" ")
    values = np.where(np.isfinite(nats), nats, 1.0)
    if of_probabilities:
        values = np.exp(-values)
    size = np.maximum(np.abs(values), 2.0**-14)
    distance = 2.0 ** (np.floor(np.log2(size)) - _BITS[name])
    return np.asarray(np.log1p(distance / np.maximum(values, 1e-300)) if of_probabilities else distance)


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
        call: Root mean square of how far two equal calls lie apart.
        content: The same for two calls whose later tokens differ, beyond what equal calls do.
    """

    grid: Grid = "float64"
    median: float = 0.0
    upper: float = 0.0
    largest: float = 0.0
    call: float = 0.0
    content: float = 0.0

    @classmethod
    def measured(cls, grid: Grid, largest_moves: Floats, *, call: float = 0.0, rms: float = 0.0) -> NoiseProfile:
        """Summarise the largest move of each position, and the root mean square ``rms`` of all moves."""
        content = float(np.sqrt(max(rms**2 - call**2, 0.0)))
        if largest_moves.size == 0:
            return cls(grid=grid, call=call, content=content)
        finite = np.where(np.isfinite(largest_moves), largest_moves, ROUNDING)
        return cls(
            grid=grid,
            median=float(np.median(finite)),
            upper=float(np.quantile(finite, 0.9)),
            largest=float(np.max(finite)),
            call=call,
            content=content,
        )

    @property
    def exact(self) -> bool:
        """Whether most positions do not move at all."""
        return self.median <= 1e-12

    def material(self) -> float:
        """Return the move in nats below which no test is made: it cannot be told from arithmetic."""
        return EXACT if self.exact and self.grid == "float64" else FLOAT32

    def bias(self, weights: Floats, distinct: Floats | float = 1.0) -> float:
        """Return how far above 0 the mean of many log sums may lie, although every score's noise is symmetric.

        Noise of a call's content may depend on a token alone and is then the same at every position: it averages over
        tokens only, which ``weights`` (their mean probabilities) tell; Z_SYSTEMATIC deviations of that mean are
        allowed. Rounding repeats itself where a score does: a token with many ``distinct`` scores averages over them.
        Noise of equal calls averages out. A mean of ``exp(-noise)`` lies half its variance above 1.
        """
        variance = (self.call**2 + self.content**2) / 2
        # of the score and of what it came from
        rounding = step(-np.log(np.maximum(weights, 1e-300)), self.grid) ** 2 / 6 / distinct
        token = float(np.sqrt(np.sum(weights**2 * (self.content**2 / 2 + rounding))))
        return 3 * FLOAT32 + variance / 2 + Z_SYSTEMATIC * token

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
    return mean, float(special.stdtr(finite.size - 1, -statistic))


def two_groups(first: Floats, second: Floats) -> tuple[float, float]:
    """Return the difference of the means and the two-sided p-value of Welch's t-test."""
    gap = float(np.mean(second) - np.mean(first))
    parts = np.array([np.var(first, ddof=1) / len(first), np.var(second, ddof=1) / len(second)])
    spread = float(np.sqrt(parts.sum()))
    if spread <= SAME * (1.0 + abs(float(np.mean(first)))):
        return gap, 0.0 if abs(gap) > EXACT else 1.0
    freedom = parts.sum() ** 2 / float(np.sum(parts**2 / np.array([len(first) - 1, len(second) - 1])))
    return gap, float(2.0 * special.stdtr(freedom, -abs(gap) / spread))
