"""``evalkit compress``."""

from __future__ import annotations

from typing import Any

import click

from evalkit.cli.options import artifact_and, model_options, score_options
from evalkit.plumbing.files import read_input, write_atomically

EXAMPLE = """Example:

  evalkit compress final_model.int6.ptz novel.txt -o novel.evk --tokenizer fineweb.model --mixer hedge

  evalkit compress --module model.py:make --weights model.pt novel.txt -o novel.evk --tokenizer bytes
"""


@click.command("compress", epilog=EXAMPLE)
@click.argument("artifact", required=False)
@click.argument("text", required=False)
@click.option("-o", "--output", required=True, metavar="FILE", help="The compressed file.")
@model_options(tokenizer_required=True)
@click.option(
    "--exact/--normalised",
    default=True,
    help="Restore every byte (the default), or only the text as the tokenizer normalises it, which may be smaller.",
)
def command(artifact: str | None, text: str | None, output: str, exact: bool, **options: Any) -> None:
    """Compress TEXT with ARTIFACT as the model: as many bits as its score says, and a decoder that proves it."""
    from evalkit.codec import compress_text
    from evalkit.verbs.coding import announce_rate, open_for_coding, span_of, stored_options

    artifact, text = artifact_and(artifact, text, options["module"], "TEXT")
    raw = read_input(text, "text")
    score = score_options(artifact, options | {"tokens": None, "text": text, "limit_tokens": 0})
    session = open_for_coding(score)
    announce_rate(session, lambda: len(session.tokenizer.encode(raw.decode("utf-8", "replace"))))
    coded = compress_text(
        session.make_forecaster,
        raw,
        session.tokenizer.encode,
        session.tokenizer.decode,
        bos=session.tokenizer.bos_id,
        exact=exact,
        artifact_sha256=session.artifact.sha256 if session.artifact else "",
        options=stored_options(session),
        span=span_of(session),
    )
    write_atomically(output, coded.data)
    size, bits = len(coded.data), coded.coded
    click.echo(f"{coded.raw_bytes:,} bytes of text, {coded.normalised_bytes:,} as the tokenizer normalises it")
    click.echo(f"{bits.words_bits:,} bits of code for {bits.tokens:,} tokens; the ledger says {bits.ledger_bits:,.1f}")
    ratio = f", {8 * size / coded.raw_bytes:.4f} bits per byte of the input" if coded.raw_bytes else ""
    click.echo(f"{output}: {size:,} bytes with header and {coded.extra_bytes:,} bytes of side information{ratio}")
    if coded.extra_bytes:
        click.echo(f"--normalised would leave out the {coded.extra_bytes:,} bytes, and restore the normalised text")
    if size > coded.raw_bytes:
        click.echo(
            f"{output} is {size - coded.raw_bytes:,} bytes larger than {text}: its header and checksum alone take "
            f"{size - bits.words_bits // 8 - coded.extra_bytes:,}, and longer texts gain more"
        )
