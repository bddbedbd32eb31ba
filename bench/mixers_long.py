"""A long synthetic stream inside the memory bound, and what a bound costs in bits per byte.

    python bench/mixers_long.py                       # the default preset beside a network, 62 million tokens
    python bench/mixers_long.py --preset best --no-network
    python bench/mixers_long.py --cost --preset best

The stream is drawn on the fly: tokens from a random second-order Markov chain with many rare continuations, phrases
repeated from the last 100,000 tokens. ``--like text`` has about as much news as FineWeb: 1.00 million n-grams (up to
4-grams) after 622,787 tokens, 1.80 times as many for twice the length, 3.9 nats a token under the default preset
without a network (FineWeb's prefix: 0.85 million, 1.78, 3.7). ``--like noise`` has far more: 1.49 million, 1.90, 6.1.
What a network would say of each token is drawn too. Times are seconds of scoring, learning and committing for each
million tokens, and for the whole stream.
"""

from __future__ import annotations

import math
import resource
import time
from dataclasses import replace

import numpy as np
from common import load_tokens, network_inputs, parser_of, print_header, print_row
from numba import njit

from evalkit.mixers import Mixer, best_config, default_config

SPAN = 65536
"""Tokens between two commits."""


STREAMS = {"text": (0.12, 8.0), "noise": (0.03, 1.5)}
"""How often a phrase begins that was there before, and how skewed a context's continuations are."""


@njit
def draw(out: np.ndarray, history: np.ndarray, seed: int, vocab_size: int, repeat: float, skew: float) -> None:
    """Fill ``out`` int64[n]; ``history`` int64[100000] holds the tokens before it and is moved along."""
    np.random.seed(seed)
    size = len(history)
    left, source = 0, 0
    a, b = history[size - 2], history[size - 1]
    for i in range(len(out)):
        if left > 0:
            y = history[(i + source) % size]
            left -= 1
        else:
            u = np.random.random()
            if u < 0.001:
                y = 1
            elif u < repeat:
                left = np.random.randint(3, 12)
                source = np.random.randint(0, size)
                y = history[(i + source) % size]
            else:
                # A rank with a Zipf-like tail, scattered by the two tokens before: a Markov chain without a table.
                rank = int(math.exp(np.random.random() ** skew * math.log(vocab_size - 2.0)))
                y = 2 + ((a * 7919 + b * 104729) % 4093 + rank * 31 + (rank * rank) % 7 * b) % (vocab_size - 2)
        out[i] = y
        history[i % size] = y
        a, b = b, y


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--preset", choices=("default", "best"), default="default")
    parser.add_argument("--like", choices=tuple(STREAMS), default="text", help="how much is new in the stream")
    parser.add_argument("--millions", type=int, default=62)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--memory", type=float, default=2.0, help="bound of the tables, GiB")
    parser.add_argument("--no-network", action="store_true", help="the online experts alone")
    parser.add_argument("--every", type=int, default=4, help="million tokens for each row")
    parser.add_argument("--cost", action="store_true", help="bound against bits per byte on the FineWeb prefix instead")
    options = parser.parse_args()
    preset = default_config if options.preset == "default" else best_config
    if options.cost:
        cost(options.preset)
        return
    network = not options.no_network
    config = preset(options.vocab, network=network, memory_bytes=int(options.memory * 2**30))
    mixer = Mixer(config)
    history = np.random.default_rng(0).integers(0, options.vocab, size=100_000)
    tokens = np.empty(options.millions * 1_000_000, dtype=np.uint16)
    for m in range(options.millions):
        chunk = np.empty(1_000_000, dtype=np.int64)
        draw(chunk, history, m, options.vocab, *STREAMS[options.like])
        tokens[m * 1_000_000 : (m + 1) * 1_000_000] = chunk
    warm_up = preset(options.vocab, network=network)
    drawn = network_inputs(1 << 20)  # a million tokens' worth, used over and over

    def said(start: int, stop: int) -> list[np.ndarray]:
        first = start % ((1 << 20) - SPAN)
        return [x[first : first + stop - start] for x in drawn] if network else []

    Mixer(warm_up).score(tokens, 1, 2000, *said(1, 2000))  # compiles
    print(
        f"a stream like {options.like}, {options.preset} preset, {len(config.experts)} experts, "
        f"bound {options.memory} GiB\n"
    )
    columns = ("s / million", "nats / token", "MB of tables", "million records", "peak MB of process")
    print_header("million tokens", *columns, left=0)
    done, total, wall, cpu = 1, 0.0, 0.0, 0.0
    step = options.every * 1_000_000
    while done < len(tokens):
        since, nats = done, 0.0
        stop = min((done // step + 1) * step, len(tokens))
        began, began_cpu = time.perf_counter(), time.process_time()
        for start in range(since, stop, SPAN):
            done = min(start + SPAN, stop)
            nats += float(mixer.score(tokens, start, done, *said(start, done)).sum())
            mixer.commit(done)
        seconds = time.perf_counter() - began
        wall, cpu, total = wall + seconds, cpu + time.process_time() - began_cpu, total + nats
        report = mixer.report()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print_row(
            f"{done / 1e6:.0f}", f"{seconds / (done - since) * 1e6:.2f}", f"{nats / (done - since):.4f}",
            f"{sum(report['table_bytes'].values()) / 1e6:.0f}", f"{sum(report['records'].values()) / 1e6:.1f}",
            f"{peak:.0f}",
        )  # fmt: skip
    average = total / (len(tokens) - 1)
    print(f"\ntotal {wall:.1f} s by the clock, {cpu:.1f} s of processor time; {average:.5f} nats a token")


def cost(name: str) -> None:
    """Print bits per byte on the FineWeb prefix under smaller and smaller bounds."""
    tokens = load_tokens("fineweb_val_prefix/sp1024")
    n_bytes = 1_492_524
    preset = default_config if name == "default" else best_config
    config = preset(1024, network=False)
    print(f"{name} preset, no network\n")
    print_header("bound", "bits per byte", "records")
    for bound in (2 * 2**30, 128 * 2**20, 64 * 2**20, 32 * 2**20, 16 * 2**20, 8 * 2**20, 4 * 2**20):
        mixer = Mixer(replace(config, memory_bytes=bound))
        nats = mixer.score_stream(tokens).sum()
        records = sum(mixer.report()["records"].values())
        print_row(f"{bound / 2**20:.0f} MiB", f"{nats / math.log(2) / n_bytes:.4f}", f"{records:,}")


if __name__ == "__main__":
    main()
