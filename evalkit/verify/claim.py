"""A claim of a folder, and what its own evidence says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from evalkit.verify.statements import Number, Place

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


def places(*numbers: Number | Place | None) -> tuple[Place, ...]:
    """Return the places of numbers, each once, in order."""
    found = [n if isinstance(n, Place) else n.place for n in numbers if n is not None]
    return tuple(dict.fromkeys(found))
