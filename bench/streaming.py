"""Bits per byte of the streaming estimator beside sliding windows, over block lengths and numbers of sinks.

python bench/streaming.py ARTIFACT... --tokens 'val_*.bin' --tokenizer fineweb_1024_bpe.model
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evalkit.verbs.score import score
from evalkit.verbs.session import ScoreOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+")
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--limit-tokens", type=int, default=32768)
    parser.add_argument("--stride", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--blocks", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--sinks", type=int, nargs="+", default=[0, 4, 16])
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    columns = [f"block {block}, sinks {sinks}" for sinks in options.sinks for block in options.blocks]
    print(f"{options.limit_tokens:,} tokens; sliding: bits per byte, stride {options.stride}; others: the difference\n")
    print("| model | sliding | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * (len(columns) + 1))
    for artifact in options.artifacts:

        def bpb(artifact: str = artifact, **changes: object) -> float:
            return score(
                ScoreOptions(
                    artifact=artifact,
                    tokenizer=options.tokenizer,
                    tokens=options.tokens,
                    limit_tokens=options.limit_tokens,
                    stride=options.stride,
                    seq_len=options.seq_len,
                    dtype=options.dtype,
                    threads=options.threads,
                    **changes,
                )
            ).bpb

        sliding = bpb()
        cells = [f"{sliding:.4f}"]
        for sinks in options.sinks:
            for block in options.blocks:
                settings = {"streaming": {"block": str(block), "sinks": str(sinks)}}
                cells.append(f"{bpb(context='streaming', settings=settings) - sliding:+.4f}")
        print(f"| {Path(artifact).stem} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
