"""``evalkit verify``."""

from __future__ import annotations

import click

EXAMPLE = """Example:

  evalkit verify records/track_10min_16mb/2026-04-05_Mine --json verify.json --html verify.html
"""


@click.command("verify", epilog=EXAMPLE)
@click.argument("folder", metavar="FOLDER")
@click.option("--json", "json_path", metavar="FILE", help="Write the report as JSON.")
@click.option("--html", "html_path", metavar="FILE", help="Write the report as one HTML page with the lines quoted.")
def command(folder: str, json_path: str | None, html_path: str | None) -> int:
    """Verify that a submission FOLDER tells one story: script, logs, submission.json and sizes, within the rules.

    Nothing in it is executed. Exit code 0: consistent, or incomplete; 3: a claim is contradicted by its own evidence.
    """
    from evalkit.plumbing.files import write_atomically, write_json
    from evalkit.verify.page import page
    from evalkit.verify.text import as_text
    from evalkit.verify.verify import verify_folder

    report = verify_folder(folder)
    write_json(json_path, report.to_dict())
    if html_path:
        write_atomically(html_path, page(report).encode())
    click.echo(as_text(report))
    return 3 if report.verdict == "contradicted" else 0
