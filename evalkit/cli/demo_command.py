"""``evalkit demo``."""

from __future__ import annotations

from pathlib import Path

import click

from evalkit.plumbing.constants import DEMO_STEPS

EXAMPLE = """Example:

  evalkit demo --out evalkit-demo
"""


@click.command("demo", epilog=EXAMPLE)
@click.option("--out", default="evalkit-demo", show_default=True, metavar="DIR", help="Folder for everything.")
@click.option("--steps", type=click.IntRange(min=1), default=DEMO_STEPS, show_default=True, help="Training steps.")
def command(out: str, steps: int) -> None:
    """Train, export, score and check a tiny model on text that every machine has: one to two minutes, no download."""
    from evalkit.verbs.demo import run_demo
    from evalkit.verbs.run import describe

    click.echo(describe(run_demo(Path(out), steps).stages))
    click.echo(f"everything is in {out}: model.evk is the artifact, report.json the numbers", err=True)
    click.echo(f"next: evalkit inspect {Path(out) / 'model.evk'}", err=True)
