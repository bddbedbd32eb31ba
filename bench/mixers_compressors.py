"""Model-free mixers beside general compressors on the same text, from a cold start.

    python bench/mixers_compressors.py                       # FineWeb validation prefix, 1024 pieces
    python bench/mixers_compressors.py --text fineweb_sample --vocab 8192

Bits per byte are over the UTF-8 bytes of ``docs.jsonl``; the mixers also code one document token for each document.
Times are processor seconds of one core: compression only, and scoring plus learning for the mixers.
"""

from __future__ import annotations

import bz2
import lzma
import math

import numpy as np
import pyppmd
import zstandard
from common import cpu_seconds, load_text, load_tokens, parser_of, print_header, print_row

from evalkit.mixers import Mixer, best_config, default_config


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--text", default="fineweb_val_prefix", help="folder of the shared data")
    parser.add_argument("--vocab", type=int, default=1024, choices=(1024, 8192), help="size of the tokenizer")
    options = parser.parse_args()
    text = load_text(options.text)
    tokens = load_tokens(f"{options.text}/sp{options.vocab}")
    print(f"{options.text}: {len(text):,} bytes, {len(tokens):,} tokens of sp{options.vocab}\n")
    print_header("what", "bits per byte", "MB/s", "tokens/s")

    compressors = {
        "bzip2 -9": lambda: bz2.compress(text, 9),
        "zstd -22": lambda: zstandard.ZstdCompressor(level=22).compress(text),
        "xz -9e": lambda: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
        "PPMd order 6": lambda: ppmd(text, 6),
        "PPMd order 12": lambda: ppmd(text, 12),
    }
    for name, compress in compressors.items():
        seconds, packed = cpu_seconds(compress)
        print_row(name, f"{8 * len(packed) / len(text):.4f}", f"{len(text) / seconds / 1e6:.2f}", "")
    for name, preset in (("default", default_config), ("best", best_config)):
        config = preset(options.vocab, network=False)
        Mixer(config).score_stream(tokens[:2000])  # compiles
        seconds, nll = cpu_seconds(lambda config=config: Mixer(config).score_stream(tokens), repeats=3)
        bpb = float(np.sum(nll)) / math.log(2) / len(text)
        speeds = f"{len(text) / seconds / 1e6:.2f}", f"{len(tokens) / seconds:,.0f}"
        print_row(f"mixers, {name}, no network", f"{bpb:.4f}", *speeds)


def ppmd(text: bytes, order: int) -> bytes:
    encoder = pyppmd.Ppmd7Encoder(order, 256 << 20)
    return bytes(encoder.encode(text) + encoder.flush())


if __name__ == "__main__":
    main()
