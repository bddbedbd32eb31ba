"""Files: is the evidence for every stated seed there, and can it be read."""

from __future__ import annotations

from evalkit.verify.claim import HOLDS, NOT_STATED, Claim, places
from evalkit.verify.statements import Folder, Place
from evalkit.verify.support import same, seed_of


def check_files(folder: Folder) -> list[Claim]:
    """Return which files are missing; a folder without logs is incomplete, not contradicted."""
    declared = folder.declared
    if declared.file is None:
        return [Claim("files", NOT_STATED, "there is no submission.json")]
    if declared.problem and declared.headline is None:
        said = f"{declared.file} is not JSON: {declared.problem}"
        return [Claim("files", NOT_STATED, said, None, None, (Place(declared.file, 1, declared.problem),))]
    logs = sorted({r.file for r in folder.runs})
    if not logs:
        return [Claim("files", NOT_STATED, "there is no log of the run", "a log for every seed", "none")]
    logged = {seed_of(r) for r in folder.runs}
    missing = [
        r.seed
        for r in declared.results
        if r.bpb
        and r.seed not in logged
        and None not in logged
        and not any(same(r.bpb, s.bpb) for run in folder.runs for s in run.finals)
    ]
    if missing:
        said = f"there is no log for seed {', '.join(missing)}"
        lines = places(*(r.place for r in declared.results if r.seed in missing))
        return [Claim("files", NOT_STATED, said, f"{len(declared.results)} seeds", f"{len(logs)} logs", lines)]
    return [Claim("files", HOLDS, f"{len(logs)} logs: {', '.join(logs[:6])}", None, len(logs))]
