"""Which lines of which logs a stated score rests on."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evalkit.verify.statements import Folder, Number, Place, Run, Score

MEAN_TOLERANCE = 1e-5
"""Means off by 2e-6 to 7e-6 are common and mean nothing (rounded seeds, sums in float32)."""


@dataclass(frozen=True)
class Support:
    """Where a stated score comes from.

    Attributes:
        relation: ``single``, ``mean``, ``subset`` (a mean of some logs), ``progress`` (only printed while training or
            evaluating), ``missing`` (the mean of stated seeds, some without a log), ``elsewhere`` (a table of
            results), ``none`` (logs say otherwise), ``no logs``.
        scores: the lines, with their runs.
        value: what they amount to.
        place: the line of a table where the score stands instead of a log.
    """

    relation: str
    scores: tuple[tuple[Run, Score], ...] = ()
    value: float | None = None
    place: Place | None = None


def tolerance(stated: Number) -> float:
    """Return how far a stated score may be from one that it repeats: rounded, or cut where few digits are printed."""
    return 1.01 * stated.unit if stated.decimals <= 5 else max(0.51 * stated.unit, 5.1e-9)


def same(stated: Number, other: Number) -> bool:
    """Whether two printed scores agree at the shorter precision."""
    return abs(stated.value - other.value) <= max(tolerance(stated), 0.51 * other.unit)


def find_support(folder: Folder, stated: Number | None) -> Support:
    """Return what a stated score rests on, the plainest explanation first."""
    finals = [(run, score) for run in folder.runs for score in run.finals]
    if stated is None or not folder.runs:
        return Support("no logs")
    singles = [
        (run, score)
        for run, score in finals
        if same(stated, score.bpb)
        and score.bpb.decimals >= min(4, stated.decimals)
        and not _is_rounded_twin(run, score)
    ]
    groups = _by_label(finals)
    means = sorted(
        (m for scores in groups.values() if (m := _mean(stated, scores))),
        key=lambda m: (m.relation == "subset", -len(m.scores)),
    )
    if means and means[0].relation == "mean" and not (singles and stated.decimals >= 6):
        return means[0]
    if rows := _stated_rows(folder, stated):
        return rows
    if singles:
        # Of lines that repeat one score the most precise, with a loss.
        sharpest = _one_a_run(singles, lambda score: (score.loss is not None, score.bpb.decimals))
        return Support("single", tuple(sharpest), singles[-1][1].bpb.value)
    if means:
        return means[0]
    if _is_missing_seed(folder, stated):
        return Support("missing", tuple(_row_lines(folder)))
    if place := _in_table(folder, stated):
        return Support("elsewhere", (), stated.value, place)
    shown = [(run, s) for run in folder.runs for s in run.scores if s.kind != "final" and same(stated, s.bpb)]
    if shown:
        return Support("progress", tuple(shown[-1:]), shown[-1][1].bpb.value)
    return Support("none", tuple(_one_a_run(finals, lambda score: 0)))


def _stated_rows(folder: Folder, stated: Number) -> Support | None:
    """Return the logs' lines of the stated seeds where the headline is the mean of what is stated for them."""
    chosen = _row_lines(folder)
    values = [r.bpb.value for r in folder.declared.results if r.bpb]
    if len(values) < 2 or len(chosen) < len(values) or not _is_mean(stated, values, MEAN_TOLERANCE):
        return None
    return Support("mean", tuple(chosen), math.fsum(s.bpb.value for _, s in chosen) / len(chosen))


def _row_lines(folder: Folder) -> list[tuple[Run, Score]]:
    """Return the final line of every stated seed whose log has its score."""
    chosen: list[tuple[Run, Score]] = []
    for result in folder.declared.results:
        lines = [
            (run, s)
            for run in folder.runs
            if result.bpb and seed_of(run) in (None, result.seed)
            for s in run.finals
            if same(result.bpb, s.bpb) and not _is_rounded_twin(run, s)
        ]
        chosen += lines[-1:]
    return chosen


def _is_missing_seed(folder: Folder, stated: Number) -> bool:
    """Whether the headline is the mean of stated seeds, some have no log, and every log agrees with its seed."""
    rows = [r for r in folder.declared.results if r.bpb]
    logged = {seed_of(run) for run in folder.runs if run.finals}
    without = [r for r in rows if r.seed not in logged]
    return (
        len(rows) > 1
        and None not in logged
        and 0 < len(without) < len(rows)
        and len(_row_lines(folder)) == len(rows) - len(without)
        and _is_mean(stated, [r.bpb.value for r in rows if r.bpb], MEAN_TOLERANCE)
    )


_DECIMAL = re.compile(r"(?<![\d.])\d\.\d{4,}(?!\d)")


