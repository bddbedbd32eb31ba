"""Train the recipes at a reduced size: validation loss beside a unigram model's, and what late QAT does to the weights.

    python bench/train_recipes.py --data DIR --tokenizer MODEL --out DIR [--steps 300] [--scale 128x4]
    python bench/train_recipes.py --qat ...                                  # recipes with QAT, in several ways each

Runs finished in DIR are not repeated, and ``--only`` trains some of the recipes. Without it, the table in RESULTS.md
(and train_recipes.png) is drawn anew. With ``--qat`` each recipe is trained with QAT off, with rounding in the forward
pass alone, and as it is; the weights are then measured as they are and rounded to the nearest point of QAT's grid.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from common import BENCH, parser_of, replace_table
from torch import Tensor

from evalkit.plumbing.ranks import Ranks
from evalkit.tokens.shards import open_shard
from evalkit.train.config import DataConfig
from evalkit.train.data import ByteCounter, find_shards, load_validation
from evalkit.train.files import read_json
from evalkit.train.folder import load_run
from evalkit.train.metrics import read_metrics
from evalkit.train.objective import Objective
from evalkit.train.qat import bits_of, grid_distance, round_to_grid
from evalkit.train.run import run_training
from evalkit.train.validation import Validator

RECIPES = ("baseline", "pr333", "pr592", "pr344", "pr634", "pr849")
QAT_VARIANTS = {"off": {"qat.enabled": "false"}, "rounding alone": {"qat.grid_pull": "0"}, "as the recipe": {}}
CPU = Ranks()


def train(recipe: str, options: argparse.Namespace, variant: str = "") -> Path:
    """Train a recipe, unless its run folder is finished; return the folder."""
    out: Path = options.out / (f"qat/{recipe}/{variant.replace(' ', '-')}" if variant else recipe)
    if not (out / "summary.json").exists():
        keys = {
            "train.batch_tokens": str(options.batch_tokens),
            "train.spans": "1",
            "train.seq_len": str(options.seq_len),
            "train.val_tokens": str(options.val_tokens),
            "train.validate_every": str(max(1, options.steps // 6)),
        } | QAT_VARIANTS.get(variant, {})
        size = {"scale": options.scale, "steps": options.steps, "resume": out.exists()}
        run_training(recipe, options.data, options.tokenizer, out, keys, **size)
    return out


def unigram_nats(data: Path, val_tokens: int) -> float:
    """Return the validation loss of add-one unigram frequencies of the training shards, nats per token."""
    train_shards, val = find_shards(data, DataConfig())
    counts = np.ones(1024)
    for path in train_shards:
        counts += np.bincount(open_shard(path), minlength=1024)
    tokens = load_validation(val, vocab_size=1024, limit=val_tokens)
    if tokens is None:
        raise SystemExit(f"{data} holds no validation shard")
    return float(-np.log(counts / counts.sum())[tokens[1:]].mean())


def qat_row(recipe: str, variant: str, options: argparse.Namespace) -> str:
    """Return distances to the grid, and bits per byte as they are and rounded to QAT's grid."""
    path = train(recipe, options, variant)
    run, raw = load_run(path), load_run(path, "raw")
    config = run.config
    tokens = load_validation(
        find_shards(options.data, config.data)[1], vocab_size=config.model.vocab_size, limit=config.train.val_tokens
    )
    assert tokens is not None
    validator = Validator(
        tokens,
        seq_len=config.train.seq_len,
        batch_tokens=config.train.val_batch_tokens,
        byte_counter=ByteCounter(options.tokenizer, config.model.vocab_size),
        ranks=CPU,
    )
    objective = Objective(config, CPU.device, compiled=False)

    def bpb(weights: Mapping[str, Tensor]) -> str:
        return f"{validator.run(objective, weights).val_bpb:.4f}"

    rounded = {
        name: round_to_grid(weight, bits, config.qat) if (bits := bits_of(name, config.qat)) else weight
        for name, weight in run.weights.items()
    }
    distances = (f"{grid_distance(weights, config.qat):.3f}" for weights in (raw.weights, run.weights))
    return f"| {' | '.join((recipe, variant, *distances, bpb(run.weights), bpb(rounded)))} |"


def write_recipes_table(options: argparse.Namespace) -> None:
    """Write the table and the picture of six finished runs."""
    unigram = unigram_nats(options.data, options.val_tokens)
    rows: list[str] = []
    curves: dict[str, list[tuple[int, float]]] = {}
    for recipe in RECIPES:
        summary = read_json(options.out / recipe / "summary.json")
        lines = read_metrics(options.out / recipe / "metrics.jsonl")
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
        f"`python bench/train_recipes.py --steps {options.steps} --scale {options.scale}`: "
        f"{options.steps} steps of {options.batch_tokens} tokens on the corpus, {options.threads} CPU thread(s), "
        f"validation in nats per token on\n{options.val_tokens} tokens of it. A unigram model of the training shards "
        f"has {unigram:.4f} nats per token ({unigram / math.log(2):.3f} bits). Grid distance:\nroot mean square "
        "distance of the exported weights to the QAT grid, in steps (evenly spread weights: 0.289).\n\n"
        "| recipe | raw | EMA | SWA | exported | bits/byte | nats below unigram | grid distance | seconds |\n"
        "|---|---:|---:|---:|---|---:|---:|---:|---:|\n" + "\n".join(rows) + "\n\n![curves](train_recipes.png)"
    )
    replace_table("recipes", table)
    draw(BENCH / "train_recipes.png", curves, unigram)
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


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with 1024-piece shards")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model")
    parser.add_argument("--out", type=Path, required=True, help="where the run folders go")
    parser.add_argument("--only", nargs="+", choices=RECIPES, help="train these and write no table")
    parser.add_argument("--qat", action="store_true", help="what late QAT does, recipe by recipe")
    parser.add_argument("--steps", type=int, default=300, help="steps of each run")
    parser.add_argument("--scale", default="128x4", help="WIDTHxDEPTH of every model")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens of a step")
    parser.add_argument("--seq-len", type=int, default=256, help="window in tokens")
    parser.add_argument("--val-tokens", type=int, default=65_536, help="validation targets")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.qat:
        rows = [
            "| recipe | late QAT | distance, raw | distance, exported | float | rounded |",
            "|---|---|" + "---:|" * 4,
        ]
        for recipe in options.only or RECIPES[1:]:  # the baseline has none
            for variant in QAT_VARIANTS:
                rows.append(qat_row(recipe, variant, options))
                print(rows[-1], flush=True)
        if not options.only:
            replace_table("qat", "\n".join(rows))
        return
    for recipe in options.only or RECIPES:
        train(recipe, options)
    if not options.only:
        write_recipes_table(options)


if __name__ == "__main__":
    main()
