"""Byte sidecars (``--token-bytes``): how many bytes of the original text each token of a stream stands for.

A stream of transformed text (capitals written as marks and small letters, say) decodes to another text than the one
that the score is of, so a tokenizer cannot count its bytes. Whoever wrote the shards counted them, into shards of the
same form: word i holds the bytes of token i. Nobody has to believe them: given the text, the bytes of every document
are compared with it; without it, what the form alone must fulfil is checked, and a legality check says that the sum
was not compared.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.errors import TokenError
from evalkit.tokens.shards import find_shards, require_one_split
from evalkit.tokens.stream import TokenStream, stream_of
from evalkit.tokens.tokenizer import TextTokenizer

_BLOCK = 2**20
_BRACKETED = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_WITHOUT_INK = ("Cc", "Cf", "Cn", "Co", "Cs")
"""Unicode categories of what transforms use as marks: control, format, unassigned, private use, surrogate."""


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Bytes that each token of a stream stands for.

    Attributes:
        counts: as many numbers as the stream has tokens.
        sha256: of the numbers of the whole stream.
        documents: documents of the text whose bytes were found equal; None where there was no text.
        tokenizer_bytes: what the tokenizer's own rule counts for the whole stream.
    """

    counts: TokenStream
    sha256: str
    documents: int | None = None
    tokenizer_bytes: int = 0

    def count_span(self, tokens: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[np.int32]:
        """Return the bytes of ``tokens[start:stop]``, int32."""
        return self.counts.read(start, stop).astype(np.int32)

    def truncated(self, length: int) -> Sidecar:
        """Return what belongs to the first ``length`` tokens."""
        return replace(self, counts=self.counts.truncated(length))


def open_with_sidecar(tokens: str | Sequence[str] | None, token_bytes: str) -> tuple[TokenStream | None, Sidecar]:
    """Open token shards, where there are some, and the byte shards beside them.

    A byte shard that the glob of the tokens matches too (``val_*.bin`` matches ``val_bytes_0.bin``) is no token shard.
    """
    beside = find_shards(token_bytes)
    counts = stream_of(beside)
    sidecar = Sidecar(counts=counts, sha256=counts.sha256())
    if tokens is None:
        return None, sidecar
    known = {path.resolve() for path in beside}
    shards = [path for path in find_shards(tokens) if path.resolve() not in known]
    if not shards:
        raise TokenError(f"--tokens {tokens} and --token-bytes {token_bytes} match the same files: give each its own")
    require_one_split(shards)
    return stream_of(shards), sidecar


def audited(
    sidecar: Sidecar, stream: TokenStream, tokenizer: TextTokenizer, documents: Iterable[str] | None
) -> Sidecar:
    """Return the sidecar with what was compared, after checking that it is of this stream, and of this text.

    The text is one document for each BOS of the whole stream; None where it is not at hand.

    Raises:
        TokenError: its length is another; a token that is no text counts bytes, or one that is counts none; or the
            bytes of a document are others than those of its text, as it is and as the tokenizer normalises it.
    """
    if len(sidecar.counts) != len(stream):
        raise TokenError(
            f"--token-bytes holds {len(sidecar.counts):,} numbers for {len(stream):,} tokens; expected one for each: "
            f"{sidecar.counts.names[0]} belongs to other shards than {stream.names[0]}"
        )
    may_be_empty = _may_be_empty(tokenizer)
    last, total, by_rule = int(stream.read(0, 1)[0]), 0, 0
    edges = [0]  # where documents begin, and the bytes before each
    bytes_before = [0]
    for start in range(0, len(stream), _BLOCK):
        stop = min(start + _BLOCK, len(stream))
        tokens = stream.read(start, stop).astype(np.int64)
        counts = sidecar.counts.read(start, stop).astype(np.int64)
        _require_form(counts, tokens, start, tokenizer, may_be_empty, sidecar.counts.names[0])
        by_rule += int(tokenizer.byte_table.count(np.append(last, tokens[:-1]), tokens).sum())
        upto = total + np.cumsum(counts)
        opens = [int(i) for i in np.flatnonzero(tokens == tokenizer.bos_id) if start + i]
        edges += [start + i for i in opens]
        bytes_before += [int(upto[i] - counts[i]) for i in opens]
        last, total = int(tokens[-1]), int(upto[-1])
    if documents is None:
        return replace(sidecar, tokenizer_bytes=by_rule)
    claimed = [after - before for before, after in pairwise([*bytes_before, total])]
    count = _compare(claimed, edges, documents, tokenizer, sidecar.counts.names[0])
    return replace(sidecar, documents=count, tokenizer_bytes=by_rule)


def _require_form(
    counts: npt.NDArray[np.int64],
    tokens: npt.NDArray[np.int64],
    offset: int,
    tokenizer: TextTokenizer,
    may_be_empty: npt.NDArray[np.bool_],
    name: str,
) -> None:
    """Check what must hold of every sidecar, whatever the text is."""
    no_text = tokenizer.byte_table.is_boundary[tokens]
    for wrong, what in (
        (no_text & (counts > 0), "is a control token, which stands for no text"),
        (~may_be_empty[tokens] & (counts == 0), "is a piece of text, which stands for at least 1 byte"),
        (counts > np.iinfo(np.int32).max, "cannot be that long"),
    ):
        if wrong.any():
            at = int(wrong.argmax())
            raise TokenError(
                f"{name} counts {int(counts[at]):,} bytes for token {offset + at:,} (id {int(tokens[at])}), which "
                f"{what}: a sidecar of other shards, or shifted"
            )


def _compare(
    claimed: list[int], edges: list[int], documents: Iterable[str], tokenizer: TextTokenizer, name: str
) -> int:
    """Compare the bytes of each document with its text; returns how many there were."""
    number = -1
    for number, text in enumerate(documents):
        if number == len(claimed):
            raise TokenError(f"the text has more documents than the {len(claimed):,} that begin in the shards")
        raw = len(text.encode("utf-8"))
        if claimed[number] == raw:
            continue
        normalised = len(tokenizer.normalize(text).encode("utf-8"))
        if claimed[number] != normalised:
            raise TokenError(
                f"{name} counts {claimed[number]:,} bytes for document {number + 1:,} (from token {edges[number]:,} "
                f"on); its text has {raw:,}{f', {normalised:,} normalised' if normalised != raw else ''}: no score "
                f"can be divided by them"
            )
    if number + 1 != len(claimed):
        raise TokenError(f"the text has {number + 1:,} documents, the shards {len(claimed):,}; they must be the same")
    return number + 1


def _may_be_empty(tokenizer: TextTokenizer) -> npt.NDArray[np.bool_]:
    """Return which tokens may stand for no text of their own: control tokens, marks, parts of a character, a space.

    The byte pieces of one character are one piece of the original text, which a writer counts where it ends; a space
    may be the tokenizer's own, before the first word.
    """
    empty = tokenizer.byte_table.is_boundary.copy()
    for token in np.flatnonzero(~empty).tolist():
        text = tokenizer.decode([token]).strip()
        empty[token] = _BRACKETED.fullmatch(text) is not None or all(
            character == "\N{REPLACEMENT CHARACTER}" or unicodedata.category(character) in _WITHOUT_INK
            for character in text
        )
    return empty
