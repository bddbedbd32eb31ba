"""Bits per byte of the streaming estimator beside sliding windows, over block lengths and numbers of sinks.

python bench/streaming.py ARTIFACT... --tokens 'val_*.bin' --tokenizer fineweb_1024_bpe.model
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from common import print_header, print_row, scoring_parser

from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.score import score


def main() -> None:
    parser = scoring_parser(__doc__, 32768)
    parser.add_argument("--stride", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=0)
    parser.add_argument("--blocks", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--sinks", type=int, nargs="+", default=[0, 4, 16])
    options = vars(parser.parse_args())
    artifacts = options.pop("artifacts")
    settings = list(itertools.product(options.pop("sinks"), options.pop("blocks")))
    print(f"{options['limit_tokens']:,} tokens, stride {options['stride']}; after sliding's, differences from it\n")
    print_header("model", "sliding", *(f"block {block}, sinks {sinks}" for sinks, block in settings))
    for artifact in artifacts:
        sliding = ScoreOptions(artifact=artifact, **options)
        base = score(sliding).bpb
        cells = [f"{base:.4f}"]
        for sinks, block in settings:
            changed = {"streaming": {"block": str(block), "sinks": str(sinks)}}
            cells.append(f"{score(replace(sliding, context='streaming', settings=changed)).bpb - base:+.4f}")
        print_row(Path(artifact).stem, *cells)


if __name__ == "__main__":
    main()
