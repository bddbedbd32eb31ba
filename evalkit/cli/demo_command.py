"""``evalkit demo``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

EXAMPLE = """Example:

  evalkit demo --out evalkit-demo
"""


@click.command("demo", epilog=EXAMPLE)
@click.option("--out", default="evalkit-demo", show_default=True, metavar="DIR", help="Folder for everything.")
@click.option("--seconds", type=float, default=30.0, show_default=True, help="Training time.")
def command(out: str, seconds: float) -> None:
    """Train, export, score and check a tiny model on text that every machine has: under two minutes, no download."""
    from evalkit.demo import run_demo

    run_demo(Path(out), seconds, say=click.echo, progress=sys.stderr if sys.stderr.isatty() else None)
