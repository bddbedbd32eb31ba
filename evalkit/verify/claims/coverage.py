"""Coverage: was all of the validation text scored."""

from __future__ import annotations

from evalkit.verify.claim import CONTRADICTED, HOLDS, NOT_STATED, Claim, places
from evalkit.verify.known import FULL_BYTES, bytes_per_token, full_set, validation_tokens
from evalkit.verify.statements import Folder, Place
from evalkit.verify.support import Support

LEAST = 0.98
"""Share of the text that counts as all of it: the shortest full stream lacks 0.3 %."""


def check_coverage(folder: Folder, support: Support) -> list[Claim]:
    """Return whether tokens and bytes of the claimed lines are those of the whole set."""
    holds: Claim | None = None
    for run, score in support.scores if support.relation != "none" else ():
        if score.bytes_scored and score.bytes_scored < LEAST * FULL_BYTES and score.bytes_scored > 1_000:
            lines = places(folder.declared.headline, score.bpb)
            return [_short(score.bytes_scored, FULL_BYTES, "bytes", score.label, lines)]
        tokens = validation_tokens(folder, run, score)
        if tokens is None:
            continue
        known = full_set(tokens.value)
        lines = places(tokens, score.bpb)
        if known:
            said = f"{tokens.value:,.0f} tokens are all of {known.name}"
            holds = Claim("coverage", HOLDS, said, tokens.value, tokens.value, lines)
            continue
        if score.loss is None:
            continue
        ratio, _ = bytes_per_token(score.loss, score.bpb)
        # A wrong count of bytes is the other claim's matter; 1 to 5 bytes a token bound what tokenizers do.
        if ratio * tokens.value < LEAST * FULL_BYTES and 0.9 < ratio < 6:
            expected = round(FULL_BYTES / ratio)
            return [_short(tokens.value, expected, "tokens", score.label, lines)]
        said = f"{tokens.value:,.0f} tokens of {ratio:.3f} bytes cover the text"
        holds = Claim("coverage", HOLDS, said, FULL_BYTES, round(ratio * tokens.value), lines)
    return [holds or Claim("coverage", NOT_STATED, "no claimed log says how many tokens it scored")]


def _short(found: float, expected: float, unit: str, label: str, lines: tuple[Place, ...]) -> Claim:
    said = (
        f"{label} was scored on {found:,.0f} {unit}, {found / expected:.1%} of the {expected:,.0f} of the full "
        f"validation set"
    )
    return Claim("coverage", CONTRADICTED, said, expected, found, lines)
