"""Tokens per processor second of scoring plus learning, one core, with synthetic network inputs.

python bench/mixers_speed.py
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
from mixers_text import cpu_seconds, load_tokens

from evalkit.mixers import Mixer, MixerConfig, best_config, default_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--span", type=int, default=65536, help="tokens between commits")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(
        "| preset | vocabulary | experts | tokens/s | ns/token | MB of tables |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |"
    )
    for vocab_size in (1024, 8192):
        tokens = load_tokens(f"fineweb_val_prefix/sp{vocab_size}")
        rng = np.random.default_rng(0)
        entropy = rng.gamma(4.0, 0.6, size=len(tokens) - 1)
        neural = -rng.exponential(entropy)
        tempered = 1.05 * neural - 0.02
        for name, preset in (("default", default_config), ("best", best_config)):
            for network in (True, False):
                config = preset(vocab_size, network=network)
                inputs = (neural, tempered, entropy) if network else (None, None, None)
                run(config, tokens[:3000], tuple(None if x is None else x[:2999] for x in inputs), options.span)
                seconds = cpu_seconds(partial(run, config, tokens, inputs, options.span), options.repeats)
                tables = run(config, tokens, inputs, options.span).report()["table_bytes"]
                megabytes = sum(tables.values()) / 1e6
                print(
                    f"| {name}{'' if network else ', no network'} | {vocab_size} | {len(config.experts)} "
                    f"| {len(tokens) / seconds:,.0f} | {1e9 * seconds / len(tokens):,.0f} | {megabytes:.0f} |"
                )


def run(config: MixerConfig, tokens: np.ndarray, inputs: tuple, span: int) -> Mixer:
    mixer = Mixer(config)
    mixer.score_stream(tokens, *inputs, span=span)
    return mixer


if __name__ == "__main__":
    main()
