"""``evalkit data``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evalkit.cli.options import TOKENIZER_HELP
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_json
from evalkit.plumbing.table import format_pairs

EXAMPLE = """Examples:

  evalkit data download --out data --variant sp1024 --train-shards 1

  evalkit data tokenize docs.jsonl.zst --tokenizer fineweb_1024_bpe.model --out data/mine --val-documents 500

  evalkit data verify data/mine --tokenizer fineweb_1024_bpe.model --documents docs.jsonl.zst
"""


@click.group("data", epilog=EXAMPLE)
def command() -> None:
    """Download the challenge's data, make shards from documents, verify shards."""


@command.command("download", epilog=EXAMPLE)
@click.option("--out", default="data", show_default=True, metavar="DIR", help="Folder for datasets/ and tokenizers/.")
@click.option("--variant", default="sp1024", show_default=True, metavar="NAME", help="Tokenizer family.")
@click.option("--train-shards", type=int, default=1, show_default=True, help="Training shards; 0 for none.")
@click.option("--repo", metavar="OWNER/NAME", help="Dataset repository on the hub (default: the challenge's).")
@click.option("--revision", metavar="COMMIT", help="Commit, tag or branch (default: the one of the first download).")
@click.option("--endpoint", metavar="URL", help="Address of the hub or of a mirror.")
@click.option("--offline", is_flag=True, help="Touch no network: check that everything is there and unchanged.")
def download_command(out: str, repo: str | None, **options: Any) -> None:
    """Download shards and tokenizer from the hub: pinned to a commit, resumable, every hash checked."""
    from evalkit.data.download import DEFAULT_REPO, DownloadOptions, download

    result = download(DownloadOptions(out=Path(out), repo=repo or DEFAULT_REPO, **options))
    size = sum(file.size for file in result.files)
    click.echo(f"{len(result.files)} files, {size:,} bytes, every hash right; pinned to commit {result.commit}")


@command.command("tokenize", epilog=EXAMPLE)
@click.argument("documents", nargs=-1, required=True)
@click.option("--tokenizer", required=True, metavar="MODEL", help=TOKENIZER_HELP)
@click.option("--out", required=True, metavar="DIR", help="Folder to make; it must not exist, or be empty.")
@click.option("--val-documents", type=int, default=0, show_default=True, help="The first N documents are validation.")
@click.option("--shard-tokens", type=int, default=100_000_000, show_default=True, help="Tokens of a shard.")
@click.option("--prefix", default="fineweb", show_default=True, help="First part of the shards' names.")
@click.option("--workers", type=int, help="Processes (default: one a core, at most 8); the result is the same.")
@click.option(
    "--keep-unknown",
    is_flag=True,
    help="Write the unknown token for text that a tokenizer without byte fallback lacks, as some published shards do.",
)
def tokenize_command(documents: tuple[str, ...], tokenizer: str, out: str, workers: int | None, **options: Any) -> None:
    """Turn DOCUMENTS into shards: BOS and tokens of each, in order.

    A .jsonl or .json file holds {"text": ...} for each document, any other file one text; .gz and .zst are inflated.
    """
    from evalkit.data.tokenize import TokenizeOptions, default_workers, tokenize_documents

    manifest = tokenize_documents(
        TokenizeOptions(
            documents=tuple(map(Path, documents)),
            tokenizer=Path(tokenizer),
            out=Path(out),
            workers=default_workers() if workers is None else workers,
            **options,
        )
    )
    rows = [
        (
            name,
            f"{split['documents']:,} documents, {split['raw_bytes']:,} bytes, {split['tokens']:,} tokens in "
            f"{len(split['shards'])} shards"
            + (f"; {split['unknown_tokens']:,} unknown tokens stand for lost text" if split["unknown_tokens"] else ""),
        )
        for name, split in manifest["splits"].items()
    ]
    click.echo(format_pairs([*rows, ("folder", out)]))


@command.command("verify", epilog=EXAMPLE)
@click.argument("shards", nargs=-1, required=True)
@click.option("--tokenizer", metavar="MODEL", help=f"{TOKENIZER_HELP} Without it only headers and sizes are checked.")
@click.option("--documents", multiple=True, metavar="FILE", help="Texts that the shards were made from, in order.")
@click.option(
    "--ngram", type=int, default=13, show_default=True, help="Words of a sequence in the overlap test; 0: none."
)
@click.option("--unit", type=click.Choice(["words", "tokens"]), default="words", show_default=True)
@click.option("--overlap", type=float, default=0.5, show_default=True, help="Share from which a document is a finding.")
@click.option("--json", "json_path", metavar="FILE", help="Write findings and counts as JSON.")
def verify_command(tokenizer: str | None, documents: tuple[str, ...], json_path: str | None, **options: Any) -> int:
    """Verify SHARDS (files, folders, globs): headers, ids, bytes both ways, sources, overlap. Exit code 2 on findings.

    A folder's manifest.json says which shards are validation, else names such as x_val_000000.bin; others are training.
    """
    from evalkit.data.verify import Verification, VerifyOptions, verify

    result: Verification = verify(
        VerifyOptions(
            tokenizer=Path(tokenizer) if tokenizer else None, documents=tuple(map(Path, documents)), **options
        )
    )
    write_json(json_path, result.as_dict())
    click.echo(format_pairs(_rows(result.counts)))
    for finding in result.findings:
        click.echo(f"FOUND {finding}")
    if result.findings:
        raise InputError(f"{len(result.findings)} findings; these shards should not be used as they are")
    click.echo("clean")
    return 0


def _rows(counts: dict[str, object]) -> list[tuple[str, str]]:
    """Flatten nested counts: ``bytes.val.table``."""
    rows: list[tuple[str, str]] = []
    for name, value in counts.items():
        if isinstance(value, dict):
            rows += [(f"{name}.{inner}", text) for inner, text in _rows(value)]
        else:
            rows.append((name, f"{value:,}" if isinstance(value, int) else str(value)))
    return rows
