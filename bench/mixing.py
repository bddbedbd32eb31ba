"""Online mixing beside dense count tables looked up batch by batch, as PR849 does it, in one run on one core.

The dense way holds a row of counts over the vocabulary for each hashed context, looks up a batch of positions at once
and counts a chunk after it was scored (the arithmetic of ``mixers/published.py``). It is timed twice: on each position
once, and as published, on all positions of all windows of a batch, window / stride times as many.
The network's numbers are synthetic. ``--recipe`` adds what mixing takes of a run with a network of full size (drawn
weights): the mixer's time, and that of the numbers that it asks the network for beyond its score.

python bench/mixing.py --recipe pr849
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
from common import cpu_seconds, load_tokens, network_inputs, parser_of, print_header, print_row

from evalkit.mixers import Mixer, default_config
from evalkit.mixers.published import PublishedMixer
from evalkit.model.gpt import GPT
from evalkit.plumbing.profiling import Profile
from evalkit.prequential.mixed import MixedForecaster, network_experts
from evalkit.prequential.sliding import SlidingConfig, SlidingForecaster, one_thread_each, target_nll
from evalkit.recipes import load_recipe

WINDOW, STRIDE, BATCH = 2048, 64, 32


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--tokens", type=int, default=262144)
    parser.add_argument("--chunk", type=int, default=32768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recipe", help="also the share of a full-size run")
    parser.add_argument("--vocab-size", type=int, default=1024)
    options = parser.parse_args()
    tokens = load_tokens(f"fineweb_val_prefix/sp{options.vocab_size}")[: options.tokens + 1].astype(np.int64)
    neural, _, entropy = network_inputs(len(tokens) - 1)
    config = default_config(options.vocab_size, network=True)
    ours(config, tokens[:3000], neural[:2999], entropy[:2999])  # compiles
    rows = {
        "evalkit, learning after every token": (partial(ours, config, tokens, neural, entropy), options.repeats),
        "dense tables, each position once": (partial(dense, tokens, neural, entropy, options, 1), options.repeats),
        "dense tables, all positions of windows": (
            partial(dense, tokens, neural, entropy, options, WINDOW // STRIDE),
            1,
        ),
    }
    print(f"{len(tokens) - 1:,} tokens, vocabulary {options.vocab_size}, one core, least processor time of repeats\n")
    print_header("what", "tokens/s", "ns a token", "s for 62 million", "times evalkit")
    first = None
    for name, (work, repeats) in rows.items():
        each = cpu_seconds(work, repeats)[0] / (len(tokens) - 1)
        first = first or each
        print_row(name, f"{1 / each:,.0f}", f"{1e9 * each:,.0f}", f"{62e6 * each:,.0f}", f"{each / first:.2f}")
    if options.recipe:
        print(share_of_full_size(options.recipe, tokens))


def share_of_full_size(recipe: str, tokens: np.ndarray) -> str:
    """Score two spans with a drawn network of full size and the mixer, in bfloat16; return a line of shares."""
    model_config = load_recipe(recipe).model_config()
    torch.manual_seed(0)
    network = SlidingForecaster(
        GPT(model_config).eval().requires_grad_(False), SlidingConfig(seq_len=WINDOW, stride=STRIDE, dtype="bfloat16")
    )
    mixer = Mixer(default_config(model_config.vocab_size, network=True))
    forecaster = MixedForecaster(network, mixer, model_config.vocab_size)
    forecaster.score(tokens[: WINDOW + 1], 1, WINDOW + 1)
    forecaster.observe(tokens[: WINDOW + 1], 1, WINDOW + 1)
    profile = Profile()
    profile.time_methods(mixer, "mix", ("extend", "commit"))
    profile.time_methods(forecaster, "score", ("score", "observe"))
    stop = WINDOW + 1 + 8 * STRIDE
    forecaster.score(tokens[:stop], WINDOW + 1, stop)
    forecaster.observe(tokens[:stop], WINDOW + 1, stop)
    seconds = profile.to_dict()["seconds"]
    total = seconds["score"] + seconds["mix"]
    logits = torch.randn(STRIDE, model_config.vocab_size)
    with one_thread_each(1):
        experts, _ = cpu_seconds(lambda: network_experts(logits), 20)
        experts -= cpu_seconds(lambda: target_nll(logits, tokens[:STRIDE]), 20)[0]
    mix, share = seconds["mix"] / total, 8 * max(experts, 0.0) / total
    return (
        f"\n{recipe}, window {WINDOW}, stride {STRIDE}, bfloat16, {torch.get_num_threads()} threads: "
        f"{total / (8 * STRIDE) * 1e3:.2f} ms a token, of which the mixer {mix:.3%} and the experts' "
        f"numbers {share:.3%}"
    )


def ours(config: object, tokens: np.ndarray, neural: np.ndarray, entropy: np.ndarray) -> None:
    Mixer(config).score_stream(tokens, neural, 1.05 * neural - 0.02, entropy)


def dense(
    tokens: np.ndarray, neural: np.ndarray, entropy: np.ndarray, options: argparse.Namespace, repeated: int
) -> None:
    """Score and count a stream chunk by chunk; ``repeated`` looks every batch of positions up so many times."""
    mixer = PublishedMixer(options.vocab_size)
    padded = np.concatenate([np.zeros(2, np.int64), tokens])
    for chunk in range(0, len(tokens) - 1, options.chunk):
        end = min(chunk + options.chunk, len(tokens) - 1)
        for first in range(chunk, end, BATCH * STRIDE):
            positions = np.arange(first, min(first + BATCH * STRIDE, end))
            scored = np.arange(len(positions) * repeated) < len(positions)
            positions = np.tile(positions, repeated)
            contexts = np.stack([padded[positions + i] for i in range(3)], axis=1)
            mixer.score_batch(contexts, tokens[positions + 1], -neural[positions], entropy[positions], scored)
        mixer.observe_chunk(tokens[chunk : end + 1])


if __name__ == "__main__":
    main()
