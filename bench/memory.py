"""Peak memory of scoring: a full-size network at the default batch, and the loop and ledger at several stream lengths.

Each row is a process of its own. The network's row scores a window and a few more; the other rows score whole streams
with a forecaster that takes no memory, from a shard on disk, so that what grows with the stream is seen alone.

python bench/memory.py --lengths 1000000 62000000
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import one_byte_each, parser_of, print_header

from evalkit.data.shard_writer import ShardWriter
from evalkit.model.gpt import GPT
from evalkit.prequential.ledger import Ledger
from evalkit.prequential.loop import run_prequential
from evalkit.prequential.sliding import SlidingConfig, SlidingForecaster
from evalkit.recipes import load_recipe
from evalkit.tokens.stream import TokenStream, open_shards


class Uniform:
    """Every token has the same probability."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def score(self, tokens: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Return ln V for each position."""
        return np.full(stop - start, np.log(self.vocab_size))

    def observe(self, tokens: np.ndarray, start: int, stop: int) -> None:
        """Learn nothing."""


class Resident:
    """Samples how much memory is anonymous (the process's own) and how much stands for files, until it is stopped."""

    def __init__(self) -> None:
        self.before = _resident()
        self.peak = list(self.before)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = [max(pair) for pair in zip(self.peak, _resident(), strict=True)]

    def row(self, what: str) -> str:
        """Stop, and return a row of the table, in MB."""
        self._stop.set()
        self._thread.join()
        return f"| {what} | {self.before[0]:.0f} | {self.peak[0]:.0f} | {self.before[1]:.0f} | {self.peak[1]:.0f} |"


def _resident() -> tuple[float, float]:
    """Return MB of anonymous and of file-backed memory."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(fields["RssAnon"].split()[0]) / 1e3, float(fields["RssFile"].split()[0]) / 1e3


def run(forecaster: Any, stream: TokenStream, vocab_size: int, folder: Path) -> None:
    run_prequential(forecaster, stream, one_byte_each(vocab_size), Ledger(folder))


def network(recipe: str, dtype: str, folder: Path) -> None:
    config = load_recipe(recipe).model_config()
    model = GPT(config).eval().requires_grad_(False)
    weights = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    resident = Resident()
    forecaster = SlidingForecaster(model, SlidingConfig(dtype=dtype))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 2048 + 5 * 64 + 1).astype(np.uint16)
    run(forecaster, TokenStream(parts=(tokens,), names=("random",)), config.vocab_size, folder)
    print(resident.row(f"{recipe}, {dtype}, {torch.get_num_threads()} threads, weights {weights:.0f} MB in float32"))


def loop(length: int, folder: Path) -> None:
    writer = ShardWriter(folder, "tokens", length, vocab_size=1024)
    for begin in range(0, length, 1_000_000):
        writer.write(np.arange(min(1_000_000, length - begin)) % 1024)
    writer.close()
    resident = Resident()
    run(Uniform(1024), open_shards(str(folder / "tokens_*.bin")), 1024, folder)
    print(resident.row(f"loop and ledger, {length:,} tokens"))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--recipe", default="pr849")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1_000_000, 62_000_000])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--only", help="one row, in this process: a type or a length")
    options = parser.parse_args()
    if options.only is None:
        print_header("what", "anonymous MB before", "peak", "file-backed MB before", "peak")
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
