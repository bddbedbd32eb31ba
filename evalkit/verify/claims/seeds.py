"""Seeds: do file names, submission.json and the logs speak of the same ones."""

from __future__ import annotations

from evalkit.verify.claim import CONTRADICTED, HOLDS, NOT_STATED, Claim, places
from evalkit.verify.statements import Folder, Run
from evalkit.verify.support import named_seed, seed_of


def check_seeds(folder: Folder, runs: list[Run]) -> list[Claim]:
    """Return whether every log is of the seed that its name and submission.json give it."""
    single = [r for r in runs if sum(o.file == r.file for o in folder.runs) == 1 and r.seed is not None]
    pairs = [(r, name) for r in single if (name := named_seed(r.file)) is not None]
    wrong = [(r, name) for r, name in pairs if name != seed_of(r)]
    # Files that are only numbered (seed1, seed2, seed3) name no seed.
    if wrong and len(wrong) < len(pairs):
        run, name = wrong[0]
        assert run.seed is not None
        stated = [leaf.place for leaf in folder.declared.leaves if leaf.path[0].lower() == "seeds"][:1]
        said = f"{run.file} was run with seed {seed_of(run)}; its name says {name}"
        return [Claim("seeds", CONTRADICTED, said, name, seed_of(run), places(*stated, run.seed))]
    stated_seeds = set(folder.declared.seeds)
    logged = {s for r in runs if (s := seed_of(r))}
    if len(stated_seeds) > 1 and logged and (twice := _twice(runs)):
        return [twice]
    if stated_seeds and logged:
        missing, other = stated_seeds - logged, logged - stated_seeds
        if missing and other and len(logged) >= len(stated_seeds):
            run = next(r for r in runs if seed_of(r) in other)
            place = next(
                (leaf.place for leaf in folder.declared.leaves if leaf.path[0].lower().startswith("seed")), None
            )
            said = f"{folder.declared.file} states seeds {_list(stated_seeds)}; the logs are of seeds {_list(logged)}"
            return [Claim("seeds", CONTRADICTED, said, _list(stated_seeds), _list(logged), places(place, run.seed))]
    if logged:
        said, lines = f"logs of seeds {_list(logged)}", places(*(r.seed for r in runs))
        return [Claim("seeds", HOLDS, said, _list(stated_seeds) or None, _list(logged), lines)]
    return [Claim("seeds", NOT_STATED, "no log prints its seed", _list(stated_seeds) or None)]


def _list(seeds: set[str]) -> str:
    return ", ".join(sorted(seeds, key=int))


def _twice(runs: list[Run]) -> Claim | None:
    """Return a contradiction where two seeds print the same steps with the same losses: one run told twice."""
    seen: dict[tuple[float, ...], Run] = {}
    for run in runs:
        steps = tuple(s.bpb.value for s in run.scores if s.kind == "step" and s.bpb.decimals >= 4)
        exact = tuple(s.bpb.value for s in run.finals if s.bpb.decimals >= 7)
        key = (*steps, *exact)
        if len(exact) < 1 or len(key) < 3:
            continue
        other = seen.setdefault(key, run)
        if other is not run and seed_of(other) != seed_of(run) and seed_of(run) and seed_of(other):
            said = f"{other.file} and {run.file} print the same scores under two seeds"
            lines = places(other.finals[-1].bpb, run.finals[-1].bpb)
            return Claim("seeds", CONTRADICTED, said, f"{seed_of(other)}, {seed_of(run)}", "one run", lines)
    return None
