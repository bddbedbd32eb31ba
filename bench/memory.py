"""Peak memory of scoring: a full-size network at the default batch, and the loop and ledger at several stream lengths.

Each row is a process of its own. The network's row scores a window and a few more; the other rows score whole streams
with a forecaster that takes no memory, from a shard on disk, so that what grows with the stream is seen alone.

python bench/memory.py --lengths 1000000 62000000
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evalkit.data.shard_writer import ShardWriter
from evalkit.model.gpt import GPT
from evalkit.prequential.ledger import Ledger
from evalkit.prequential.loop import run_prequential
from evalkit.prequential.sliding import SlidingConfig, SlidingForecaster
from evalkit.recipes import load_recipe
from evalkit.tokens.stream import TokenStream, open_shards
from evalkit.tokens.tokenizer import ByteTable


class Uniform:
    """Every token has the same probability."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def score(self, tokens: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Return ln V for each position."""
        return np.full(stop - start, np.log(self.vocab_size))

    def observe(self, tokens: np.ndarray, start: int, stop: int) -> None:
        """Learn nothing."""


def peak() -> float:
    """Return the most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def run(forecaster: Any, stream: TokenStream, vocab_size: int, folder: Path) -> None:
    ones, no = np.ones(vocab_size, np.int32), np.zeros(vocab_size, bool)
    run_prequential(forecaster, stream, ByteTable(base=ones, has_space=no, is_boundary=no), Ledger(folder))


def network(recipe: str, dtype: str, folder: Path) -> None:
    config = load_recipe(recipe).model_config()
    model = GPT(config).eval().requires_grad_(False)
    weights = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    before = peak()
    forecaster = SlidingForecaster(model, SlidingConfig(dtype=dtype))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 2048 + 5 * 64 + 1).astype(np.uint16)
    run(forecaster, TokenStream(parts=(tokens,), names=("random",)), config.vocab_size, folder)
    threads = torch.get_num_threads()
    print(
        f"| {recipe}, {dtype}, {threads} threads, weights {weights:.0f} MB in float32 | {before:.0f} | {peak():.0f} |"
    )


def loop(length: int, folder: Path) -> None:
    writer = ShardWriter(folder, "tokens", length)
    for begin in range(0, length, 1_000_000):
        writer.write(np.arange(min(1_000_000, length - begin)) % 1024)
    writer.close()
    before = peak()
    run(Uniform(1024), open_shards(str(folder / "tokens_*.bin")), 1024, folder)
    print(f"| loop and ledger, {length:,} tokens | {before:.0f} | {peak():.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="pr849")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1_000_000, 62_000_000])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--only", help="one row, in this process: a type or a length")
    options = parser.parse_args()
    if options.only is None:
        print("| what | MB before scoring | peak MB |\n|---|---:|---:|", flush=True)
        for row in (*options.dtypes, *options.lengths):
            subprocess.run([sys.executable, __file__, "--recipe", options.recipe, "--only", str(row)], check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.only.isdigit():
            loop(int(options.only), Path(folder))
        else:
            network(options.recipe, options.only, Path(folder))


if __name__ == "__main__":
    main()
