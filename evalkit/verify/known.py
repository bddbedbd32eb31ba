"""What the challenge's validation set measures: bytes of text, tokens and bytes per token of its tokenizers.

The full set is 50,000 documents of 151,080,891 bytes, whatever the tokenizer. Bytes per token is loss / ln 2 / bpb;
with eight printed digits it is constant over runs to 2e-7. The counts were measured over all public submissions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from evalkit.verify.statements import Folder, Number, Run, Score

FULL_BYTES = 151_080_891
DOCUMENTS = 50_000
TOLERANCE = 0.004
"""Streams cut to windows and texts exported anew differ by up to 0.3 %; the smallest known wrong count by 1.0 %."""


@dataclass(frozen=True)
class ValidationSet:
    """A tokenizer's view of the validation text.

    Attributes:
        name: as folders and paths spell it.
        vocabulary: entries.
        tokens: counts that full runs print.
        ratio: bytes per token.
        num_bytes: bytes of the text as counted.
    """

    name: str
    vocabulary: int
    tokens: tuple[int, ...]
    ratio: float
    num_bytes: int = FULL_BYTES


SETS = (
    ValidationSet("sp1024", 1024, (62_021_632, 62_021_845, 62_021_846, 62_017_536, 62_013_440, 61_997_056), 2.43593),
    ValidationSet("sp1024, first release", 1024, (63_779_840,), 2.44233, 155_770_000),
    ValidationSet("sp2048", 2048, (52_373_504,), 2.8845667),
    ValidationSet("sp4096", 4096, (45_508_608, 45_514_752, 45_516_800), 3.3195),
    ValidationSet("sp8192", 8192, (40_540_160, 40_538_112, 40_540_672, 40_546_304, 40_548_352), 3.7266),
    ValidationSet("sp8192 CaseOps", 8192, (47_851_520, 47_853_343), 3.1572),
    ValidationSet("sp10240 CaseOps", 10240, (46_688_256,), 3.23584),
    ValidationSet("casefold 8192", 8192, (36_286_464, 36_335_616), 4.16),
    ValidationSet("bytes", 260, (151_130_112, 151_076_864), 1.0),
)


def bytes_per_token(loss: Number, bpb: Number) -> tuple[float, float]:
    """Return loss / ln 2 / bpb and its relative uncertainty from the printed digits."""
    ratio = loss.value / math.log(2) / bpb.value
    return ratio, 0.5 * loss.unit / loss.value + 0.5 * bpb.unit / bpb.value


def validation_tokens(folder: Folder, run: Run, score: Score) -> Number | None:
    """Return the tokens that were scored: of the line, else of its run, else of all other logs where they agree."""
    if score.tokens_scored:
        return Number(float(score.tokens_scored), 0, score.bpb.place)
    if run.tokens:
        return run.tokens
    others = {r.tokens.value: r.tokens for r in folder.runs if r.tokens}
    return next(iter(others.values())) if len(others) == 1 else None


def full_set(tokens: float) -> ValidationSet | None:
    """Return the set whose full length this is, within a window's worth of tokens."""
    return next((s for s in SETS if any(abs(tokens - n) <= 0.001 * n for n in s.tokens)), None)
