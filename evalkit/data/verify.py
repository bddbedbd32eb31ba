"""Verify shards: headers, ids, bytes counted both ways, documents against their source, overlap of the splits.

Everything is streamed. Memory is bounded by one document, one block, and 8 bytes for each n-gram of the validation text
that is kept (at most ``max_ngrams``; beyond that a fixed sample is kept and shares are estimates).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.data.documents import Hashes, Ids, WordHasher, document_hash, iterate_documents, token_ngrams
from evalkit.plumbing.errors import InputError, TokenError
from evalkit.plumbing.log import timed
from evalkit.plumbing.progress import Progress
from evalkit.plumbing.settings import require
from evalkit.tokens.kinds import open_tokenizer
from evalkit.tokens.shards import find_shards, open_shard, split_of
from evalkit.tokens.stream import TokenStream
from evalkit.tokens.texts import read_documents
from evalkit.tokens.tokenizer import SPACE_MARK, TextTokenizer
from evalkit.tokens.witness import ByteWitness

_BLOCK = 2**20
_MAX_EXAMPLES = 20


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What to verify.

    Attributes:
        shards: globs, files or folders.
        tokenizer: of the shards; without it only headers and sizes are checked.
        documents: the texts that the shards were made from, in order: validation first, then training.
        ngram: words (or tokens) in an n-gram of the overlap test; 0 leaves it out.
        unit: ``words`` or ``tokens``.
        overlap: share of a validation document's n-grams in training text from which it counts as contaminated.
        max_ngrams: most n-grams kept in memory, 8 bytes each.
    """

    shards: tuple[str, ...]
    tokenizer: Path | None = None
    documents: tuple[Path, ...] = ()
    ngram: int = 13
    unit: str = "words"
    overlap: float = 0.5
    max_ngrams: int = 50_000_000

    def __post_init__(self) -> None:
        require(self.ngram >= 0, "--ngram", self.ngram, "0 (no overlap test) or more")
        require(self.unit in ("words", "tokens"), "--unit", repr(self.unit), "words or tokens")
        require(0 < self.overlap <= 1, "--overlap", self.overlap, "a share above 0, at most 1")
        if self.documents and self.tokenizer is None:
            raise InputError("--documents needs --tokenizer, which turns them into tokens")


@dataclass(kw_only=True)
class Verification:
    """What was found.

    Attributes:
        findings: sentences, each a defect.
        counts: numbers for the report.
    """

    findings: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    _left_out: dict[str, int] = field(default_factory=dict)

    def find(self, kind: str, sentence: str) -> None:
        """Record a defect; of one kind only the first twenty are spelled out."""
        seen = self._left_out.get(kind, 0)
        self._left_out[kind] = seen + 1
        if seen < _MAX_EXAMPLES:
            self.findings.append(sentence)

    def finish(self) -> None:
        """Say how many defects of each kind were not spelled out."""
        for kind, number in self._left_out.items():
            if number > _MAX_EXAMPLES:
                self.findings.append(f"{number - _MAX_EXAMPLES:,} more of this kind: {kind}")

    def as_dict(self) -> dict[str, Any]:
        """Return findings and counts as JSON holds them."""
        return {"clean": not self.findings, "findings": self.findings, "counts": self.counts}


def verify(options: VerifyOptions) -> Verification:
    """Verify shards.

    Raises:
        InputError: nothing matches, or the tokenizer or the documents cannot be read.
    """
    result = Verification()
    paths = list(dict.fromkeys(itertools.chain.from_iterable(find_shards(pattern) for pattern in options.shards)))
    tokenizer = open_tokenizer(options.tokenizer) if options.tokenizer else None
    splits = {"val": _open(result, [p for p in paths if split_of(p) == "val"])}
    splits["train"] = _open(result, [p for p in paths if split_of(p) != "val"])
    result.counts["shards"] = {split: len(stream.parts) for split, stream in splits.items()}
    result.counts["tokens"] = {split: len(stream) for split, stream in splits.items()}
    if tokenizer is not None:
        progress = Progress("verify", sum(map(len, splits.values())))
        with timed("looked at every id"):
            result.counts["unknown_tokens"] = {}
            usable = {split: _check_ids(result, split, stream, tokenizer) for split, stream in splits.items()}
        documents = itertools.chain.from_iterable(read_documents(path) for path in options.documents)
        overlap = _Overlap(options, result)
        result.counts["bytes"], result.counts["documents"] = {}, {}
        offset = 0
        for split, stream in splits.items():
            if not usable[split]:
                continue
            source = documents if options.documents else None
            with timed(f"decoded and hashed the {split} documents"):
                _check_documents(result, split, stream, tokenizer, source, overlap, progress, offset)
            offset += len(stream)
        if options.documents and next(documents, None) is not None:
            result.find("source", f"the documents go on after the shards end (in {options.documents[-1]})")
        with timed("looked for overlap"):
            overlap.finish()
        progress.close()
    result.finish()
    return result


