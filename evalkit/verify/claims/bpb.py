"""Bits per byte against loss: the ratio is the bytes of a token, which belongs to the tokenizer and the text."""

from __future__ import annotations

from evalkit.verify.claim import CONTRADICTED, HOLDS, NOT_STATED, Claim, places
from evalkit.verify.known import FULL_BYTES, SETS, TOLERANCE, bytes_per_token, full_set, validation_tokens
from evalkit.verify.script import byte_constants
from evalkit.verify.statements import TEXT_CHARACTERS, Folder, Place, Run, Score
from evalkit.verify.support import Support


def check_bpb(folder: Folder, support: Support) -> list[Claim]:
    """Return whether loss and bits per byte of the claimed lines fit together, and fit the text."""
    scores = support.scores if support.relation != "progress" else ()
    if support.relation == "none":
        # The claim is none of them; whichever it was corrected from, the log's own lines must be right.
        scores = tuple((run, s) for run in folder.runs for s in run.finals)
    pairs = [(run, s) for run, s in scores if s.loss is not None and s.loss.value > 0 and s.bpb.value > 0]
    claims = [c for run, score in pairs if (c := _pair(folder, run, score))]
    if odd := _between_runs(pairs):
        claims.append(odd)
    contradicted, holding = ([c for c in claims if c.status == status] for status in (CONTRADICTED, HOLDS))
    if found := contradicted[:3] or holding[:1] or _constants(folder):
        return found
    return [Claim("bpb", NOT_STATED, "no claimed line gives loss and bits per byte together")]


def _pair(folder: Folder, run: Run, score: Score) -> Claim | None:
    assert score.loss is not None
    ratio, error = bytes_per_token(score.loss, score.bpb)
    tokens = validation_tokens(folder, run, score)
    lines = places(score.bpb, tokens)
    allowed = TOLERANCE + error
    if tokens is not None:
        known = full_set(tokens.value)
        implied = ratio * tokens.value
        expected = known.num_bytes if known else FULL_BYTES
        off = implied / expected - 1
        if known or off > -allowed:
            # Fewer bytes than the text has make a score worse: means over batches and padding lose a little.
            if -0.05 < off <= allowed:
                said = f"{score.label}: {ratio:.6f} bytes per token, {implied:,.0f} bytes of text"
                return Claim("bpb", HOLDS, said, expected, round(implied), lines)
            said = (
                f"{score.label}: loss and bits per byte imply {ratio:.5f} bytes per token, {implied:,.0f} bytes over "
                f"{tokens.value:,.0f} tokens; the text has {expected:,} ({off:+.1%}), which makes the score "
                f"{score.bpb.value * (1 + off):.5f}"
            )
            return Claim("bpb", CONTRADICTED, said, expected, round(implied), lines)
    near = min(SETS, key=lambda s: abs(s.ratio / ratio - 1))
    if abs(near.ratio / ratio - 1) <= 0.0015 + error:
        return Claim(
            "bpb", HOLDS, f"{score.label}: {ratio:.6f} bytes per token, as of {near.name}", near.ratio, ratio, lines
        )
    known_names = [s for s in SETS if s.name in _tokenizers(folder, run)]
    if known_names and all(abs(s.ratio / ratio - 1) > 0.03 + error for s in known_names):
        names = ", ".join(f"{s.ratio} of {s.name}" for s in known_names)
        said = f"{score.label}: {ratio:.5f} bytes per token; expected {names}"
        return Claim("bpb", CONTRADICTED, said, known_names[0].ratio, ratio, lines)
    return None


def _tokenizers(folder: Folder, run: Run) -> set[str]:
    """Return the sets that a run's tokenizer may be, by the words of its settings and of the folder's name."""
    words = " ".join([*(v for v, _ in run.settings.values()), *run.settings, folder.path.name]).lower()
    if "caseops" in words or "casefold" in words or "scylla" in words or "byte260" in words:
        return {"sp8192 CaseOps", "sp10240 CaseOps", "casefold 8192"} if "case" in words else set()
    return {
        s.name
        for s in SETS
        if s.vocabulary >= 1024 and (f"sp{s.vocabulary}" in words or f"fineweb_{s.vocabulary}_bpe" in words)
    }


def _between_runs(pairs: list[tuple[Run, Score]]) -> Claim | None:
    """Return a contradiction where exact lines of one evaluation give two ratios."""
    exact = [
        (s, bytes_per_token(s.loss, s.bpb)) for _, s in pairs if s.loss and min(s.loss.decimals, s.bpb.decimals) >= 7
    ]
    tokens = {run.tokens.value for run, _ in pairs if run.tokens}
    if len(exact) < 3 or len({s.label for s, _ in exact}) > 1 or len(tokens) > 1:
        return None
    ratios = sorted(r for _, (r, _) in exact)
    middle = ratios[len(ratios) // 2]
    off, worst, ratio = max(((abs(r / middle - 1), s, r) for s, (r, _) in exact), key=lambda t: t[0])
    close = sum(abs(r / middle - 1) < 2e-6 for r in ratios)
    if off < 2e-5 or close < len(ratios) - 1:
        return None
    other = next(s for s, (r, _) in exact if abs(r / middle - 1) < 2e-6)
    said = (
        f"{worst.label}: this line gives {ratio:.6f} bytes per token, the other {close} runs {middle:.6f}; one text "
        f"and one tokenizer have one ratio"
    )
    return Claim("bpb", CONTRADICTED, said, middle, ratio, places(worst.bpb, other.bpb))


def _constants(folder: Folder) -> list[Claim]:
    """Return a contradiction where the script divides by a constant of bytes per token."""
    for file, source in folder.scripts.items():
        if "bpb" not in source.lower():
            continue
        for line, text, constant in byte_constants(source):
            near = min(SETS, key=lambda s: abs(s.ratio - constant))
            if abs(near.ratio / constant - 1) < 0.002:
                continue
            said = (
                f"the score divides by {constant:g} bytes per token instead of the bytes of the text; "
                f"no tokenizer of the challenge has that ratio"
            )
            return [Claim("bpb", CONTRADICTED, said, constant, None, (Place(file, line, text[:TEXT_CHARACTERS]),))]
    return []
