"""``evalkit run``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from evalkit.cli.options import limit_tokens_option, stride_option, training_options, ttt_option
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.settings import split_settings

EXAMPLE = """Example:

  evalkit run --recipe tiny --data data/sp1024 --tokenizer fineweb_1024_bpe.model --out runs/tiny --max-seconds 120

  evalkit run --recipe best --data data/sp1024 --tokenizer fineweb_1024_bpe.model --out runs/best --fit --ttt \
    --code train_gpt.py --submission records/best --author Ada
"""


@click.command("run", epilog=EXAMPLE)
@training_options(tokenizer_required=True)
@click.option("--tokens", metavar="GLOB", help="What to score (default: the validation shards in --data).")
@click.option(
    "--container",
    type=click.Choice(["evalkit", "torch-zstd", "torch-xz", "torch-zlib", "torch-brotli"]),
    default="evalkit",
    show_default=True,
    help="evalkit's own, or the published layouts.",
)
@click.option("--target-bytes", type=int, default=SIZE_CAP, show_default=True, help="Cap on artifact plus code.")
@click.option("--calibration-tokens", type=int, default=65536, show_default=True, help="0 rounds to nearest: no GPTQ.")
@click.option("--code", multiple=True, metavar="FILE", help="Code that ships with the artifact.")
@click.option("--submission", metavar="DIR", help="Write a submission folder of the last score, and verify it.")
@click.option("--author", default="", help="Who submits, for --submission.")
@click.option("--name", default="", help="Name of the submission (default: the recipe).")
@click.option(
    "--fit", is_flag=True, help="Give every tensor its own step, so that the file just fits at the lowest loss."
)
@limit_tokens_option
@stride_option
@click.option(
    "--mixer",
    type=click.Choice(["none", "hedge"]),
    default="none",
    show_default=True,
    help="Score a second time, with online experts mixed in.",
)
@ttt_option
@click.option("--budget", type=float, default=60.0, show_default=True, help="Seconds for each legality check; 0: none.")
@click.option("--decode", type=int, default=0, metavar="N", help="Compress and decompress N tokens in each check.")
@click.option("--enforce-cap", is_flag=True,
              help=f"Exit with 3 if artifact and code are over {SIZE_CAP:,} bytes.")  # fmt: skip
def command(
    recipe: str | None,
    data: str,
    tokenizer: str,
    out: str,
    tokens: str | None,
    settings: tuple[str, ...],
    scale: str | None,
    steps: int | None,
    max_seconds: float | None,
    resume: bool,
    container: str,
    target_bytes: int,
    calibration_tokens: int,
    code: tuple[str, ...],
    submission: str | None,
    author: str,
    name: str,
    fit: bool,
    limit_tokens: int,
    stride: int,
    mixer: str,
    ttt: bool,
    budget: float,
    decode: int,
    enforce_cap: bool,
) -> int:
    """Train, export, score, check and (--submission) submit: one command, one report (OUT/report.json)."""
    from evalkit.verbs.run import Interrupted, PipelineOptions, describe, run_pipeline
    from evalkit.verbs.submit import SubmitOptions
    from evalkit.verify.text import as_text
    from evalkit.verify.verify import verify_folder

    if submission is not None and not author:
        raise InputError("--submission names its author: add --author NAME")
    variants: list[tuple[str, bool]] = [("none", False)]
    if (mixer, ttt) != ("none", False):
        variants.append((mixer, ttt))
    try:
        report = run_pipeline(
            PipelineOptions(
                recipe=recipe,
                data=Path(data),
                tokenizer=Path(tokenizer),
                out=Path(out),
                tokens=tokens,
                settings=split_settings(settings),
                scale=scale,
                steps=steps,
                max_seconds=max_seconds,
                resume=resume,
                container=container,
                target_bytes=target_bytes,
                fit=fit,
                calibration_tokens=calibration_tokens,
                code=tuple(map(Path, code)),
                submission=None
                if submission is None
                else SubmitOptions(
                    folder=Path(submission),
                    name=name or str(recipe),
                    author=author,
                    date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                ),
                limit_tokens=limit_tokens,
                variants=tuple(variants),
                check_seconds=budget,
                decode_tokens=decode,
                stride=stride,
            ),
        )
    except Interrupted as error:
        click.echo(f"evalkit: {error}", err=True)
        return 130
    click.echo(describe(report.stages))
    illegal = any(stage.verdict == "illegal" for stage in report.stages.values())
    if submission is not None:
        click.echo("\n" + as_text(verify_folder(Path(submission))))
    over = enforce_cap and report.export["total_bytes"] > SIZE_CAP
    return 3 if illegal or over else 0
