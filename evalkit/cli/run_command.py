"""``evalkit run``."""

from __future__ import annotations

from pathlib import Path

import click

from evalkit.cli.options import limit_tokens_option, stride_option, training_options, ttt_option
from evalkit.plumbing.constants import BUDGET_SECONDS, SIZE_CAP
from evalkit.plumbing.settings import split_settings

EXAMPLE = """Example:

  evalkit run --recipe tiny --data data/sp1024 --tokenizer fineweb_1024_bpe.model --out runs/tiny --max-seconds 120
"""


@click.command("run", epilog=EXAMPLE)
@training_options(tokenizer_required=True)
@click.option("--tokens", metavar="GLOB", help="What to score (default: the validation shards in --data).")
@click.option(
    "--container",
    type=click.Choice(["evalkit", "torch-zstd", "torch-xz", "torch-zlib"]),
    default="evalkit",
    show_default=True,
    help="evalkit's own, or the published layouts.",
)
@click.option("--target-bytes", type=int, default=SIZE_CAP, show_default=True, help="Cap on the artifact.")
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
@click.option(
    "--budget", type=float, default=BUDGET_SECONDS, show_default=True, help="Most seconds of a check; 0: none."
)
@click.option("--decode", type=int, default=0, metavar="N", help="Compress and decompress N tokens in each check.")
@click.option("--enforce-cap", is_flag=True, help=f"Exit with 3 if the artifact is over {SIZE_CAP:,} bytes.")
def command(
    recipe: str,
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
    fit: bool,
    limit_tokens: int,
    stride: int,
    mixer: str,
    ttt: bool,
    budget: float,
    decode: int,
    enforce_cap: bool,
) -> int:
    """Train, export, score and check in one go: one command, one report (OUT/report.json)."""
    from evalkit.verbs.check import CheckOptions
    from evalkit.verbs.run import Interrupted, PipelineOptions, describe, run_pipeline

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
                limit_tokens=limit_tokens,
                variants=tuple(variants),
                check=CheckOptions(budget_seconds=budget, decode_tokens=decode) if budget else None,
                stride=stride,
            ),
        )
    except Interrupted as error:
        click.echo(f"evalkit: {error}", err=True)
        return 130
    click.echo(describe(report.stages))
    illegal = any(stage.verdict == "illegal" for stage in report.stages.values())
    over = enforce_cap and report.artifact["bytes"] > SIZE_CAP
    return 3 if illegal or over else 0
