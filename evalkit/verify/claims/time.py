"""Time: ten minutes of training with one step of grace, and ten minutes for an evaluation."""

from __future__ import annotations

from evalkit.verify.claim import CONTRADICTED, HOLDS, NOT_STATED, Claim, nearest_to_limit, places, within_one_run
from evalkit.verify.statements import Folder, Run
from evalkit.verify.support import Support

LIMIT_SECONDS = 600.0
LEAST_GRACE_SECONDS = 1.0
"""The clock is read once a step; steps are 0.05 to 0.2 s, and saving a checkpoint or a validation may fall between."""


def check_time(folder: Folder, support: Support, runs: list[Run]) -> list[Claim]:
    """Return whether the claimed runs kept to the limits; outside the ten-minute track nothing is asked."""
    if folder.ten_minutes is not True:
        return [Claim("time", NOT_STATED, "the folder is not in the ten-minute track, so no limit applies")]
    claims = []
    for check in (_training, lambda run: _evaluation(run, support)):
        claims += within_one_run([c for run in runs or folder.runs if (c := check(run))], runs)
    return nearest_to_limit(claims) or [
        Claim("time", NOT_STATED, "no claimed log prints its training or evaluation time")
    ]


def _training(run: Run) -> Claim | None:
    if not run.train_ms:
        return None
    longest = max(run.train_ms, key=lambda n: n.value)
    seconds = longest.value / 1000
    grace = max(LEAST_GRACE_SECONDS, (run.step_ms or 0) / 1000, 6.0 if longest.decimals < 0 else 0.0)
    if seconds <= LIMIT_SECONDS + grace:
        return Claim("time", HOLDS, f"training took {seconds:.1f} s", LIMIT_SECONDS, seconds, places(longest))
    said = f"{run.file}: training took {seconds:,.1f} s, over {LIMIT_SECONDS:.0f} s by more than a step"
    return Claim("time", CONTRADICTED, said, LIMIT_SECONDS, seconds, places(longest))


def _evaluation(run: Run, support: Support) -> Claim | None:
    timed = [s for s in run.finals if s.eval_seconds is not None]
    if not timed:
        return None
    labels = {s.label for r, s in support.scores if r is run}
    claimed = [s for s in timed if s.label in labels] or timed
    longest = max(claimed, key=lambda s: s.eval_seconds or 0)
    seconds = longest.eval_seconds or 0.0
    if seconds <= LIMIT_SECONDS:
        return Claim("time", HOLDS, f"evaluation took {seconds:.1f} s", LIMIT_SECONDS, seconds, places(longest.bpb))
    said = f"{run.file}: the evaluation {longest.label} took {seconds:,.1f} s, over {LIMIT_SECONDS:.0f} s"
    return Claim("time", CONTRADICTED, said, LIMIT_SECONDS, seconds, places(longest.bpb))
