"""``evalkit board``."""

from __future__ import annotations

from pathlib import Path

import click

EXAMPLE = """Example:

  evalkit board records/track_10min_16mb/* score-mine.json -o board.html
"""


@click.command("board", epilog=EXAMPLE)
@click.argument("paths", metavar="FOLDER|REPORT.json...", nargs=-1, required=True)
@click.option("-o", "--output", default="board.html", show_default=True, metavar="FILE", help="The page.")
@click.option("--title", default="Board", show_default=True, help="Title of the page.")
def command(paths: tuple[str, ...], output: str, title: str) -> None:
    """Put many submission folders and reports on one HTML page that needs no network.

    A REPORT.json is what evalkit verify --json or evalkit score --json wrote. The page holds scores with intervals,
    sizes, the verdicts of verify and check, and the best score over time with its significance.
    """
    from evalkit.plumbing.errors import InputError
    from evalkit.plumbing.files import write_atomically
    from evalkit.plumbing.log import LOG
    from evalkit.verify.board import read_entries
    from evalkit.verify.board_page import board_page

    entries = []
    for path in map(Path, paths):
        try:
            entries += read_entries([path])
        except InputError as error:
            if len(paths) == 1:
                raise
            LOG.warning("left out: %s", error)
    if not entries:
        raise InputError("none of the paths is a submission folder or a report of evalkit")
    content = board_page(entries, title).encode()
    write_atomically(output, content)
    click.echo(f"{output}: {len(entries)} entries, {len(content):,} bytes")
