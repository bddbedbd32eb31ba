"""``evalkit report``."""

from __future__ import annotations

from pathlib import Path

import click

from evalkit.plumbing.files import check_outputs, write_atomically
from evalkit.plumbing.log import LOG

EXAMPLE = """Example:

  evalkit report score.json --nll score.npz --check check.json -o report.html
"""


@click.command("report", epilog=EXAMPLE)
@click.argument("report")
@click.option("--nll", metavar="FILE.npz", help="Per-token file (default: beside the report, same name).")
@click.option("--check", metavar="CHECK.json", help="What evalkit check --json wrote.")
@click.option("-o", "--output", default="report.html", show_default=True, metavar="FILE", help="The page.")
@click.option("--tokens", metavar="GLOB", help="The shards that were scored (default: as the report names them).")
@click.option("--tokenizer", metavar="MODEL", help="SentencePiece model (default: as the report names it).")
@click.option("--title", help="Title of the page (default: the artifact's name).")
def command(
    report: str,
    nll: str | None,
    check: str | None,
    output: str,
    tokens: str | None,
    tokenizer: str | None,
    title: str | None,
) -> None:
    """Render REPORT (the JSON of evalkit score) as one HTML page that needs no network."""
    from evalkit.report.load import files_behind, find_token_scores, read_report, read_token_scores
    from evalkit.report.page import PageOptions, build_page

    opened = read_report(report)
    check_outputs({"--output": output}, files_behind(opened))
    scores_path = nll or find_token_scores(opened)
    LOG.debug("per-token file: %s", scores_path or "none beside the report")
    page, left_out = build_page(
        opened,
        PageOptions(
            scores=read_token_scores(scores_path, opened) if scores_path else None,
            check=Path(check) if check else None,
            tokens=tokens,
            tokenizer=tokenizer,
            title=title,
        ),
    )
    content = page.encode()
    write_atomically(output, content)
    click.echo(f"{output}: {len(content):,} bytes")
    for sentence in left_out:
        click.echo(f"not in it: {sentence}")
