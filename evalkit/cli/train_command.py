"""``evalkit train``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from evalkit.errors import InputError
from evalkit.progress import format_seconds
from evalkit.recipes import recipe_names
from evalkit.table import format_pairs

EXAMPLE = f"""Examples:

  evalkit train --recipe tiny --data data/sp1024 --tokenizer fineweb_1024_bpe.model --out runs/tiny

  evalkit train --recipe pr849 --scale 128x4 --steps 300 --data data/sp1024 --out runs/small

  torchrun --nproc-per-node 8 -m evalkit train --recipe pr634 --data data/sp1024 --out runs/pr634

Recipes: {", ".join(recipe_names())}, or a .toml file.
"""


@click.command("train", epilog=EXAMPLE)
@click.option("--recipe", required=True, metavar="NAME", help="What to train, or a recipe.toml of an earlier run.")
@click.option("--data", default="data", show_default=True, metavar="DIR", help="Folder with token shards.")
@click.option("--tokenizer", metavar="MODEL", help="SentencePiece model, for losses in bits per byte.")
@click.option("--out", default="runs/last", show_default=True, metavar="DIR", help="Run folder.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Override, such as train.seq_len=1024.")
@click.option("--scale", metavar="SIZE", help="Keep the features at a smaller size: WIDTHxDEPTH, or a fraction.")
@click.option("--steps", type=int, help="Stop after this many steps (no clock then, unless --max-seconds is given).")
@click.option("--max-seconds", type=float, help="Stop after this many seconds of training.")
@click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped.")
@click.option("--quiet", "-q", is_flag=True, help="No progress line.")
def command(
    recipe: str,
    data: str,
    tokenizer: str | None,
    out: str,
    settings: tuple[str, ...],
    scale: str | None,
    steps: int | None,
    max_seconds: float | None,
    resume: bool,
    quiet: bool,
) -> int:
    """Train a base model: shards in, weights out, interruptible and resumable to the same bits."""
    from train.run import run_training

    result = run_training(
        recipe,
        Path(data),
        Path(tokenizer) if tokenizer else None,
        Path(out),
        overrides_of(settings),
        scale=scale,
        steps=steps,
        max_seconds=max_seconds,
        resume=resume,
        progress=None if quiet else sys.stderr,
    )
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
        click.echo(f"interrupted: continue with --resume --out {out}", err=True)
        return 130
    return 0


def overrides_of(settings: tuple[str, ...]) -> dict[str, str]:
    """Split ``SECTION.KEY=VALUE`` strings.

    Raises:
        InputError: a setting has another form.
    """
    overrides = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or "." not in name:
            raise InputError(f"--set {setting!r}: expected SECTION.KEY=VALUE, for example train.seq_len=1024")
        overrides[name.strip()] = value.strip()
    return overrides
