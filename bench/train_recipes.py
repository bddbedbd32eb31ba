"""Train the six recipes at a reduced size and compare their validation loss with a unigram model's.

    python bench/train_recipes.py --data DIR --tokenizer MODEL --out DIR [--steps 300] [--scale 128x4]

Runs finished in DIR are not repeated, and ``--only`` trains some of them. Once all six are there, their table in
RESULTS.md and train_recipes.png are drawn anew.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from recipe_arguments import parse_arguments
from results import replace_table

from evalkit.tokens.shards import open_shard
from evalkit.train.config import DataConfig
from evalkit.train.data import find_shards, load_validation
from evalkit.train.files import read_json
from evalkit.train.metrics import read_metrics
from evalkit.train.run import run_training

RECIPES = ("baseline", "pr333", "pr592", "pr344", "pr634", "pr849")


def unigram_nats(data: Path, val_tokens: int) -> float:
    """Return the validation loss of add-one unigram frequencies of the training shards, nats per token."""
    train, val = find_shards(data, DataConfig())
    counts = np.ones(1024)
    for path in train:
        counts += np.bincount(open_shard(path), minlength=1024)
    tokens = load_validation(val, vocab_size=1024, limit=val_tokens)
    if tokens is None:
        raise SystemExit(f"{data} holds no validation shard")
    return float(-np.log(counts / counts.sum())[tokens[1:]].mean())


def main() -> None:
    arguments = parse_arguments(__doc__, RECIPES)
    torch.set_num_threads(arguments.threads)
    for recipe in arguments.only or RECIPES:
        train(recipe, arguments)
    if not arguments.only:
        write_table(arguments)


def train(recipe: str, arguments: argparse.Namespace) -> None:
    """Train one recipe, unless its run folder is finished."""
    out = arguments.out / recipe
    if (out / "summary.json").exists():
        return
    keys = {
        "train.batch_tokens": str(arguments.batch_tokens),
        "train.spans": "1",
        "train.seq_len": str(arguments.seq_len),
        "train.val_tokens": str(arguments.val_tokens),
        "train.validate_every": str(max(1, arguments.steps // 6)),
    }
    run_training(
        recipe,
        arguments.data,
        arguments.tokenizer,
        out,
        keys,
        scale=arguments.scale,
        steps=arguments.steps,
        resume=out.exists(),
    )


def write_table(arguments: argparse.Namespace) -> None:
    """Write the table and the picture of six finished runs."""
    unigram = unigram_nats(arguments.data, arguments.val_tokens)
    rows: list[str] = []
    curves: dict[str, list[tuple[int, float]]] = {}
    for recipe in RECIPES:
        summary = read_json(arguments.out / recipe / "summary.json")
        lines = read_metrics(arguments.out / recipe / "metrics.jsonl")
        curves[recipe] = [(line["step"], line["val_nats"]) for line in lines if line.get("weights") == "raw"]
        losses = {kind: loss["val_nats"] for kind, loss in summary["validation"].items()}
        cells = [f"{losses[kind]:.4f}" if kind in losses else "-" for kind in ("raw", "ema", "swa")]
        kind, distance = summary["exported"], summary["grid_distance"]
        rows.append(
            f"| {recipe} | {' | '.join(cells)} | {kind} | {summary['validation'][kind]['val_bpb']:.4f} | "
            f"{unigram - losses[kind]:.3f} | {'-' if distance is None else f'{distance:.3f}'} | "
            f"{summary['seconds']:.0f} |"
        )
    table = (
        f"`python bench/train_recipes.py --steps {arguments.steps} --scale {arguments.scale}`: "
        f"{arguments.steps} steps of {arguments.batch_tokens} tokens on the corpus, {arguments.threads} CPU thread(s), "
        f"validation in nats per token on\n{arguments.val_tokens} tokens of it. A unigram model of the training shards "
        f"has {unigram:.4f} nats per token ({unigram / math.log(2):.3f} bits). Grid distance:\nroot mean square "
        "distance of the exported weights to the QAT grid, in steps (evenly spread weights: 0.289).\n\n"
        "| recipe | raw | EMA | SWA | exported | bits/byte | nats below unigram | grid distance | seconds |\n"
        "|---|---:|---:|---:|---|---:|---:|---:|---:|\n" + "\n".join(rows) + "\n\n![curves](train_recipes.png)"
    )
    replace_table("recipes", table)
    draw(Path(__file__).resolve().parent / "train_recipes.png", curves, unigram)
    print("\n".join(rows))


def draw(path: Path, curves: dict[str, list[tuple[int, float]]], unigram: float) -> None:
    """Draw validation loss over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for recipe, points in curves.items():
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", markersize=3, label=recipe)
    axes.axhline(unigram, color="grey", linestyle="--", label="unigram")
    axes.set_xlabel("step")
    axes.set_ylabel("validation nats per token (raw weights)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