def _open(result: Verification, paths: list[Path]) -> TokenStream:
    parts, names = [], []
    for path in paths:
        try:
            parts.append(open_shard(path))
            names.append(str(path))
        except TokenError as error:
            result.find("header", str(error))
    return TokenStream(parts=tuple(parts), names=tuple(names))


def _check_ids(result: Verification, split: str, stream: TokenStream, tokenizer: TextTokenizer) -> bool:
    """Check ids shard by shard; returns whether the stream can be decoded.

    Unknown tokens are a defect where the tokenizer can write any text, and else counted: scoring has the same rule.
    """
    fine = True
    result.counts["unknown_tokens"][split] = 0
    for part, name in zip(stream.parts, stream.names, strict=True):
        outside = unknown = 0
        first: dict[str, str] = {}
        for start in range(0, len(part), _BLOCK):
            block = np.asarray(part[start : start + _BLOCK])
            bad = np.flatnonzero(block >= tokenizer.vocab_size)
            if bad.size:
                first.setdefault("outside", f"token {start + int(bad[0]):,} is id {int(block[bad[0]])}")
                outside += bad.size
            lost = np.flatnonzero(block == tokenizer.unk_id) if tokenizer.unk_id >= 0 else bad[:0]
            if lost.size:
                first.setdefault("unknown", f"token {start + int(lost[0]):,}")
                unknown += lost.size
        if outside:
            fine = False
            result.find(
                "id",
                f"{name}: {outside:,} ids outside the tokenizer's {tokenizer.vocab_size:,} ({first['outside']}): wrong "
                f"shard or wrong --tokenizer",
            )
        result.counts["unknown_tokens"][split] += unknown
        if unknown and tokenizer.has_byte_fallback:
            result.find(
                "unknown",
                f"{name}: {unknown:,} unknown tokens (the first: {first['unknown']}), which stand for lost text",
            )
    return fine


def _check_documents(
    result: Verification,
    split: str,
    stream: TokenStream,
    tokenizer: TextTokenizer,
    source: Iterator[str] | None,
    overlap: _Overlap,
    progress: Progress,
    offset: int,
) -> None:
    table_bytes = text_bytes = documents = changed = raw_bytes = 0
    witness = ByteWitness(tokenizer)
    if len(stream) and tokenizer.bos_id >= 0 and int(stream.read(0, 1)[0]) != tokenizer.bos_id:
        result.find("start", f"{split}: the first shard does not start with BOS (id {tokenizer.bos_id})")
    for start, tokens in iterate_documents(stream, tokenizer.bos_id):
        number, documents = documents, documents + 1
        counted = int(tokenizer.byte_table.count(tokens[:-1], tokens[1:]).sum())
        kept = tokens[tokens != tokenizer.unk_id]  # unknown tokens stand for text of which no byte is counted
        lost = len(kept) < len(tokens)
        text = witness.text_of(kept.tolist())
        size = len(text.encode("utf-8"))
        if tokens[0] not in (tokenizer.bos_id, tokenizer.unk_id):
            # A piece without its BOS: its first token has no predecessor to count by.
            size -= len(witness.text_of(tokens[:1].tolist()).encode("utf-8"))
        if counted != size and not lost:
            result.find(
                "bytes",
                f"{split} document {number:,} (token {start:,}): the byte table counts {counted:,} bytes, its "
                f"text has {size:,}",
            )
        table_bytes, text_bytes = table_bytes + counted, text_bytes + size
        if source is not None:
            raw = next(source, None)
            if raw is None:
                result.find("source", f"{split} document {number:,} and all after it are not among the documents")
                source = None
            else:
                raw_bytes += len(raw.encode("utf-8"))
                changed += raw != text
                _check_source(result, f"{split} document {number:,} (token {start:,})", raw, text, tokens, tokenizer)
        overlap.take(split, number, start, tokens, text)
        progress.update(offset + start + len(tokens))
    result.counts["documents"][split] = documents
    result.counts["bytes"][split] = {"table": table_bytes, "decoded_text": text_bytes}
    if source is not None:
        result.counts["bytes"][split]["raw_text"] = raw_bytes
        result.counts.setdefault("changed_by_normalisation", {})[split] = changed


def _check_source(result: Verification, name: str, raw: str, text: str, tokens: Ids, tokenizer: TextTokenizer) -> None:
    encoded = np.array([tokenizer.bos_id, *tokenizer.encode(raw)], dtype=np.int64)
    if not np.array_equal(encoded, tokens):
        same = min(len(encoded), len(tokens))
        differs = np.flatnonzero(encoded[:same] != tokens[:same])
        at = int(differs[0]) if differs.size else same
        result.find("source", f"{name}: its tokens are not those of the source document, from its token {at:,} on")
    elif tokenizer.unk_id in encoded:
        return  # text that the tokenizer cannot write is lost
    elif text.removeprefix(" ") != tokenizer.normalize(raw).replace(SPACE_MARK, " ").removeprefix(" "):
        result.find("round trip", f"{name}: decoding its tokens does not give back the normalised text")


