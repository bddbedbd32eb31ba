"""``evalkit run``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evalkit.cli.options import (
    code_option,
    container_option,
    fit_option,
    given_among,
    limit_tokens_option,
    module_options,
    stride_option,
    target_bytes_option,
    token_bytes_option,
    training_options,
    ttt_option,
)
from evalkit.plumbing.constants import BUDGET_SECONDS, SIZE_CAP
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.settings import by_section, split_settings

if TYPE_CHECKING:
    from evalkit.verbs.submit import SubmitOptions

FOR_TRAINING = (
    "scale", "steps", "max_seconds", "resume", "container", "target_bytes", "calibration_tokens", "fit",
)  # fmt: skip
"""Options that say what to train and export."""

FOR_MODULE = ("weights", "text", "token_bytes", "seq_len", "device", "dtype")
"""Options that say how a module is scored."""

FOR_BOTH = ("limit_tokens", "stride")

EXAMPLE = """Examples:

  evalkit run --recipe tiny --data data/sp1024 --tokenizer fineweb_1024_bpe.model --out runs/tiny --max-seconds 120

  evalkit run --module model.py:make --weights model.pt --text novel.txt --tokenizer bytes --out runs/mine --mixer hedge

  evalkit run --recipe best --data data/sp1024 --tokenizer fineweb_1024_bpe.model --out runs/best --fit --ttt \
    --code train_gpt.py --submission records/best --author Ada
"""


@click.command("run", epilog=EXAMPLE)
@training_options(tokenizer_required=True)
@module_options
@click.option("--tokens", metavar="GLOB", help="What to score (default: the validation shards in --data).")
@click.option("--text", metavar="FILE", help="With --module: the text to score, in place of shards.")
@token_bytes_option
@container_option
@target_bytes_option
@click.option("--calibration-tokens", type=int, default=65536, show_default=True, help="0 rounds to nearest: no GPTQ.")
@code_option
@click.option("--submission", metavar="DIR", help="Write a submission folder of the last score, and verify it.")
@click.option("--author", default="", help="Who submits, for --submission.")
@click.option("--name", default="", help="Name of the submission (default: the recipe).")
@fit_option
@limit_tokens_option
@click.option("--seq-len", type=int, help="With --module: window in tokens (default: the module's).")
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
@click.option("--device", default="cpu", show_default=True, help="With --module: cpu or cuda.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    help="With --module: of its weights.",
)
@click.option("--enforce-cap", is_flag=True, help=f"Exit with 3 if what ships is over {SIZE_CAP:,} bytes.")
def command(
    recipe: str | None,
    module: str | None,
    data: str,
    tokenizer: str,
    out: str,
    tokens: str | None,
    settings: tuple[str, ...],
    code: tuple[str, ...],
    submission: str | None,
    author: str,
    name: str,
    mixer: str,
    ttt: bool,
    budget: float,
    decode: int,
    enforce_cap: bool,
    **options: Any,
) -> int:
    """Train, export, score, check and (--submission) submit: one command, one report (OUT/report.json).

    With --module your own model, which is there already, is scored, checked and submitted.
    """
    from evalkit.verbs.check import CheckOptions
    from evalkit.verbs.options import ScoreOptions
    from evalkit.verbs.run import Interrupted, PipelineOptions, describe, run_module, run_pipeline, validation_shards
    from evalkit.verify.text import as_text
    from evalkit.verify.verify import verify_folder

    if (module is not None) + (recipe is not None) != 1 and not (options["resume"] and module is None):
        raise InputError("name what to train with --recipe, or your own model with --module FILE.py:FACTORY")
    if idle := given_among(("recipe", *FOR_TRAINING) if module is not None else FOR_MODULE):
        raise InputError(f"{idle}: {'a module is not trained' if module is not None else 'for --module'}; leave it out")
    check = CheckOptions(budget_seconds=budget, decode_tokens=decode) if budget else None
    submitted = _submit_options(submission, name or recipe or Path(out).name, author, code)
    try:
        if module is not None:
            score = ScoreOptions(
                module=module,
                tokenizer=tokenizer,
                tokens=tokens or (None if options["text"] else validation_shards(Path(data))),
                settings=by_section(split_settings(settings), ("mixer", "ttt")),
                mixer=mixer,
                ttt=ttt,
                code=code,
                **{name: options[name] for name in (*FOR_MODULE, *FOR_BOTH)},
            )
            report = run_module(score, Path(out), check, submitted)
        else:
            report = run_pipeline(
                PipelineOptions(
                    recipe=recipe,
                    data=Path(data),
                    tokenizer=Path(tokenizer),
                    out=Path(out),
                    tokens=tokens,
                    settings=split_settings(settings),
                    variants=tuple(dict.fromkeys([("none", False), (mixer, ttt)])),
                    check=check,
                    code=tuple(map(Path, code)),
                    submission=submitted,
                    **{name: options[name] for name in (*FOR_TRAINING, *FOR_BOTH)},
                ),
            )
    except Interrupted as error:
        click.echo(f"evalkit: {error}", err=True)
        return 130
    click.echo(describe(report.stages))
    if submission is not None:
        click.echo("\n" + as_text(verify_folder(Path(submission))))
    return 3 if report.is_illegal or (enforce_cap and report.is_over_cap) else 0


def _submit_options(folder: str | None, name: str, author: str, code: tuple[str, ...]) -> SubmitOptions | None:
    from evalkit.verbs.submit import SubmitOptions

    if folder is None:
        return None
    if not author:
        raise InputError("--submission names its author: add --author NAME")
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return SubmitOptions(folder=Path(folder), name=name, author=author, date=date, code=tuple(map(Path, code)))
