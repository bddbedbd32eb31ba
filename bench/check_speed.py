"""Time `evalkit check --forecaster` at two revisions in turns, and compare their verdicts.

python bench/check_speed.py REVISION [REVISION] [--modules h_counts ...] [--repeats 3]

The second revision defaults to the working tree. The modules are those of tests/evalkit/legality/gallery as they are;
each is judged on 700 tokens from a bigram source. Seconds are the least of the repeats, by the clock on the wall, since
processor time of children that are killed, as strangers' are, goes uncounted. Prints a Markdown table.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import parser_of, print_header, print_row
from same_scores import ROOT, checkout

from evalkit.legality.sources import BigramSource
from evalkit.tokens.shards import write_shard

GALLERY = ROOT / "tests/evalkit/legality/gallery"
MODULES = ("h_counts", "x_sparse_peek", "v01_hashed_cache", "h_hedge")


def check(code: Path, module: str, shard: Path) -> tuple[float, str]:
    """Return the seconds that a check took, and its verdict."""
    arguments = ["check", "--forecaster", f"{GALLERY / module}.py:make", "--tokens", str(shard)]
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "evalkit", *arguments], cwd=code, env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    if done.returncode not in (0, 3):
        raise SystemExit(f"{code}: {module}: {done.stderr}")
    return seconds, done.stdout.split()[1]


def main() -> None:
    """Compare two revisions."""
    parser = parser_of(__doc__)
    parser.add_argument("before", metavar="REVISION")
    parser.add_argument("after", metavar="REVISION", nargs="?", default=".")
    parser.add_argument("--modules", nargs="+", default=list(MODULES))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        work = Path(folder)
        codes = [stack.enter_context(checkout(name, work)) for name in (options.before, options.after)]
        shard = work / "val_000000.bin"
        write_shard(shard, BigramSource.invented(16, 1).sample(700, 1, np.random.default_rng(0))[0])
        print_header("module", "verdict before", "after", "s before", "after", "before / after", left=3)
        for module in options.modules:
            turns = [[check(code, module, shard) for code in codes] for _ in range(options.repeats)]
            before, after = (min(turn[side] for turn in turns) for side in (0, 1))
            print_row(module, before[1], after[1], f"{before[0]:.1f}", f"{after[0]:.1f}", f"{before[0] / after[0]:.2f}")


if __name__ == "__main__":
    main()
