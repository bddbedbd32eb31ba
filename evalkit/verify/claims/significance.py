"""Significance: where a README says that its gain over an earlier record clears 0.005 nats, do its own numbers."""

from __future__ import annotations

import math
import re

from evalkit.plumbing.constants import RECORD_NATS
from evalkit.verify.claim import CONTRADICTED, HOLDS, NOT_STATED, Claim, places
from evalkit.verify.known import bytes_per_token
from evalkit.verify.statements import Folder
from evalkit.verify.support import Support

_CLEARS = re.compile(r"\b(?:clear|exceed|pass|satisf|surpass)\w*\b[^.|]{0,40}\b0\.005[- ]?nats?\b", re.I)
_NATS = re.compile(r"0\.00[0-4]\d*\s*(?:nats|nat/)", re.I)
_NOT = re.compile(
    r"\b(?:not|below|under|short|fail\w*|waive\w*|without|miss\w*|non-record|would|need|target|system)\b|n['’]t\b", re.I
)
_EARLIER = re.compile(r"(?:SOTA|record|PR|leader|#\d+)[^|.;]{0,60}?\b([01]\.\d{3,8})\b", re.I)


def check_significance(folder: Folder, support: Support) -> list[Claim]:
    """Return whether a gain that is said to clear the threshold does, by the folder's own two scores.

    The gain in nats per token is the difference in bits per byte times ln 2 times bytes per token. Of several earlier
    scores in a sentence the worst is taken, which favours the claim.
    """
    stated = folder.declared.headline
    losses = ((s.loss, s.bpb) for _, s in support.scores if s.loss and s.loss.value > 0)
    ratio = next((bytes_per_token(loss, bpb)[0] for loss, bpb in losses), None)
    if stated is None or ratio is None:
        return [Claim("significance", NOT_STATED, "no comparison with an earlier record is stated in numbers")]
    holds: Claim | None = None
    for text in folder.texts[:1]:
        for index, line in enumerate(text.lines):
            if not _CLEARS.search(line) or _NOT.search(line) or _NATS.search(line):
                continue
            earlier = [float(m) for m in _EARLIER.findall(line) if float(m) > stated.value]
            if not earlier:
                continue
            gain = (max(earlier) - stated.value) * math.log(2) * ratio
            lines = places(text.place(index), stated)
            if gain + stated.unit * math.log(2) * ratio < RECORD_NATS:
                said = (
                    f"the gain over {max(earlier)} is {max(earlier) - stated.value:.5f} bits per byte, which is "
                    f"{gain:.4f} nats per token; it is said to clear {RECORD_NATS}"
                )
                return [Claim("significance", CONTRADICTED, said, RECORD_NATS, gain, lines)]
            said = f"the gain over {max(earlier)} is {gain:.4f} nats per token"
            holds = holds or Claim("significance", HOLDS, said, RECORD_NATS, gain, lines)
    return [holds or _sigma(support)]


def _sigma(support: Support) -> Claim:
    values = [s.bpb.value for _, s in support.scores] if support.relation in ("mean", "subset") else []
    note = ""
    if len(values) > 1:
        mean = math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
        note = f"; the {len(values)} logs spread by {spread:.5f} (sample deviation)"
    return Claim(
        "significance", NOT_STATED, f"no gain over an earlier record is said to clear {RECORD_NATS} nats{note}"
    )
