"""``evalkit decompress``."""

from __future__ import annotations

import click

from evalkit.cli.options import TOKENIZER_HELP, artifact_and, module_options
from evalkit.plumbing.files import read_input, write_atomically

EXAMPLE = """Example:

  evalkit decompress final_model.int6.ptz novel.evk -o novel.txt --tokenizer fineweb.model
"""


@click.command("decompress", epilog=EXAMPLE)
@click.argument("artifact", required=False)
@click.argument("file", required=False)
@module_options
@click.option("-o", "--output", required=True, metavar="TEXT", help="The restored text.")
@click.option("--tokenizer", required=True, metavar="MODEL", help=TOKENIZER_HELP)
def command(
    artifact: str | None, file: str | None, module: str | None, weights: str | None, output: str, tokenizer: str
) -> None:
    """Restore the text that compress wrote to FILE; its options are in the file."""
    from evalkit.codec import decompress_text, read_header
    from evalkit.verbs.coding import announce_rate, open_for_coding, restored_options

    artifact, file = artifact_and(artifact, file, module, "FILE")
    data = read_input(file, "compressed file")
    header = read_header(data)
    session = open_for_coding(restored_options(header, artifact, tokenizer, module=module, weights=weights))
    announce_rate(session, lambda: max(header.tokens - 1, 0))
    raw = decompress_text(
        session.make_forecaster,
        data,
        session.tokenizer.decode,
        artifact_sha256=session.artifact.sha256 if session.artifact else "",
    )
    write_atomically(output, raw)
    click.echo(f"{output}: {len(raw):,} bytes")
