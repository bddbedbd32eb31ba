"""Verifies a submission folder: reads it, finds what its score rests on, and checks every claim."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evalkit.verify.claim import CONTRADICTED, NOT_STATED, Claim
from evalkit.verify.claims.bpb import check_bpb
from evalkit.verify.claims.configuration import check_configuration
from evalkit.verify.claims.coverage import check_coverage
from evalkit.verify.claims.data import check_data
from evalkit.verify.claims.files import check_files
from evalkit.verify.claims.score import check_score
from evalkit.verify.claims.seeds import check_seeds
from evalkit.verify.claims.significance import check_significance
from evalkit.verify.claims.size import check_size
from evalkit.verify.claims.time import check_time
from evalkit.verify.folder import read_folder
from evalkit.verify.statements import Folder, Run
from evalkit.verify.support import Support, claimed_runs, find_support, seed_of


@dataclass(frozen=True)
class VerifyReport:
    """The verdict on a folder.

    Attributes:
        folder: what was read.
        verdict: ``consistent``, ``contradicted`` or ``incomplete``.
        claims: in the order of a reader's questions.
        support: the lines that the score rests on.
        next_commands: what evalkit can do beyond reading, where an artifact is there.
    """

    folder: Folder
    verdict: str
    claims: tuple[Claim, ...]
    support: Support
    next_commands: tuple[str, ...] = ()

    @property
    def scores(self) -> list[float]:
        """The scores that the headline is the mean of, else the headline; empty without one."""
        if self.support.relation in ("single", "mean", "subset"):
            return [score.bpb.value for _, score in self.support.scores]
        return [self.folder.declared.headline.value] if self.folder.declared.headline else []

    def to_dict(self) -> dict[str, Any]:
        """Return the report's JSON."""
        return {
            "folder": self.folder.path.name,
            "verdict": self.verdict,
            "claims": [
                {name: claim[name] for name in ("claim", "status", "stated", "found", "evidence", "message")}
                for claim in map(asdict, self.claims)
            ],
            "scores": self.scores,
            "notes": list(self.folder.notes),
            "next": list(self.next_commands),
        }


def verify_folder(path: str | Path) -> VerifyReport:
    """Return whether the claims of a submission folder agree with its own evidence and the rules.

    Nothing in the folder is executed, no link in it is followed, and time and memory are bounded.

    Raises:
        InputError: it is no folder, or holds nothing of a submission.
    """
    folder = read_folder(Path(path))
    support = _support(folder)
    runs = claimed_runs(folder, support)
    scored = list({id(run): run for run, _ in support.scores}.values())
    claims = (
        *check_score(folder, support),
        *check_bpb(folder, support),
        *check_coverage(folder, support),
        *check_size(folder, runs),
        *check_time(folder, support, runs),
        *check_seeds(folder, runs or list(folder.runs)),
        *check_configuration(folder, scored if support.relation in ("mean", "subset") else _one_a_seed(runs)),
        *check_data(folder),
        *check_significance(folder, support),
        *check_files(folder),
    )
    verdict = "consistent"
    if any(c.status == CONTRADICTED for c in claims):
        verdict = "contradicted"
    elif any(c.status == NOT_STATED and c.claim in ("score", "files") for c in claims):
        verdict = "incomplete"
    return VerifyReport(folder, verdict, claims, support, _next_commands(folder))


def _one_a_seed(runs: list[Run]) -> list[Run]:
    """Return the first run of every seed: runs of one seed that reach one score are trials, not one claim."""
    return list({seed_of(run): run for run in reversed(runs)}.values())


def _support(folder: Folder) -> Support:
    """Return what the headline rests on; some files put bits per byte under ``val_loss``."""
    declared = folder.declared
    if declared.headline is None and declared.loss is not None:
        support = find_support(folder, declared.loss)
        if support.relation in ("single", "mean"):
            return support
    return find_support(folder, declared.headline)


_ARTIFACT = re.compile(r"\.(?:ptz|int[4-8]\.\w+|evalkit|safetensors)$|final_model.*\.bin$", re.I)


def _next_commands(folder: Folder) -> tuple[str, ...]:
    """Return commands that go further than reading, where the folder ships its artifact."""
    artifact = next((f for f in folder.files if _ARTIFACT.search(f)), None)
    if artifact is None:
        return ()
    path = f"{folder.path}/{artifact}"
    source = f" --source {folder.path}/{folder.script.file}" if folder.script else ""
    return (
        f"evalkit inspect {path}{source}",
        f"evalkit score {path}{source} --tokens SHARDS --tokenizer MODEL",
        f"evalkit check {path}{source} --tokens SHARDS --tokenizer MODEL",
    )
