"""What several benches share: the command line, the shared texts, timing, rows of a table, tables in RESULTS.md."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from evalkit.tokens.shards import open_shard
from evalkit.tokens.tokenizer import ByteTable

BENCH = Path(__file__).resolve().parent
SHARED = BENCH.parent / "../shared"
Result = TypeVar("Result")


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows a bench's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def scoring_parser(description: str | None, limit_tokens: int) -> argparse.ArgumentParser:
    """Return a parser with the arguments of benches that score artifacts."""
    parser = parser_of(description)
    parser.add_argument("artifacts", nargs="+")
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--limit-tokens", type=int, default=limit_tokens)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def scored_alike(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the arguments of :func:`scoring_parser` but the artifacts say to ``ScoreOptions``."""
    names = ("tokens", "tokenizer", "limit_tokens", "dtype", "threads")
    return {name: getattr(options, name) for name in names}


def print_row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_header(*cells: str, left: int = 1) -> None:
    """Print the head of a Markdown table whose first ``left`` columns hold words, the others numbers."""
    print_row(*cells)
    print("|" + "---|" * left + "---:|" * (len(cells) - left), flush=True)


def load_tokens(folder: str) -> npt.NDArray[np.uint16]:
    """Return the tokens of the validation shard in ``folder`` (relative to the shared data)."""
    return open_shard(SHARED / "data" / folder / "fineweb_val_000000.bin")


def load_text(folder: str) -> bytes:
    """Return the texts of ``docs.jsonl`` in ``folder``, one after the other."""
    with (SHARED / "data" / folder / "docs.jsonl").open(encoding="utf-8") as lines:
        return "".join(json.loads(line)["text"] for line in lines).encode()


def network_inputs(count: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return what a network could say of ``count`` tokens: log-probabilities, re-tempered ones, entropies; drawn."""
    rng = np.random.default_rng(0)
    entropy = rng.gamma(4.0, 0.6, size=count)
    neural = -rng.exponential(entropy)
    return neural, 1.05 * neural - 0.02, entropy


def one_byte_each(vocab_size: int) -> ByteTable:
    """Return the bytes of tokens of which each stands for one."""
    no = np.zeros(vocab_size, dtype=bool)
    return ByteTable(base=np.ones(vocab_size, dtype=np.int32), has_space=no, is_boundary=no)


def cpu_seconds(work: Callable[[], Result], repeats: int = 1) -> tuple[float, Result]:
    """Return the least processor time of several runs, and what the last gave.

    Other load on the machine counts less in it than in wall time.
    """
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return min(seconds), result


def replace_table(name: str, body: str) -> None:
    """Put ``body`` between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` in RESULTS.md.

    Raises:
        ValueError: the marks are not there.
    """
    results = BENCH / "RESULTS.md"
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = results.read_text(encoding="utf-8").partition(first)
    _, found, after = rest.partition(last)
    if not found:
        raise ValueError(f"{results} has no {first} ... {last}")
    results.write_text(f"{before}{first}\n{body}\n{last}{after}", encoding="utf-8")
