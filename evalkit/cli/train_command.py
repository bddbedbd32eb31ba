"""``evalkit train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from evalkit.cli.options import training_options
from evalkit.plumbing.progress import format_seconds
from evalkit.plumbing.settings import split_settings
from evalkit.plumbing.table import format_pairs
from evalkit.recipes import recipe_names

EXAMPLE = f"""Examples:

  evalkit train --recipe tiny --data data/sp1024 --tokenizer fineweb_1024_bpe.model --out runs/tiny

  evalkit train --recipe pr849 --scale 128x4 --steps 300 --data data/sp1024 --out runs/small

  torchrun --nproc-per-node 8 -m evalkit train --recipe pr634 --data data/sp1024 --out runs/pr634

Recipes: {", ".join(recipe_names())}, or a .toml file.
"""


@click.command("train", epilog=EXAMPLE)
@training_options(tokenizer_required=False)
def command(
    recipe: str | None, data: str, tokenizer: str | None, out: str, settings: tuple[str, ...], **options: Any
) -> int:
    """Train a base model: shards in, weights out, interruptible and resumable to the same bits."""
    from evalkit.train.run import run_training

    model = Path(tokenizer) if tokenizer else None
    result = run_training(recipe, Path(data), model, Path(out), split_settings(settings), **options)
    rows = [
        ("run", f"{result.folder.path}: {result.status}"),
        ("steps", f"{result.steps:,}, {result.tokens:,} tokens in {format_seconds(result.seconds)}"),
        ("train loss", f"{result.train_nats:.4f} nats per token"),
    ]
    for kind, validation in result.validation.items():
        bpb = f", {validation.val_bpb:.4f} bits per byte" if validation.val_bpb is not None else ""
        mark = " (exported)" if kind == result.exported else ""
        rows.append((f"{kind} weights", f"{validation.val_loss:.4f} nats per token{bpb}{mark}"))
    click.echo(format_pairs(rows))
    if result.status != "done":
        known = ["--data", data, *(["--tokenizer", tokenizer] if tokenizer else [])]
        click.echo(f"interrupted; continue with: {shlex.join(['evalkit', 'train', '--resume', '--out', out, *known])}",
                   err=True)  # fmt: skip
        return 130
    return 0
