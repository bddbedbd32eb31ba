"""Compare scores: several seeds against a baseline. Two runs token by token: :mod:`evalkit.report.paired`.

Welch's t-test (unequal variances). The challenge at first asked a record to show at p < 0.01 that it is at least
0.005 nats per token lower than the one before; that is the one-sided test of ``mean(baseline) - mean(new) > 0.005``.
Later it went by time: a run must be lower than the frontier, the best run before it, at one-sided p < 0.25.
The tests are about independent runs, so copies of one run count once, and a side without spread enters no test.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.constants import RECORD_NATS
from evalkit.plumbing.errors import InputError
from evalkit.report.load import SavedReport, require_same_tokens
from evalkit.report.paired import PairedDifference

RECORD_P = 0.01
"""At this one-sided p, by the challenge's first rule, a new record is lower by RECORD_NATS."""

FRONTIER_P = 0.25
"""Its later rule: lower than the frontier at that time, at this one-sided p."""

NO_SPREAD = 1e-9
"""Runs whose values agree to this share of their mean have no spread that a test could use."""

SAME_LOSS = 1e-6
"""Scores of one model with one set of options that agree to this share are one run, whatever machine they are from."""

METRICS = ("val_loss", "bpb")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of two groups of runs.

    Attributes:
        metric: ``val_loss`` (nats per token) or ``bpb`` (bits per byte).
        values: of the new runs.
        baseline: of the old ones.
        mean: of the new runs.
        sd: their standard deviation (n - 1), None for one run.
        baseline_mean: of the old runs.
        baseline_sd: their standard deviation.
        difference: mean minus baseline mean; below 0 is better.
        t: Welch's statistic for a difference of 0; None where a side has fewer than two runs or no spread.
        degrees: degrees of freedom (Welch-Satterthwaite).
        p_lower: one-sided p-value that the new runs are lower.
        p_two_sided: p-value that the runs differ either way.
        low: lower end of the 95% interval of the difference.
        high: upper end.
        margin: of the record rule, in this metric; None where the rule does not speak of it.
        p_margin: one-sided p-value that the new runs are lower by more than the margin.
    """

    metric: str
    values: tuple[float, ...]
    baseline: tuple[float, ...]
    mean: float
    sd: float | None
    baseline_mean: float
    baseline_sd: float | None
    difference: float
    t: float | None = None
    degrees: float | None = None
    p_lower: float | None = None
    p_two_sided: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None
    p_margin: float | None = None

    @property
    def is_record(self) -> bool | None:
        """Whether the first rule for records is met; None where there are too few runs to say."""
        return None if self.p_margin is None else self.p_margin < RECORD_P

    @property
    def passes_frontier(self) -> bool | None:
        """Whether the later rule is met, with the baseline as the frontier; None where there are too few runs."""
        return None if self.p_lower is None else self.p_lower < FRONTIER_P


def distinct_runs(reports: Sequence[SavedReport]) -> tuple[list[SavedReport], list[str]]:
    """Return one report of each run, and sentences about those that were left out or may be repeats.

    Two reports are of one run where their ledgers are equal, or where one model was scored with the same options to the
    same loss (on another machine, say, or in other spans).
    """
    kept: list[SavedReport] = []
    said: list[str] = []
    for saved in reports:
        same = next((other for other in kept if is_same_run(saved, other)), None)
        if same is not None:
            said.append(f"{saved.path} is the run of {same.path} again: counted once")
            continue
        repeat = next((other for other in kept if saved.report.artifact and _has_same_subject(saved, other)), None)
        if repeat is not None:
            said.append(
                f"{saved.path} and {repeat.path} scored one artifact with the same options: repeats of one run tell "
                f"less than seeds do, and the test takes them for seeds"
            )
        kept.append(saved)
    return kept, said


def mixed_contexts(reports: Sequence[SavedReport]) -> list[str]:
    """Return a sentence where reports differ in what a token may depend on: their numbers are of other estimators."""
    found = {saved.report.context: saved.path for saved in reversed(reports) if saved.report.context is not None}
    if len(found) < 2:
        return []
    listed = ", ".join(f"--context {context} ({path})" for context, path in reversed(found.items()))
    return [f"the reports are of different estimators, {listed}: their difference is not one of models alone"]


def is_same_run(one: SavedReport, other: SavedReport) -> bool:
    """Whether two reports are of one run; see :func:`distinct_runs`."""
    a, b = one.report, other.report
    close = math.isclose(a.val_loss, b.val_loss, rel_tol=SAME_LOSS)
    return a.ledger_sha256 == b.ledger_sha256 or (close and _has_same_subject(one, other))


def _has_same_subject(one: SavedReport, other: SavedReport) -> bool:
    return one.report.subject() == other.report.subject()


def compare_reports(reports: Sequence[SavedReport], baseline: Sequence[SavedReport]) -> dict[str, Comparison]:
    """Compare two groups of runs, one comparison for each metric; copies of a run count once.

    Raises:
        InputError: a group is empty, a run is in both, or the tokens differ.
    """
    if not reports or not baseline:
        raise InputError("comparing needs at least one report on each side: REPORT.json... --baseline REPORT.json...")
    require_same_tokens([*reports, *baseline])
    (reports, _), (baseline, _) = distinct_runs(reports), distinct_runs(baseline)
    for new, old in itertools.product(reports, baseline):
        if len(reports) + len(baseline) > 2 and is_same_run(new, old):
            raise InputError(f"{new.path} and {old.path} are one run; a run stands on one side alone")
    bits = reports[0].report.tokens_scored / math.log(2) / reports[0].report.bytes_scored
    margins = {"val_loss": RECORD_NATS, "bpb": RECORD_NATS * bits}
    return {
        metric: compare_values(
            [getattr(saved.report, metric) for saved in reports],
            [getattr(saved.report, metric) for saved in baseline],
            metric=metric,
            margin=margins[metric],
        )
        for metric in METRICS
    }


def compare_values(
    values: Sequence[float], baseline: Sequence[float], *, metric: str, margin: float | None = None
) -> Comparison:
    """Compare two samples by Welch's t-test; see :class:`Comparison`."""
    from scipy import stats

    a, b = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    found: dict[str, Any] = {}
    if _has_spread(a) and _has_spread(b):
        test = stats.ttest_ind(a, b, equal_var=False, alternative="less")
        two_sided = stats.ttest_ind(a, b, equal_var=False)
        interval = two_sided.confidence_interval(0.95)
        found = {"t": float(test.statistic), "degrees": float(test.df), "p_lower": float(test.pvalue)}
        found |= {"p_two_sided": float(two_sided.pvalue), "low": float(interval.low), "high": float(interval.high)}
        if margin is not None:
            found["p_margin"] = float(stats.ttest_ind(a + margin, b, equal_var=False, alternative="less").pvalue)
    return Comparison(
        metric=metric,
        values=tuple(map(float, a)),
        baseline=tuple(map(float, b)),
        mean=float(a.mean()),
        sd=float(a.std(ddof=1)) if len(a) > 1 else None,
        baseline_mean=float(b.mean()),
        baseline_sd=float(b.std(ddof=1)) if len(b) > 1 else None,
        difference=float(a.mean() - b.mean()),
        margin=margin,
        **found,
    )


def _has_spread(values: npt.NDArray[np.float64]) -> bool:
    return len(values) > 1 and float(np.ptp(values)) > NO_SPREAD * abs(float(values.mean()))


def as_dict(
    comparisons: dict[str, Comparison],
    paired: PairedDifference | None,
    repeated: Sequence[str] = (),
    cautions: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the comparison as JSON holds it.

    ``repeated`` says which reports were of one run, ``cautions`` why numbers cannot be set side by side as they are.
    """
    loss = comparisons["val_loss"]
    return {
        "format": 1,
        "rule": {"nats": RECORD_NATS, "p": RECORD_P, "met": loss.is_record},
        "later_rule": {"nats": 0.0, "p": FRONTIER_P, "met": loss.passes_frontier},
        "repeated": list(repeated),
        "cautions": list(cautions),
        "metrics": {name: asdict(c) for name, c in comparisons.items()},
        "paired": None if paired is None else asdict(paired),
    }
