"""``evalkit probe``."""

from __future__ import annotations

from typing import Any

import click

from evalkit.plumbing.files import write_json

EXAMPLE = """Example:

  evalkit probe emit --kind ngram --tokens-count 200000 --out probe

  (run the program on probe/whole and on probe/prefix, note the losses that it reports)

  evalkit probe judge probe --val-loss 6.2144 --prefix-loss 6.2089
"""


@click.group("probe", epilog=EXAMPLE)
def command() -> None:
    """Audit a program that cannot be imported, from the loss that it reports on a stream of known entropy."""


@command.command("emit", epilog=EXAMPLE)
@click.option("--kind", type=click.Choice(["uniform", "ngram"]), default="ngram", show_default=True)
@click.option("--tokens-count", type=int, default=131073, show_default=True, help="Tokens of the whole stream.")
@click.option("--out", required=True, metavar="DIR", help="Folder for the shards and the sealed record.")
@click.option("--vocab-size", type=int, default=1024, show_default=True, help="Ids are below this.")
@click.option("--multiple", type=int, default=2048, show_default=True, help="Sequence length of the program.")
@click.option("--like", metavar="GLOB", help="Shards whose token pairs the ngram source takes.")
@click.option("--seed", type=int, help="Repeat a stream; by default it is drawn anew, and nobody can know it.")
def emit_command(kind: Any, tokens_count: int, out: str, like: str | None, **options: Any) -> None:
    """Write challenge-format shards drawn from a known source: DIR/whole, and DIR/prefix, which it begins with."""
    from evalkit.legality.probe import emit
    from evalkit.tokens.stream import open_shards

    stream = open_shards(like) if like else None
    emitted = emit(kind, tokens_count, out, like=stream.read(0, len(stream)) if stream else None, **options)
    click.echo(f"{emitted.whole}: {emitted.tokens:,} tokens, {emitted.prefix}: {emitted.prefix_tokens:,}")
    click.echo(f"no legal program can expect to report less than {emitted.entropy_nats:.6f} nats per token")
    click.echo(f"commitment {emitted.commitment}")


@command.command("judge", epilog=EXAMPLE)
@click.argument("folder")
@click.option("--val-loss", metavar="NATS", help="Nats per token that the program reported on DIR/whole.")
@click.option("--prefix-loss", metavar="NATS", help="The same on DIR/prefix; together they give the suffix.")
@click.option("--nll", metavar="FILE", help="Nats of every position (npz with nll) in place of the losses.")
@click.option("--json", "json_path", metavar="FILE", help="Write verdict and findings as JSON.")
def judge_command(folder: str, json_path: str | None, **reported: Any) -> int:
    """Judge what a program reported on the probe in FOLDER."""
    from evalkit.legality.probe import judge

    report = judge(folder, **reported)
    write_json(json_path, report.to_dict())
    click.echo(report.summary())
    return 3 if report.verdict == "illegal" else 0
