"""Documents to shards: BOS and tokens of each document, several processes, the same bytes whatever their number."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.data.shard_writer import ShardWriter
from evalkit.plumbing.errors import InputError, TokenError
from evalkit.plumbing.files import sha256_of, write_json
from evalkit.plumbing.log import LOG
from evalkit.plumbing.progress import Progress
from evalkit.plumbing.settings import require
from evalkit.tokens.kinds import open_tokenizer
from evalkit.tokens.texts import read_documents
from evalkit.tokens.tokenizer import TextTokenizer

_BATCH_CHARACTERS = 1_000_000
Encoded = tuple[list[int], list[npt.NDArray[np.int32]]]


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """What to tokenise.

    Attributes:
        documents: what :func:`evalkit.tokens.texts.read_documents` reads, in order.
        tokenizer: SentencePiece .model, Hugging Face tokenizer.json, or ``bytes``.
        out: folder to make; it must not exist, or be empty.
        val_documents: the first so many documents are the validation split; the rest is training.
        shard_tokens: tokens of a shard.
        prefix: first part of the shards' names.
        workers: processes; the shards are the same for any number.
        keep_unknown: write the unknown token for text that a tokenizer without byte fallback lacks, and count it; such
            text is an error otherwise.
    """

    documents: tuple[Path, ...]
    tokenizer: Path
    out: Path
    val_documents: int = 0
    shard_tokens: int = 100_000_000
    prefix: str = "fineweb"
    workers: int = 1
    keep_unknown: bool = False

    def __post_init__(self) -> None:
        if not self.documents:
            raise InputError("name the documents to tokenise: .jsonl, .json or .txt files")
        require(self.val_documents >= 0, "--val-documents", self.val_documents, "0 or more")
        require(2 <= self.shard_tokens < 2**31, "--shard-tokens", self.shard_tokens, "2 to 2,147,483,647")
        require(self.workers >= 1, "--workers", self.workers, "1 or more")
        named = re.fullmatch(r"[\w.-]+", self.prefix) is not None
        expected = "the first part of a file name: letters, digits, '_', '-', '.'"
        require(named, "--prefix", repr(self.prefix), expected)


def tokenize_documents(options: TokenizeOptions) -> dict[str, Any]:
    """Write shards and ``manifest.json`` into ``out``; returns the manifest.

    Everything is made in a folder beside ``out`` that takes its name at the end: there is never half a data set.

    Raises:
        InputError: ``out`` holds something, or a document cannot be tokenised without the unknown token.
    """
    out = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; name another with --out")
    for path in options.documents:
        if str(path) != "-" and (not path.exists() or path.is_dir()):
            raise TokenError(f"text {path} does not exist or is not a file")
    tokenizer = open_tokenizer(options.tokenizer)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        manifest = _write(options, tokenizer, partial)
        write_json(partial / "manifest.json", manifest)
        os.replace(partial, out)
    except OSError as error:
        raise InputError(f"{error.filename or out} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _write(options: TokenizeOptions, tokenizer: TextTokenizer, folder: Path) -> dict[str, Any]:
    writers = {
        split: ShardWriter(folder, f"{options.prefix}_{split}", options.shard_tokens, tokenizer.vocab_size)
        for split in ("val", "train")
    }
    counts = {split: {"documents": 0, "raw_bytes": 0, "unknown_tokens": 0} for split in writers}
    total = sum(path.stat().st_size for path in options.documents if str(path) != "-")
    LOG.debug("%d processes, %s bytes of input", options.workers, f"{total:,}")
    progress = Progress("tokenise", total, unit="bytes of input")
    read = 0
    documents = itertools.chain.from_iterable(read_documents(path) for path in options.documents)
    done = 0
    try:
        for texts, rows in _encoded(_batches(documents), tokenizer, options):
            for size, tokens in zip(texts, rows, strict=True):
                split = "val" if done < options.val_documents else "train"
                writers[split].write(tokens)
                counts[split]["documents"] += 1
                counts[split]["raw_bytes"] += size
                counts[split]["unknown_tokens"] += int((tokens == tokenizer.unk_id).sum())
                done += 1
                read += size
            progress.update(min(read, total), f"{done:,} documents")
    finally:
        progress.close()
        for writer in writers.values():
            writer.close()
    if not done:
        raise TokenError(f"{', '.join(map(str, options.documents))}: no documents")
    if done <= options.val_documents:
        raise InputError(f"--val-documents is {options.val_documents:,}; there are only {done:,} documents in all")
    return {
        "format": 1,
        "tokenizer": {
            "name": Path(tokenizer.path).name,
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
        },
        "documents": [path.name for path in options.documents],
        "splits": {
            split: counts[split]
            | {"tokens": writer.tokens, "shards": [{"name": p.name, "sha256": sha256_of(p)} for p in writer.paths]}
            for split, writer in writers.items()
        },
    }


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Group documents so that one call of a process is worth its while."""
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(batches: Iterable[list[str]], tokenizer: TextTokenizer, options: TokenizeOptions) -> Iterator[Encoded]:
    """Yield raw sizes and tokens of each batch, in order."""
    workers, keep_unknown = options.workers, options.keep_unknown
    if workers == 1:
        yield from (_encode(tokenizer, batch, keep_unknown) for batch in batches)
        return
    import multiprocessing

    # Processes are spawned: forking after threads have started (torch, numba) can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context)
    waiting: deque[Future[Encoded]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(_encode_in_worker, tokenizer.path, batch, keep_unknown))
            if len(waiting) > 2 * workers:  # bounds what lies in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError("a tokenising process died (out of memory?); try fewer --workers") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _encode(tokenizer: TextTokenizer, texts: list[str], keep_unknown: bool) -> Encoded:
    sizes = [len(text.encode("utf-8")) for text in texts]
    return sizes, [tokenizer.encode_document(text, keep_unknown=keep_unknown) for text in texts]


@functools.lru_cache(maxsize=1)
def _worker_tokenizer(path: str) -> TextTokenizer:
    return open_tokenizer(path)


def _encode_in_worker(path: str, texts: list[str], keep_unknown: bool) -> Encoded:
    return _encode(_worker_tokenizer(path), texts, keep_unknown)


def default_workers() -> int:
    """Return the number of cores that this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, 8))
