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
    stated = headline.value
    n = len(support.scores)
    if support.relation == "single":
        label = support.scores[0][1].label
        return Claim("score", HOLDS, f"{stated} is the final score {label} of a log", stated, support.value, lines)
    if support.relation in ("mean", "subset"):
        assert support.value is not None
        label = support.scores[0][1].label
        which = "the" if support.relation == "mean" else "some of the"
        off = abs(stated - support.value)
        note = f" (off by {off:.1e})" if off > 1.1 * max(headline.unit, 1e-8) else ""
        return Claim(
            "score", HOLDS, f"{stated} is the mean of {label} over {which} {n} logs{note}", stated, support.value, lines
        )
    if support.relation == "missing":
        said = f"{stated} is the mean of the stated seeds; not each of them has a log"
        return Claim("score", NOT_STATED, said, stated, None, lines)
    if support.relation == "elsewhere":
        assert support.place is not None
        said = f"{stated} stands in {support.place.file}; no log prints it"
        return Claim("score", NOT_STATED, said, stated, support.value, (*lines[:1], support.place))
    if support.relation == "no logs" or not any(run.scores for run in folder.runs):
        return Claim("score", NOT_STATED, f"no log prints a score to compare {stated} with", stated, None, lines[:1])
    shipped = any(codec for r in folder.runs for codec, _ in (*r.models, *r.totals)) or any(
        r.finals for r in folder.runs
    )
    if support.relation == "progress" and not shipped:
        said = f"{stated} stands on a line of training; the log evaluates nothing that ships"
        return Claim("score", NOT_STATED, said, stated, support.value, lines)
    if support.relation == "progress":
        label = support.scores[0][1].kind
        words = {"step": "a training step", "progress": "a line of progress"}.get(
            label, "a diagnostic of weights that do not ship"
        )
        said = f"{stated} stands only on {words}, not on a final score"
        return Claim("score", CONTRADICTED, said, stated, support.value, lines)
    if not support.scores:
        return Claim(
            "score", CONTRADICTED, f"{stated} stands in no log, and no log prints a final score", stated, None, lines
        )
    finals = ", ".join(f"{s.bpb.value:g}" for _, s in support.scores[:4])
    return Claim(
        "score", CONTRADICTED, f"{stated} is in no log and no mean of logs; they end at {finals}", stated, finals, lines
    )


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
