"""Which lines of which logs a stated score rests on."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from evalkit.verify.statements import Folder, Number, Run, Score

MEAN_TOLERANCE = 1e-5
"""Means off by 2e-6 to 7e-6 are common and mean nothing (rounded seeds, sums in float32)."""


@dataclass(frozen=True)
class Support:
    """Where a stated score comes from.

    Attributes:
        relation: ``single``, ``mean``, ``subset`` (a mean of some logs), ``progress`` (only printed while training or
            evaluating), ``elsewhere`` (another table of the folder), ``none`` (logs say otherwise), ``no logs``.
        scores: the lines, with their runs.
        value: what they amount to.
    """

    relation: str
    scores: tuple[tuple[Run, Score], ...] = ()
    value: float | None = None


def tolerance(stated: Number) -> float:
    """Return how far a stated score may be from one that it repeats: rounding, or cutting where few digits are printed."""
    return 1.01 * stated.unit if stated.decimals <= 5 else max(0.51 * stated.unit, 5.1e-9)


def same(stated: Number, other: Number) -> bool:
    """Whether two printed scores agree at the shorter precision."""
    return abs(stated.value - other.value) <= max(tolerance(stated), 0.51 * other.unit)


def find_support(folder: Folder, stated: Number | None) -> Support:
    """Return what a stated score rests on, the plainest explanation first."""
    finals = [(run, score) for run in folder.runs for score in run.finals]
    if stated is None or not folder.runs:
        return Support("no logs")
    singles = [(run, score) for run, score in finals if same(stated, score.bpb) and score.bpb.decimals >= min(4, stated.decimals)]
    groups = _by_label(finals)
    means = sorted(
        (m for scores in groups.values() if (m := _mean(stated, scores))),
        key=lambda m: (m.relation == "subset", -len(m.scores)),
    )
    if means and means[0].relation == "mean" and not (singles and stated.decimals >= 6):
        return means[0]
    if singles:
        return Support("single", tuple(_sharpest(singles)), singles[-1][1].bpb.value)
    if means:
        return means[0]
    shown = [(run, s) for run in folder.runs for s in run.scores if s.kind != "final" and same(stated, s.bpb)]
    if shown:
        return Support("progress", tuple(shown[-1:]), shown[-1][1].bpb.value)
    return Support("none", tuple(_last(finals)), None)


def _by_label(finals: list[tuple[Run, Score]]) -> dict[str, list[tuple[Run, Score]]]:
    """Return the most precise line of every label in every run."""
    groups: dict[str, dict[int, tuple[Run, Score]]] = {}
    for run, score in finals:
        group = groups.setdefault(score.label, {})
        old = group.get(id(run))
        if old is None or score.bpb.decimals >= old[1].bpb.decimals:
            group[id(run)] = (run, score)
    return {label: list(group.values()) for label, group in groups.items()}


def _mean(stated: Number, scores: list[tuple[Run, Score]]) -> Support | None:
    values = [s.bpb.value for _, s in scores]
    if len(values) < 2:
        return None
    if _is_mean(stated, values, MEAN_TOLERANCE):
        return Support("mean", tuple(scores), math.fsum(values) / len(values))
    # The last run of every file: a file that is appended to keeps older ones.
    last = list({run.file: (run, s) for run, s in scores}.values())
    if 2 <= len(last) < len(scores) and _is_mean(stated, [s.bpb.value for _, s in last], MEAN_TOLERANCE):
        return Support("mean", tuple(last), math.fsum(s.bpb.value for _, s in last) / len(last))
    if len(values) <= 12:
        for size in range(len(values) - 1, 1, -1):
            for chosen in itertools.combinations(scores, size):
                if _is_mean(stated, [s.bpb.value for _, s in chosen], 0.0):
                    return Support("subset", chosen, math.fsum(s.bpb.value for _, s in chosen) / size)
    return None


def _is_mean(stated: Number, values: list[float], slack: float) -> bool:
    allowed = max(slack, 0.51 * stated.unit, 1e-8)
    means = [math.fsum(values) / len(values), math.fsum(round(v, stated.decimals) for v in values) / len(values)]
    return any(abs(stated.value - m) <= max(allowed, tolerance(stated) if slack else 0.0) for m in means)


def _sharpest(scores: list[tuple[Run, Score]]) -> list[tuple[Run, Score]]:
    """Return, of lines that repeat one score, the most precise with a loss; one a run."""
    best: dict[int, tuple[Run, Score]] = {}
    for run, score in scores:
        old = best.get(id(run))
        if old is None or (score.loss is not None, score.bpb.decimals) >= (old[1].loss is not None, old[1].bpb.decimals):
            best[id(run)] = (run, score)
    return list(best.values())


def _last(finals: list[tuple[Run, Score]]) -> list[tuple[Run, Score]]:
    """Return the last score of every run."""
    return list({id(run): (run, score) for run, score in finals}.values())


def claimed_runs(folder: Folder, support: Support) -> list[Run]:
    """Return the runs that the claim is about: those of the score, and of the per-seed scores; else all."""
    chosen = {id(run): run for run, _ in support.scores} if support.relation not in ("none", "progress") else {}
    for result in folder.declared.results:
        if result.bpb is None:
            continue
        for run in folder.runs:
            if any(same(result.bpb, s.bpb) for s in run.finals) and seed_of(run) in (None, result.seed):
                chosen[id(run)] = run
    return list(chosen.values()) or list(folder.runs)


def seed_of(run: Run) -> str | None:
    """Return the seed that a run printed."""
    return None if run.seed is None else str(int(run.seed.value))
