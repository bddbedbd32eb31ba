"""Where a forecaster states whole distributions: rows sum to 1, agree with the scores, and do not see the answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from evalkit.legality.driver import walk
from evalkit.legality.evalue import symmetric_bets
from evalkit.legality.hosts import Fault, Floats, Host, Ids
from evalkit.legality.noise import FLOAT32, HALF, P_SYSTEMATIC, Grid, NoiseProfile, difference, lies_on, step
from evalkit.legality.outcome import Notes, Outcome
from evalkit.legality.subject import Repeatability, Subject
from evalkit.legality.suffix import replacement

AUDIT = "distribution"

LARGEST_ROWS = 1 << 23
"""Numbers in the rows of one call, 64 MB: of a longer span only its first positions are compared."""


TYPICAL = np.array([4.0])
"""Nats at which two grids are compared."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How the scores of one span lie to its rows.

    Attributes:
        start: First position.
        scores: By position, nats.
        stated: What the rows say, nats.
        excess: What the rows sum to, less 1.
        slack: What rounding may add to these sums, by the grid that the rows might lie on.
    """

    start: int
    scores: Floats
    stated: Floats
    excess: Floats
    slack: dict[Grid, Floats]


class Rows:
    """Compares scores with the rows that are stated for them, and keeps the largest differences.

    Rows may be shown in half precision beside finer scores: the tolerance follows the coarser of the two. On which grid
    they lie is known once all have been seen. ``allowed`` are the nats (and total probability) by which two ways to ask
    for one thing may differ, the rounding of rows left aside.
    """

    def __init__(self, subject: Subject, allowed: float) -> None:
        self.notes = Notes(AUDIT)
        self.allowed = allowed
        self.better: list[float] = []  # nats by which the ledger's scores are better than their rows, by position
        self.weights = np.zeros(subject.vocab_size)  # sum of the rows of the real stream
        self._size = subject.options.size
        self._grids = list(HALF)  # those on which every row lies so far
        self._compared: list[Compared] = []
        # of two continuations: first position, and what each row changed by, twice the total variation
        self._changed: list[tuple[int, Floats, dict[Grid, Floats]]] = []

    def compare(self, start: int, tokens: Ids, scores: Floats, rows: Floats) -> None:
        """Note the scores of one span beside its rows."""
        excess = np.exp(np.logaddexp.reduce(rows, axis=1)) - 1.0
        self._compared.append(
            Compared(
                start=start,
                scores=scores,
                stated=-rows[np.arange(len(tokens)), tokens],
                excess=np.where(np.isnan(excess), np.inf, excess),
                slack=self._slack(rows),
            )
        )

    def compare_continuations(self, start: int, rows: Floats) -> None:
        """Note how the rows of one span differ before two different continuations, ``[2, length, vocab_size]``."""
        changed = np.abs(np.exp(rows[0]) - np.exp(rows[1])).sum(axis=1)
        self._changed.append((start, changed, self._slack(rows[0])))

    def _slack(self, rows: Floats) -> dict[Grid, Floats]:
        """Return by how much rounding to half precision may raise the sum of each row; narrow down the grids."""
        finite = -rows[np.isfinite(rows)]
        self._grids = [grid for grid in self._grids if lies_on(grid, finite)]
        p = np.exp(np.minimum(rows, 0.0))
        return {grid: np.sum(p * np.expm1(step(-rows, grid)), axis=1) for grid in self._grids}

    def _find(self, grid: Grid | None) -> tuple[float, float, float]:
        """Note findings; return the largest excess of a sum, gap of a score and change of a row beyond rounding."""
        most_excess = most_gap = most_change = 0.0

        def worst_of(sizes: Floats, slack: Floats | None) -> tuple[int, float, float]:
            """Return where a size exceeds its rounding most, what is allowed there, and by how much it exceeds."""
            slack = np.zeros(len(sizes)) if slack is None else slack
            worst = int(np.argmax(sizes - slack))
            return worst, self.allowed + float(slack[worst]), float(sizes[worst] - slack[worst])

        for seen in self._compared:
            apart = np.abs(difference(seen.scores, seen.stated))
            apart = np.where(np.isfinite(apart), apart, np.inf)
            worst, allowed, beyond = worst_of(apart, 2 * step(seen.stated, grid) if grid else None)
            most_gap = max(most_gap, beyond)
            if apart[worst] > allowed:
                score, stated = float(seen.scores[worst]), float(seen.stated[worst])
                self.notes.find(
                    "normalisation",
                    seen.start + worst,
                    {**self._size(stated - score), "stated": stated, "tolerance": allowed},
                    f"The score is {score:.6g} nats, its own distribution says {stated:.6g}.",
                )
            worst, allowed, beyond = worst_of(seen.excess, seen.slack[grid] if grid else None)
            most_excess = max(most_excess, beyond)
            excess = float(seen.excess[worst])
            if excess > allowed:
                self.notes.find(
                    "normalisation",
                    seen.start + worst,
                    {"sum": excess + 1.0, "tolerance": allowed, **self._size(float(np.log1p(excess)))},
                    f"The row of the distribution sums to {excess + 1.0:.6g}.",
                )
        for start, changed, slacks in self._changed:
            worst, allowed, beyond = worst_of(changed, slacks[grid] if grid else None)
            most_change = max(most_change, beyond)
            if changed[worst] > allowed:
                self.notes.find(
                    "causality",
                    start + worst,
                    {"total_variation": float(changed[worst]) / 2, "tolerance": allowed, **self._size(0.0)},
                    f"The row of this position changes with the tokens from {start + len(changed) - 1} on, which it "
                    "must not see.",
                )
        return most_excess, most_gap, most_change

    def conclude(self, noise: NoiseProfile) -> Outcome:
        """Find what breaks an axiom, and what every single comparison is too noisy for.

        The latter are scores that are better than their rows throughout.
        """
        better = np.array(self.better)
        grid = self._grids[0] if self._grids and self._compared else None
        excess, gap, change = self._find(grid)
        self.notes.cover(
            positions=len(better),
            largest_excess=excess,
            largest_gap_nats=gap,
            largest_shift=change,
            tolerance=self.allowed,
            grid_of_rows=grid or "finer",
        )
        if grid:
            noise = replace(noise, grid=max(grid, noise.grid, key=lambda each: float(step(TYPICAL, each)[0])))
        if gap <= self.allowed and np.isfinite(better).all():
            bias = noise.bias(self.weights / max(float(np.sum(self.weights)), 1e-300))
            evidence = symmetric_bets(better - bias)
            self.notes.cover(mean_p_value=evidence.p_value, mean_tolerance=bias)
            if evidence.p_value < P_SYSTEMATIC:
                mean = float(np.mean(better))
                self.notes.find(
                    "normalisation",
                    int(np.argmax(better)) + 1,
                    {"p_value": evidence.p_value, "tolerance": bias, **self._size(mean)},
                    f"The scores are better than their own distributions by {mean:.4g} nats on average over "
                    f"{len(better)} positions, more than noise explains.",
                )
        return self.notes.outcome()


def audit(
    subject: Subject,
    host: Host,
    known: Repeatability,
    noise: NoiseProfile,
    seconds: float,
    rng: np.random.Generator,
) -> Outcome:
    """Compare ``distribution`` with the ledger at every position that the time allows.

    In each span: rows sum to at most 1; ``-row[token]`` is the score, on the real tokens (the ledger's score, not what
    is answered now) and on others; and a row stays what it is when its own token and all later ones are others.
    """
    deadline = time.monotonic() + seconds
    coarse = float(np.max(step(subject.base.nats, noise.grid)))
    seen = Rows(subject, FLOAT32 + 2 * coarse + 20.0 * max(noise.upper, noise.call, known.drift))
    isolated = not known.in_place
    planned = len(subject.base.nats)
    most = max(LARGEST_ROWS // subject.vocab_size, 1)
    try:
        for start, stop in walk(host, subject.tokens, subject.options.span):
            if time.monotonic() > deadline:
                break
            real = subject.tokens[start : min(stop, start + most)]
            planned -= stop - start - len(real)
            offset = int(rng.integers(0, len(real)))
            other = real.copy()
            other[offset:] = replacement(subject, real[offset:], rng)
            pair = np.stack([real, other])
            scores = host.score(pair, isolated=isolated)
            scores[0] = subject.base.nats[start - 1 : start - 1 + len(real)]
            rows = host.distribution(pair, isolated=isolated)
            for tokens, own_scores, own_rows in zip(pair, scores, rows, strict=True):
                seen.compare(start, tokens, own_scores, own_rows)
            seen.compare_continuations(start, rows[:, : offset + 1])
            seen.better.extend((-rows[0, np.arange(len(real)), real] - scores[0]).tolist())
            seen.weights += np.exp(np.minimum(rows[0], 0.0)).sum(axis=0)
    except Fault as fault:
        seen.notes.failed(fault, real=False)
    seen.notes.cut(len(seen.better), planned)
    return seen.conclude(noise)
