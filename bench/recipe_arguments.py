"""The command line that the benches of whole recipes share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse_arguments(description: str | None, recipes: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a bench that trains ``recipes`` at a reduced size."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with 1024-piece shards")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model")
    parser.add_argument("--out", type=Path, required=True, help="where the run folders go")
    parser.add_argument("--only", nargs="+", choices=recipes, help="train these and write no table")
    parser.add_argument("--steps", type=int, default=300, help="steps of each run")
    parser.add_argument("--scale", default="128x4", help="WIDTHxDEPTH of every model")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens of a step")
    parser.add_argument("--seq-len", type=int, default=256, help="window in tokens")
    parser.add_argument("--val-tokens", type=int, default=65_536, help="validation targets")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()
