"""Score: is the headline a log's final line, or the mean of such lines, to the printed digits."""

from __future__ import annotations

from evalkit.verify.claim import CONTRADICTED, HOLDS, NOT_STATED, Claim, places
from evalkit.verify.statements import Folder, Number, Place, Run, SeedResult
from evalkit.verify.support import MEAN_TOLERANCE, Support, same, seed_of


def check_score(folder: Folder, support: Support) -> list[Claim]:
    """Return the claim of the headline and one for every seed whose log says otherwise."""
    headline = folder.declared.headline
    if headline is None and support.relation in ("single", "mean"):
        headline = folder.declared.loss  # some files put bits per byte there
    if headline is None:
        where = f"{folder.declared.file} states no score" if folder.declared.file else "there is no submission.json"
        return [Claim("score", NOT_STATED, where)]
    lines = places(headline, *(s.bpb for _, s in support.scores[:6]))
    claims = [_headline(folder, support, headline, lines)]
    if claims[0].status != NOT_STATED:
        claims += [c for result in folder.declared.results if (c := _seed(folder, result))]
    return claims


def _headline(folder: Folder, support: Support, headline: Number, lines: tuple[Place, ...]) -> Claim:
    stated, first = headline.value, support.scores[0][1] if support.scores else None

    def claim(status: str, said: str, found: float | str | None = None) -> Claim:
        return Claim("score", status, said, stated, found, lines)

    if support.relation == "single" and first:
        return claim(HOLDS, f"{stated} is the final score {first.label} of a log", support.value)
    if support.relation in ("mean", "subset") and first:
        assert support.value is not None
        which = "the" if support.relation == "mean" else "some of the"
        off = abs(stated - support.value)
        note = f" (off by {off:.1e})" if off > 1.1 * max(headline.unit, 1e-8) else ""
        said = f"{stated} is the mean of {first.label} over {which} {len(support.scores)} logs{note}"
        return claim(HOLDS, said, support.value)
    if support.relation == "missing":
        return claim(NOT_STATED, f"{stated} is the mean of the stated seeds; not each of them has a log")
    if support.relation == "elsewhere":
        assert support.place is not None
        lines = (*lines[:1], support.place)
        return claim(NOT_STATED, f"{stated} stands in {support.place.file}; no log prints it", support.value)
    if support.relation == "no logs" or not any(run.scores for run in folder.runs):
        lines = lines[:1]
        return claim(NOT_STATED, f"no log prints a score to compare {stated} with")
    if support.relation == "progress" and first:
        if not any(r.finals or any(codec for codec, _ in (*r.models, *r.totals)) for r in folder.runs):
            said = f"{stated} stands on a line of training; the log evaluates nothing that ships"
            return claim(NOT_STATED, said, support.value)
        words = {"step": "a training step", "progress": "a line of progress"}
        where = words.get(first.kind, "a diagnostic of weights that do not ship")
        return claim(CONTRADICTED, f"{stated} stands only on {where}, not on a final score", support.value)
    if not support.scores:
        return claim(CONTRADICTED, f"{stated} stands in no log, and no log prints a final score")
    finals = ", ".join(f"{s.bpb.value:g}" for _, s in support.scores[:4])
    return claim(CONTRADICTED, f"{stated} is in no log and no mean of logs; they end at {finals}", finals)


def _seed(folder: Folder, result: SeedResult) -> Claim | None:
    """Return a contradiction where the log of a seed has no such final score."""
    if result.bpb is None:
        return None
    own: list[Run] = [r for r in folder.runs if seed_of(r) == result.seed and r.finals]
    if not own:
        return None
    everywhere = [s for r in folder.runs for s in r.scores if s.kind in ("final", "diagnostic")]
    if any(same(result.bpb, s.bpb) for s in everywhere):
        return None
    stated = result.bpb.value
    closest = min((s for r in own for s in r.finals), key=lambda s: abs(s.bpb.value - stated))
    if abs(closest.bpb.value - result.bpb.value) <= MEAN_TOLERANCE:
        return None
    said = f"seed {result.seed} is stated as {result.bpb.value:g}; its log says {closest.bpb.value:g}"
    return Claim("score", CONTRADICTED, said, result.bpb.value, closest.bpb.value, places(result.bpb, closest.bpb))
