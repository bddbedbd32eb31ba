"""``evalkit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evalkit.cli.options import TOKENIZER_HELP, container_option, fit_option, target_bytes_option
from evalkit.plumbing.files import write_json
from evalkit.plumbing.table import format_pairs, format_table

EXAMPLE = """Examples:

  evalkit export runs/tiny -o tiny.evk --data data/sp1024

  evalkit export runs/pr634 -o final_model.evk --data data/sp1024 --fit --json export.json

  evalkit export runs/pr634 -o final_model.int6.ptz --container torch-xz --target-bytes 16000000 --code train_gpt.py
"""


@click.command("export", epilog=EXAMPLE)
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, metavar="FILE", help="The artifact.")
@click.option("--weights", type=click.Choice(["raw", "ema", "swa"]), help="Which weights (default: the recipe's).")
@container_option
@click.option("--data", metavar="DIR", help="Training shards to calibrate on (default: the model's own samples).")
@click.option("--calibration-tokens", type=int, default=65536, show_default=True, help="0 rounds to nearest: no GPTQ.")
@click.option("--force-calibration", is_flag=True, help="Calibrate even on shards that look like validation data.")
@click.option("--refine", type=int, default=0, show_default=True, metavar="STEPS",
              help="Train steps and gains after rounding, integers fixed (needs --data).")  # fmt: skip
@target_bytes_option
@click.option("--code", multiple=True, metavar="FILE", help="Code that ships with the artifact.")
@fit_option
@click.option("--tokenizer", metavar="MODEL", help=f"Its hash goes into the artifact. {TOKENIZER_HELP}")
@click.option("--json", "json_path", metavar="FILE", help="Write sizes, notes and what was tried as JSON.")
def command(
    checkpoint: str,
    output: str,
    weights: str | None,
    data: str | None,
    code: tuple[str, ...],
    tokenizer: str | None,
    json_path: str | None,
    **options: Any,
) -> None:
    """Turn the run in CHECKPOINT (a folder of evalkit train) into an artifact: quantise, prune, encode."""
    from evalkit.train.export.pipeline import ExportConfig, export_run
    from evalkit.train.folder import load_run

    result = export_run(
        load_run(Path(checkpoint), weights),
        Path(output),
        ExportConfig(
            calibration_data=Path(data) if data else None,
            code=tuple(map(Path, code)),
            tokenizer=Path(tokenizer) if tokenizer else None,
            **options,
        ),
    )
    total, target_bytes = result.file.n_bytes + result.code_bytes, options["target_bytes"]
    write_json(json_path, result.to_dict() | {name: options[name] for name in ("container", "target_bytes")})
    if result.table:
        rows = [
            [
                row.label,
                f"{row.total_bytes:,}",
                "yes" if row.fits else "no",
                "" if row.loss is None else f"{row.loss:.5f}",
            ]
            for row in result.table
        ]
        click.echo(format_table(["tried", "bytes with code", "fits", "nats per token"], rows))
    pairs = [
        ("artifact", f"{result.file.path}: {result.file.n_bytes:,} bytes, sha256 {result.file.sha256}"),
        ("with code", f"{total:,} bytes, {target_bytes - total:,} under the target of {target_bytes:,}"),
    ]
    pairs += [("note", note) for note in result.notes]
    click.echo(format_pairs(pairs))
