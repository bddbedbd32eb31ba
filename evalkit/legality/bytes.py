"""Bytes and budget: the denominator recounted from the text, and the files that ship added up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.legality.report import Finding
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import InputError


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
        decode: Token ids of one document, without BOS, to its text.
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
        parts: Sequence[Path] = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for part in parts:
            sizes[str(part)] = part.stat().st_size
    total = sum(sizes.values())
    covered: dict[str, Any] = {"files": sizes, "bytes": total, "cap": cap}
    findings = []
    if total > cap:
        findings.append(
            Finding(
                axiom="budget",
                position=None,
                evidence={"bytes": total, "cap": cap, "over": total - cap},
                message=f"What ships is {total:,} bytes, {total - cap:,} over the cap of {cap:,} (decimal).",
            )
        )
    return findings, covered
