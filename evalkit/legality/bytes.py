"""Bytes and budget: the denominator recounted from the text, and the files that ship added up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.legality.report import Finding
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import InputError, TokenError
from evalkit.plumbing.files import files_below
from evalkit.tokens.stream import TokenStream
from evalkit.tokens.tokenizer import TextTokenizer
from evalkit.tokens.witness import ByteWitness

_RECOUNT_TOKENS = 2_000_000
_LOOK_TOKENS = 200_000
_MISCOUNTED = "tokenizer {tokenizer} writes spaces as the three byte tokens of U+2581, which count 3 bytes for 1"


def recount(
    tokens: npt.NDArray[Any],
    claimed: npt.NDArray[Any] | int,
    decode: Callable[[list[int]], str],
    *,
    bos: int = 1,
    nats: float | None = None,
) -> tuple[list[Finding], dict[str, Any]]:
    """Compare the bytes that a score divides by with the UTF-8 bytes of the text its tokens decode to.

    Args:
        tokens: The stream. Documents begin at ``bos``; a stream that begins inside one is charged from its second
            token on, since the first is given.
        claimed: Bytes credited to each of ``tokens[1:]``, or their total.
        decode: Token ids of one document, without BOS, to its text (:meth:`evalkit.tokens.witness.ByteWitness.text_of`
            where the decoder itself is not to be believed).
        bos: Id that begins a document.
        nats: Total score, for the size of the difference in bits per byte.

    Returns:
        Findings (axiom ``bytes``; the position is the first token of the first document that differs), and what was
        covered.

    Raises:
        InputError: nothing to count.
    """
    stream = np.asarray(tokens, np.int64)
    if len(stream) < 2:
        raise InputError(f"a stream of {len(stream)} tokens has no bytes to count")
    edges = np.unique(np.concatenate([[0], np.flatnonzero(stream == bos), [len(stream)]]))
    counted, first_wrong = 0, None
    per_token = None if isinstance(claimed, (int, np.integer)) else np.asarray(claimed, np.int64)
    if per_token is not None and len(per_token) != len(stream) - 1:
        raise InputError(f"{len(per_token)} byte counts for {len(stream) - 1} scored tokens")
    total = int(claimed) if per_token is None else int(per_token.sum())  # type: ignore[arg-type]
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        document = stream[start:stop].tolist()
        size = len(decode([t for t in document if t != bos]).encode("utf-8"))
        if start == 0 and document[0] != bos:
            size -= len(decode(document[:1]).encode("utf-8"))
        counted += size
        if per_token is not None and first_wrong is None:
            credited = int(per_token[max(start - 1, 0) : stop - 1].sum())
            if credited != size:
                first_wrong = max(start, 1)
    covered: dict[str, Any] = {"bytes_claimed": total, "bytes_counted": counted, "documents": len(edges) - 1}
    if total == counted and first_wrong is None:
        return [], covered
    evidence: dict[str, Any] = {**covered, "ratio": total / counted if counted else math.inf, "bpb": None}
    if nats is not None and counted and total > 0:
        evidence["bpb"] = nats / math.log(2) * (1.0 / counted - 1.0 / total)
    message = (
        f"The score divides by {total:,} bytes; the text that its tokens decode to has {counted:,} "
        f"({(total / counted - 1.0) if counted else math.inf:+.4%})."
    )
    return [Finding(axiom="bytes", position=first_wrong, evidence=evidence, message=message)], covered


def recount_stream(stream: TokenStream, tokenizer: TextTokenizer) -> tuple[list[Finding], dict[str, Any], list[str]]:
    """Count the bytes of a stream again, without the byte table, and the table's bytes of texts that are known.

    Args:
        stream: What is scored; of a very long one, its first two million tokens are counted again.
        tokenizer: Its tokenizer.

    Returns:
        Findings, what was covered, and sentences that say what is unproven.
    """
    witness = ByteWitness(tokenizer)
    findings, covered = _recount_head(stream, tokenizer, witness, _RECOUNT_TOKENS)
    total, whole = covered["bytes_claimed"], len(stream) <= _RECOUNT_TOKENS
    if not findings and stream.text_bytes is not None and whole and total > stream.text_bytes:
        evidence = {**covered, "text_bytes": stream.text_bytes, "ratio": total / stream.text_bytes, "bpb": None}
        message = f"The score divides by {total:,} bytes; the text has {stream.text_bytes:,} as the tokenizer sees it."
        findings = [Finding(axiom="bytes", position=None, evidence=evidence, message=message)]
    drawn, wrong = witness.drawn_texts()
    covered |= {"drawn_texts": drawn, "drawn_texts_miscounted": len(wrong), "text_bytes": stream.text_bytes}
    doubts = []
    if wrong and stream.text_bytes is None:
        first = wrong[0]
        doubts.append(
            f"bytes: of {drawn} texts drawn from the vocabulary {len(wrong)} get other bytes than they have, such as "
            f"{first.text!r} with {first.counted} for {first.size}; the stream's own text is not at hand (--text)"
        )
    return findings, covered, doubts


def _recount_head(
    stream: TokenStream, tokenizer: TextTokenizer, witness: ByteWitness, most: int
) -> tuple[list[Finding], dict[str, Any]]:
    """Count the bytes of the first ``most`` tokens again; see :func:`recount`."""
    tokens = stream.read(0, min(len(stream), most)).astype(np.int64)
    claimed = tokenizer.byte_table.count(tokens[:-1], tokens[1:])
    return recount(tokens, claimed, witness.text_of, bos=tokenizer.bos_id)


def require_honest_bytes(stream: TokenStream, tokenizer: TextTokenizer) -> None:
    """Refuse to divide by more bytes than the text has.

    The text itself decides where it is at hand. Else the beginning of the stream is counted again, and the rest is
    searched for spaces that are written as the three bytes of the space mark.

    Raises:
        TokenError: the byte table counts too much.
    """
    total = None
    if stream.text_bytes is not None:
        total, right, what = stream.num_bytes(tokenizer), stream.text_bytes, "the text"
    else:
        witness = ByteWitness(tokenizer)
        _, covered = _recount_head(stream, tokenizer, witness, _LOOK_TOKENS)
        total, right = covered["bytes_claimed"], covered["bytes_counted"]
        what = f"the text of the first {min(len(stream), _LOOK_TOKENS):,} tokens"
        if total <= right and witness.mark_is_space and (at := stream.find(tokenizer.mark_ids)) is not None:
            raise TokenError(f"{_MISCOUNTED.format(tokenizer=tokenizer.path)}; token {at:,} of the stream begins one")
    if total > right:
        raise TokenError(
            f"tokenizer {tokenizer.path} counts {total:,} bytes for tokens whose text has {right:,} ({what}): "
            f"a score would divide by bytes that are no text. Such a tokenizer writes spaces in another way than it "
            f"counts them; use one with a piece for the lone space, in front of words"
        )


def budget(files: Iterable[str | Path], *, cap: int = SIZE_CAP) -> tuple[list[Finding], dict[str, Any]]:
    """Add up what ships, artifact and declared code, and compare it with the cap.

    Args:
        files: Artifact and code files; of a folder every file in it counts.
        cap: Bytes allowed.

    Returns:
        Findings (axiom ``budget``), and what was covered.

    Raises:
        InputError: a file does not exist.
    """
    sizes: dict[str, int] = {}
    for name in files:
        path = Path(name)
        if not path.exists():
            raise InputError(f"the declared file {path} does not exist")
        for part in files_below(path):
            sizes[str(part)] = part.stat().st_size
    total = sum(sizes.values())
    covered: dict[str, Any] = {"files": sizes, "bytes": total, "cap": cap}
    if total <= cap:
        return [], covered
    evidence = {"bytes": total, "cap": cap, "over": total - cap}
    message = f"What ships is {total:,} bytes, {total - cap:,} over the cap of {cap:,} (decimal)."
    return [Finding(axiom="budget", position=None, evidence=evidence, message=message)], covered
