"""``evalkit report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evalkit.cli.options import scored_stream_options
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import check_outputs, write_atomically
from evalkit.plumbing.log import LOG

EXAMPLE = """Examples:

  evalkit report score.json --nll score.npz --check check.json -o report.html

  evalkit report new.json old.json -o differences.html
"""


@click.command("report", epilog=EXAMPLE)
@click.argument("reports", metavar="REPORT.json", nargs=-1, required=True)
@click.option("--nll", multiple=True, metavar="FILE.npz", help="Per-token file, one a report (default: beside it).")
@click.option("--check", metavar="CHECK.json", help="What evalkit check --json wrote.")
@click.option("-o", "--output", default="report.html", show_default=True, metavar="FILE", help="The page.")
@scored_stream_options
@click.option("--title", help="Title of the page (default: the artifact's name, or those of the two reports).")
def command(reports: tuple[str, ...], nll: tuple[str, ...], check: str | None, output: str, **options: Any) -> None:
    """Render a report (the JSON of evalkit score) as one HTML page that needs no network.

    With two reports of the same tokens: where do they differ, by document and by token.
    """
    from evalkit.report.load import files_behind, find_token_scores, read_report, read_token_scores
    from evalkit.report.page import PageOptions, build_page
    from evalkit.report.pair import build_pair_page

    if len(reports) > 2:
        raise InputError(f"{len(reports)} reports; a page is about one, or about the difference of two")
    if nll and len(nll) != len(reports):
        raise InputError(f"{len(nll)} --nll files for {len(reports)} reports; give one for each, in order")
    if check is not None and len(reports) == 2:
        raise InputError("--check goes with the page of one report")
    opened = [read_report(path) for path in reports]
    check_outputs({"--output": output}, [file for saved in opened for file in files_behind(saved)])
    paths = nll or [find_token_scores(saved) for saved in opened]
    LOG.debug("per-token files: %s", ", ".join(str(path or "none beside the report") for path in paths))
    scores = [read_token_scores(path, saved) if path else None for path, saved in zip(paths, opened, strict=True)]
    left_out: list[str] = []
    if len(opened) == 2:
        runs = [(saved, held) for saved, held in zip(opened, scores, strict=True) if held is not None]
        if missing := [saved.path for saved, held in zip(opened, scores, strict=True) if held is None]:
            raise InputError(
                f"{missing[0]} has no per-token file beside it; comparing two runs needs --dump-nll of both "
                f"(name the files with --nll A.npz --nll B.npz)"
            )
        page = build_pair_page(*runs, **options)
    else:
        found = Path(check) if check else None
        page, left_out = build_page(opened[0], PageOptions(scores=scores[0], check=found, **options))
    content = page.encode()
    write_atomically(output, content)
    click.echo(f"{output}: {len(content):,} bytes")
    for sentence in left_out:
        click.echo(f"not in it: {sentence}")
