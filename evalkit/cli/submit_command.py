"""``evalkit submit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evalkit.plumbing.table import format_pairs

EXAMPLE = """Example:

  evalkit submit records/mine --report seed1.json --report seed2.json --code train_gpt.py --name Nine --author Ada
"""


@click.command("submit", epilog=EXAMPLE)
@click.argument("folder", metavar="DIR")
@click.option("--report", "reports", multiple=True, required=True, metavar="REPORT.json", help="A score; one a seed.")
@click.option("--check", "checks", multiple=True, metavar="CHECK.json", help="Its legality check; one a report.")
@click.option("--artifact", "artifacts", multiple=True, metavar="FILE", help="Artifacts (default: as the reports say).")
@click.option("--code", multiple=True, metavar="FILE", help="Code that ships with the artifact.")
@click.option("--log", "logs", multiple=True, metavar="FILE", help="Training log to copy.")
@click.option("--name", required=True, help="Name of the submission.")
@click.option("--author", required=True, help="Who submits.")
@click.option("--github-id", default="", help="Their account.")
@click.option("--blurb", default="", help="One sentence (default: generated from the report).")
@click.option("--date", metavar="DATE", help="ISO date (default: now, UTC).")
def command(folder: str, reports: tuple[str, ...], date: str | None, **options: Any) -> None:
    """Make the submission folder DIR from reports: submission.json, README.md, log, code, sizes; then verify it."""
    from datetime import UTC, datetime

    from evalkit.report.load import read_report
    from evalkit.verbs.submit import SubmitOptions, submit
    from evalkit.verify.text import as_text
    from evalkit.verify.verify import verify_folder

    options |= {name: tuple(map(Path, options[name])) for name in ("code", "logs", "checks", "artifacts")}
    date = date or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    values = submit([read_report(path) for path in reports], SubmitOptions(folder=Path(folder), date=date, **options))
    spread = f" (sd {values['val_bpb_sd']:.6f} over {len(values['runs'])} runs)" if values["val_bpb_sd"] else ""
    click.echo(
        format_pairs(
            [
                ("folder", folder),
                ("val_bpb", f"{values['val_bpb']:.6f}{spread}"),
                ("val_loss", f"{values['val_loss']:.6f}"),
                ("bytes", f"{values['bytes_total']:,} with {values['bytes_code']:,} of code, "
                          f"{values['bytes_headroom']:,} under the cap"),
                ("legal", ", ".join(run["verdict"] or "not checked (evalkit check)" for run in values["runs"])),
                *(("score again", line) for line in values["score_again"]),
            ]
        )
    )  # fmt: skip
    click.echo("\n" + as_text(verify_folder(Path(folder))))