def _in_table(folder: Folder, stated: Number) -> Place | None:
    """Return where a table holds the score: a row of a CSV or TSV file, or more digits of it in a JSON file."""
    for text in folder.tables:
        rows = text.file.lower().endswith((".csv", ".tsv"))
        for index, line in enumerate(text.lines[:20_000]):
            for token in _DECIMAL.findall(line):
                decimals = len(token.partition(".")[2])
                if ((rows and decimals >= stated.decimals) or decimals > stated.decimals + 3) and same(
                    stated, Number(float(token), decimals, stated.place)
                ):
                    return text.place(index)
    return None


def _is_rounded_twin(run: Run, score: Score) -> bool:
    """Whether the run prints the same score with more digits: that line is then the one to compare with."""
    return any(
        other.label == score.label
        and other.bpb.decimals > score.bpb.decimals
        and abs(other.bpb.value - score.bpb.value) <= 0.51 * score.bpb.unit
        for other in run.finals
    )


def _by_label(finals: list[tuple[Run, Score]]) -> dict[str, list[tuple[Run, Score]]]:
    """Return the most precise line of every label in every run."""
    groups: dict[str, list[tuple[Run, Score]]] = {}
    for run, score in finals:
        groups.setdefault(score.label, []).append((run, score))
    return {label: _one_a_run(group, lambda score: score.bpb.decimals) for label, group in groups.items()}


def _mean(stated: Number, scores: list[tuple[Run, Score]]) -> Support | None:
    values = [s.bpb.value for _, s in scores]
    if len(values) < 2:
        return None
    # All logs; else those of one folder; else the last run of every file: one that is appended to keeps older runs.
    folders: dict[str, list[tuple[Run, Score]]] = {}
    for run, score in scores:
        folders.setdefault(run.file.rpartition("/")[0], []).append((run, score))
    for group in (scores, *folders.values(), list({run.file: (run, s) for run, s in scores}.values())):
        if len(group) >= 2 and _is_mean(stated, [s.bpb.value for _, s in group], MEAN_TOLERANCE):
            return Support("mean", tuple(group), math.fsum(s.bpb.value for _, s in group) / len(group))
    return _mean_of_some(stated, scores) if len(values) <= 12 else None


def _mean_of_some(stated: Number, scores: list[tuple[Run, Score]]) -> Support | None:
    """Return the largest set of logs of different seeds whose mean is the stated score, best of like code."""
    for size in range(len(scores) - 1, 1, -1):
        fitting = []
        for chosen in itertools.combinations(scores, size):
            seeds = [seed_of(run) for run, _ in chosen if run.seed]
            if (len(set(seeds)) == len(seeds) or stated.decimals >= 7) and _is_mean(
                stated, [s.bpb.value for _, s in chosen], 0.0
            ):
                versions = {code.value for run, _ in chosen for kind, code in run.codes if kind == "raw"}
                mean = math.fsum(s.bpb.value for _, s in chosen) / size
                folders = {run.file.rpartition("/")[0] for run, _ in chosen}
                fitting.append((len(folders), len(versions), abs(mean - stated.value), chosen, mean))
        if fitting:
            *_, best, mean = min(fitting, key=lambda f: f[:3])
            return Support("subset", best, mean)
    return None


def _is_mean(stated: Number, values: list[float], slack: float) -> bool:
    allowed = max(slack, 0.51 * stated.unit, 1e-8)
    means = [math.fsum(values) / len(values), math.fsum(round(v, stated.decimals) for v in values) / len(values)]
    return any(abs(stated.value - m) <= max(allowed, tolerance(stated) if slack else 0.0) for m in means)


def _one_a_run(scores: list[tuple[Run, Score]], worth: Callable[[Score], Any]) -> list[tuple[Run, Score]]:
    """Return the line of every run that is worth most; of equals the last."""
    best: dict[int, tuple[Run, Score]] = {}
    for run, score in scores:
        if id(run) not in best or worth(score) >= worth(best[id(run)][1]):
            best[id(run)] = (run, score)
    return list(best.values())


def claimed_runs(folder: Folder, support: Support) -> list[Run]:
    """Return the runs that the claim is about: those of the score and of the per-seed scores."""
    chosen = {id(run): run for run, _ in support.scores} if support.relation not in ("none", "progress") else {}
    for result in folder.declared.results:
        if result.bpb is None:
            continue
        for run in folder.runs:
            if any(same(result.bpb, s.bpb) for s in run.finals) and seed_of(run) in (None, result.seed):
                chosen[id(run)] = run
    return list(chosen.values())


_NAMED = re.compile(r"seed[_-]?(\d+)|(?<![a-z0-9])s(\d{2,5})(?![0-9a-z])", re.I)


def named_seed(file: str) -> str | None:
    """Return the seed in a log's name, where there is exactly one."""
    found = [a or b for a, b in _NAMED.findall(file.rpartition("/")[2])]
    return str(int(found[0])) if len(found) == 1 else None


def seed_of(run: Run) -> str | None:
    """Return the seed that a run printed, else the one in the name of its log."""
    return named_seed(run.file) if run.seed is None else str(int(run.seed.value))