class _Overlap:
    """Documents and n-grams that training and validation share. Validation is taken first, then training passes by."""

    def __init__(self, options: VerifyOptions, result: Verification) -> None:
        self._options, self._result = options, result
        self._words = WordHasher(max(options.ngram, 1))
        self._hashes: dict[int, int] = {}
        self._starts: list[int] = []
        self._grams: list[Hashes] = []
        self._owners: list[Any] = []
        self._kept = 0
        self._sample = 1
        self._sorted: Hashes | None = None
        self._order: Any = None
        self._hit: Any = None
        self._duplicates = {"val": 0, "train_in_val": 0}

    def take(self, split: str, number: int, start: int, tokens: Ids, text: str) -> None:
        """Take one document; all of validation comes before training."""
        key = document_hash(tokens)
        grams = self._ngrams(tokens, text)
        if split == "val":
            self._starts.append(start)
            if key in self._hashes:
                self._duplicates["val"] += 1
                self._result.find(
                    "duplicate in validation",
                    f"val document {number:,} (token {start:,}) repeats val document {self._hashes[key]:,}",
                )
            else:
                self._hashes[key] = number
            self._keep(grams, number)
            return
        if key in self._hashes:
            self._duplicates["train_in_val"] += 1
            self._result.find(
                "training document in validation",
                f"train document {number:,} (token {start:,}) is also val document {self._hashes[key]:,}",
            )
        self._match(grams)

    def finish(self) -> None:
        """Report what is shared."""
        self._result.counts["duplicates"] = dict(self._duplicates)
        if not self._options.ngram or self._sorted is None or not len(self._sorted):
            return
        owners = np.concatenate(self._owners)
        total = np.bincount(owners, minlength=len(self._starts))
        shared = np.bincount(owners[self._order[self._hit]], minlength=len(self._starts))
        share = shared / np.maximum(total, 1)
        worst = np.argsort(-share, kind="stable")
        unit = "word" if self._options.unit == "words" else "token"
        self._result.counts["overlap"] = {
            "ngram": self._options.ngram,
            "unit": self._options.unit,
            "sampled_one_in": self._sample,
            "ngrams": int(total.sum()),
            "ngrams_in_training": int(shared.sum()),
            "documents_with_any": int((shared > 0).sum()),
            "documents_over_threshold": int((share >= self._options.overlap).sum()),
        }
        for number in worst.tolist():
            if share[number] < self._options.overlap:
                break
            self._result.find(
                "overlap",
                f"val document {number:,} (token {self._starts[number]:,}): {share[number]:.0%} of its "
                f"{self._options.ngram}-{unit} sequences also stand in the training text",
            )

    def _ngrams(self, tokens: Ids, text: str) -> Hashes:
        if not self._options.ngram:
            return np.empty(0, dtype=np.uint64)
        if self._options.unit == "tokens":
            return token_ngrams(tokens[1:], self._options.ngram)
        return self._words.ngrams(text)

    def _keep(self, grams: Hashes, number: int) -> None:
        grams = self._sampled(np.unique(grams))
        self._grams.append(grams)
        self._owners.append(np.full(len(grams), number, dtype=np.int32))
        self._kept += len(grams)
        while self._kept > self._options.max_ngrams:
            # Every second hash value goes, by a bit of the hash, so that both sides keep the same ones.
            self._sample *= 2
            kept = [self._mask(g) for g in self._grams]
            self._owners = [o[m] for o, m in zip(self._owners, kept, strict=True)]
            self._grams = [g[m] for g, m in zip(self._grams, kept, strict=True)]
            self._kept = sum(map(len, self._grams))

    def _mask(self, grams: Hashes) -> npt.NDArray[np.bool_]:
        kept: npt.NDArray[np.bool_] = (grams & np.uint64(self._sample - 1)) == 0
        return kept

    def _sampled(self, grams: Hashes) -> Hashes:
        return grams[self._mask(grams)]

    def _match(self, grams: Hashes) -> None:
        if self._sorted is None:
            every = np.concatenate(self._grams) if self._grams else np.empty(0, dtype=np.uint64)
            self._grams = []
            self._order = np.argsort(every, kind="stable")
            self._sorted = every[self._order]
            self._hit = np.zeros(len(every), dtype=np.bool_)
        if not len(self._sorted) or not len(grams):
            return
        grams = self._sampled(np.unique(grams))
        low = np.searchsorted(self._sorted, grams, side="left")
        high = np.searchsorted(self._sorted, grams, side="right")
        for first, last in zip(low[high > low].tolist(), high[high > low].tolist(), strict=True):
            self._hit[first:last] = True
