"""``evalkit check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evalkit.cli.options import code_option, given_among, model_options, require_one, score_options, text_options
from evalkit.plumbing.constants import BUDGET_SECONDS, DEEP_TOKENS
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_json

if TYPE_CHECKING:
    from evalkit.legality.report import LegalityReport
    from evalkit.verbs.check import CheckOptions

STREAM_OPTIONS = ("tokens", "text", "limit_tokens", "tokenizer")
"""Those of the shared options that say what to check on, not how an artifact is scored."""

EXAMPLE = """Examples:

  evalkit check final_model.int6.ptz --mixer hedge --ttt --tokens 'data/fineweb_val_*.bin' --tokenizer fineweb.model

  evalkit check --forecaster theirs.py:make --tokens 'data/fineweb_val_*.bin'
"""


@click.command("check", epilog=EXAMPLE)
@click.argument("artifact", required=False)
@text_options
@model_options(tokenizer_required=False)
@click.option("--no-model", is_flag=True, help="Check the online mixer alone (with --mixer hedge).")
@click.option("--forecaster", metavar="FILE.py:FACTORY", help="Check a stranger's forecaster, in child processes.")
@click.option("--span", type=int, help="Positions scored at a time (default: as score; a stranger's forecaster: 64).")
@click.option(
    "--budget", type=float, default=BUDGET_SECONDS, show_default=True, help="Most seconds that the audits may take."
)
@click.option("--decode", type=int, default=0, metavar="N", help="Also compress and decompress the first N tokens.")
@code_option
@click.option("--max-tokens", type=int, default=8192, show_default=True, help="Length of the stream that is audited.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@click.option("--json", "json_path", metavar="FILE", help="Write verdict and findings as JSON.")
def command(
    artifact: str | None,
    no_model: bool,
    forecaster: str | None,
    span: int | None,
    budget: float,
    decode: int,
    code: tuple[str, ...],
    max_tokens: int,
    seed: int,
    json_path: str | None,
    **options: Any,
) -> int:
    """Check that a score is legal, on behaviour alone: causal, normalised, each position once, honest bytes.

    The verdict is legal (exit code 0), illegal (3), or unproven (0, and it says what was not covered).
    """
    from evalkit.plumbing.launch import place_among_processes
    from evalkit.verbs.check import CheckOptions, check_session
    from evalkit.verbs.session import open_session

    if place_among_processes()[0] > 0:
        return 0  # The audits ask one forecaster after another: under torchrun the first process checks alone.
    if span is not None and span < 1:
        raise InputError(f"--span is {span}; expected at least 1 position")
    how = CheckOptions(
        span=span or 0, budget_seconds=budget, max_tokens=max_tokens, decode_tokens=decode, code=code, seed=seed
    )
    if forecaster is not None:
        if artifact is not None or no_model or options["module"] is not None:
            raise InputError("--forecaster checks a stranger's code: leave out the artifact, --module and --no-model")
        if unused := given_among(option for option in (*options, "decode") if option not in STREAM_OPTIONS):
            raise InputError(f"{unused}: for an artifact; a stranger's forecaster is taken as its factory makes it")
        report = _check_stranger(forecaster, how, options)
    else:
        require_one(artifact, options["module"], no_model=no_model)
        if options["tokenizer"] is None:
            raise InputError("give the artifact's tokenizer with --tokenizer")
        report = check_session(open_session(score_options(artifact, options)), how)
    write_json(json_path, report.to_dict())
    click.echo(describe(report))
    return 3 if report.verdict == "illegal" else 0


def _check_stranger(spec: str, how: CheckOptions, options: dict[str, Any]) -> LegalityReport:
    from evalkit.tokens.kinds import open_tokenizer
    from evalkit.tokens.stream import open_shards, tokenize_file
    from evalkit.verbs.check import check_forecaster

    if (options["tokens"] is None) == (options["text"] is None):
        raise InputError("give the stream to check on as either --tokens GLOB or --text FILE")
    tokenizer = open_tokenizer(options["tokenizer"]) if options["tokenizer"] else None
    if options["tokens"] is not None:
        stream = open_shards(options["tokens"])
    elif tokenizer is None:
        raise InputError("--text needs --tokenizer, which turns it into tokens")
    else:
        stream = tokenize_file(options["text"], tokenizer)
    if options["limit_tokens"] < 0:
        raise InputError(f"--limit-tokens is {options['limit_tokens']}; expected 0 (all) or more")
    if options["limit_tokens"]:
        stream = stream.truncated(options["limit_tokens"] + 1)
    return check_forecaster(
        spec,
        stream.read(0, min(len(stream), max(how.max_tokens, DEEP_TOKENS))),
        how,
        bos=tokenizer.bos_id if tokenizer else 1,
        stream_files=stream.names,
        stream_tokens=len(stream),
    )


def describe(report: LegalityReport) -> str:
    """Return verdict, findings and coverage for a terminal."""
    lines = [report.summary()]
    audited = report.covered.get("audit", {})
    if audited.get("audited_tokens"):
        deep = report.covered.get("deep salting", {}).get("last", 0)
        lines.append(
            f"audited {audited['audited_tokens']:,} of {audited['stream_tokens']:,} tokens in spans of "
            f"{audited['span']:,}{f', sums estimated up to token {deep:,}' if deep else ''}; "
            f"false alarms: at most {audited['false_alarm_probability']:.0e} a check"
        )
    decode = report.covered.get("decode")
    if decode:
        lines.append(
            f"decoded {decode['tokens']:,} tokens from {decode['bits']:,} bits; the ledger claims "
            f"{decode['ledger_bits']:,.0f}"
        )
    return "\n".join(lines)
