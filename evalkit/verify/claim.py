"""A claim of a folder, and what its own evidence says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from evalkit.verify.statements import Number, Place, Run

KINDS = ("score", "bpb", "coverage", "size", "time", "seeds", "configuration", "data", "significance", "files")
HOLDS, CONTRADICTED, NOT_STATED = "holds", "contradicted", "not stated"


@dataclass(frozen=True)
class Claim:
    """One claim with its verdict.

    Attributes:
        claim: one of ``KINDS``.
        status: ``holds``, ``contradicted`` or ``not stated``.
        message: one sentence.
        stated: what the folder states, as a number or words.
        found: what its evidence gives.
        evidence: the lines, the statement first.
    """

    claim: str
    status: str
    message: str
    stated: float | str | None = None
    found: float | str | None = None
    evidence: tuple[Place, ...] = field(default=())


def within_one_run(claims: list[Claim], runs: list[Run]) -> list[Claim]:
    """Return the claims of a limit; where it is not known which runs are claimed, one that keeps to it is enough."""
    kept = [c for c in claims if c.status == HOLDS]
    return claims if runs else kept or claims


def nearest_to_limit(claims: list[Claim]) -> list[Claim]:
    """Return the contradictions of a limit, at most 4, else the claim that comes nearest to it, if there is one."""
    contradicted = [c for c in claims if c.status == CONTRADICTED]
    return contradicted[:4] or sorted(claims, key=lambda c: -float(c.found or 0))[:1]


def places(*numbers: Number | Place | None) -> tuple[Place, ...]:
    """Return the places of numbers, each once, in order."""
    found = [n if isinstance(n, Place) else n.place for n in numbers if n is not None]
    return tuple(dict.fromkeys(found))
