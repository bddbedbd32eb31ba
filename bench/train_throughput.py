"""Training throughput of recipes at full size, against a plain PyTorch loop over the same model.

    python bench/train_throughput.py [--recipes pr849 best] [--tokens 8192] [--seq-len 2048] [--repeats 3]
                                     [--precision float32] [--compile off|on]

The plain loop is the evalkit GPT as a module with float32 parameters, autocast to the precision and one AdamW; ours
is a whole step of the recipe (Muon, Adam, clipping, EMA), with and without QAT, and where the recipe switches repeated
blocks on part-way, both before that and after.
Prints a markdown table; the best repeat counts. MFU needs a GPU of known peak and is given for those.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import parser_of, print_header, print_row

from evalkit.model.gpt import GPT
from evalkit.plumbing.ranks import Ranks
from evalkit.recipes import load_recipe
from evalkit.tokens.shards import write_shard
from evalkit.train.automatic import settle, training_flops_per_token
from evalkit.train.config import RunConfig
from evalkit.train.data import TrainingTokens
from evalkit.train.folder import TrainingFolder
from evalkit.train.init import initial_weights
from evalkit.train.loop import LoopStart, Trainer
from evalkit.train.resolve import resolve

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def best_seconds(steps: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the shortest time of each step; the variants take turns, so that a busy machine is fair to all.

    On one CPU thread it is processor time, in which other load counts less.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(clock() - start)
    return {name: min(each) for name, each in times.items()}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--recipes", nargs="+", default=["pr849", "best"], help="what to train")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a step")
    parser.add_argument("--seq-len", type=int, default=2048, help="window in tokens")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--precision", choices=["bfloat16", "float32"], default="bfloat16", help="of the products, Newton-Schulz's too"
    )
    parser.add_argument("--compile", default="on", help="on or off; auto is on in long runs")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {a.threads} threads"
    peak = next((value for name, value in PEAK_FLOPS.items() if name in kind), None)
    print(f"full size, {a.tokens} tokens a step, windows of {a.seq_len}, {a.precision}, compile {a.compile}, {kind}\n")
    print_header("recipe", "loop", "s per step", "tokens/s", "GFLOP/s", "MFU", left=2)
    for recipe in a.recipes:
        config, best = timed(recipe, a, device)
        flops = training_flops_per_token(config.model, a.seq_len)
        for name, seconds in best.items():
            rate = a.tokens / seconds
            mfu = f"{rate * flops / peak:.1%}" if peak else "-"
            print_row(recipe, name, f"{seconds:.2f}", f"{rate:,.0f}", f"{rate * flops / 1e9:,.0f}", mfu)


def timed(recipe: str, a: argparse.Namespace, device: torch.device) -> tuple[RunConfig, dict[str, float]]:
    """Return a recipe's configuration and the seconds of a step of every loop."""
    config = resolve(
        load_recipe(recipe),
        {
            "train.batch_tokens": str(a.tokens),
            "train.spans": "1",
            "train.seq_len": str(a.seq_len),
            "train.precision": a.precision,
            "optimizer.ns_precision": a.precision,
            "train.compile": a.compile,
        },
        steps=1000,
    )
    config = settle(config, Ranks(device=device))
    vocabulary = config.model.vocab_size
    plain = GPT(config.model)
    plain.load_state_dict(initial_weights(config.model, config.init, seed=1))
    plain.to(device)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    tokens = torch.randint(0, vocabulary, (a.tokens + 1,), device=device)
    ids, targets = tokens[:-1].view(-1, a.seq_len), tokens[1:]

    def plain_step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=a.precision == "bfloat16"):
            logits = plain(ids)
        F.cross_entropy(logits.float().flatten(0, 1), targets).backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "train.bin"
        write_shard(shard, np.random.default_rng(0).integers(0, vocabulary, 200_000))
        trainer = Trainer(
            config,
            stream=TrainingTokens([shard], vocab_size=vocabulary),
            validator=None,
            ranks=Ranks(device=device),
            folder=TrainingFolder(path=Path(folder)),
        )

        def our_step(*, quantised: bool, looped: bool) -> None:
            trainer.qat_start_step = trainer.step if quantised else None
            trainer.loop_start = LoopStart(step=0, ruled_by="steps") if looped else None
            trainer.train_step()

        steps = {
            "plain PyTorch loop": plain_step,
            "evalkit": lambda: our_step(quantised=False, looped=True),
        }
        if config.qat.enabled:
            steps["evalkit, QAT on"] = lambda: our_step(quantised=True, looped=True)
        if config.model.layer_order and config.schedule.loop_start:
            steps["evalkit, before blocks repeat"] = lambda: our_step(quantised=False, looped=False)
        return config, best_seconds(steps, a.repeats, device)


if __name__ == "__main__":
    main()
