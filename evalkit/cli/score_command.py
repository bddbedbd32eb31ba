"""``evalkit score``."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import click

from evalkit.cli.options import code_option, model_options, require_one, score_options, text_options
from evalkit.cli.output import QUIET
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.files import write_json
from evalkit.plumbing.log import LOG
from evalkit.plumbing.progress import format_seconds
from evalkit.plumbing.table import format_pairs

if TYPE_CHECKING:
    from evalkit.report.score_report import ScoreReport

EXAMPLE = """Example:

  evalkit score final_model.int6.ptz --tokens 'data/fineweb_val_*.bin' --tokenizer fineweb_1024_bpe.model
"""


@click.command("score", epilog=EXAMPLE)
@click.argument("artifact", required=False)
@text_options
@model_options(tokenizer_required=True)
@click.option("--no-model", is_flag=True, help="Score the online mixer alone (with --mixer hedge).")
@click.option("--json", "json_path", metavar="FILE", help="Write the report as JSON.")
@click.option("--dump-nll", "nll_path", metavar="FILE.npz", help="Write the nats and bytes of every position.")
@click.option(
    "--reliability",
    type=int,
    default=0,
    metavar="N",
    help="Sample whole distributions at about N positions, for the reliability curve of evalkit report.",
)
@code_option
@click.option("--resume", is_flag=True, help="Continue this very run where it was interrupted.")
@click.option("--enforce-cap", is_flag=True, help=f"Exit with 3 if what ships is over {SIZE_CAP:,} bytes.")
@click.option("--profile", "profiled", is_flag=True, help="Show where the time went.")
def command(
    artifact: str | None,
    no_model: bool,
    json_path: str | None,
    nll_path: str | None,
    resume: bool,
    enforce_cap: bool,
    profiled: bool,
    **options: Any,
) -> int:
    """Score ARTIFACT in bits per byte with a sliding window, every position exactly once.

    Under torchrun (``torchrun --nproc-per-node 8 -m evalkit score ...``) the processes share the windows, the numbers
    stay those of one process, and the first process reports.
    """
    from evalkit.plumbing.profiling import Profile, describe_profile

    profile = Profile() if profiled else None
    with ExitStack() as stack:
        with profile.phase("load") if profile else nullcontext():
            from evalkit.plumbing.ranks import Ranks
            from evalkit.verbs.score import score_session
            from evalkit.verbs.session import open_session

            ranks = Ranks.from_environment()
            if ranks.rank > 0:
                LOG.setLevel(QUIET)  # rank 0 speaks for all
            options["device"] = ranks.local(options["device"])
            require_one(artifact, options["module"], no_model=no_model)
            session = open_session(score_options(artifact, options)).shared_among(ranks)
            stack.enter_context(ranks.joined(session.options.device))
        outputs = {"--json": json_path, "--dump-nll": nll_path, "--enforce-cap": enforce_cap, "--profile": profiled}
        report = score_session(
            session,
            resume=resume if resume or ranks.count == 1 else None,
            profile=profile,
            outputs=[word for name, given in outputs.items() if given for word in (name, given) if word is not True],
        )
    if ranks.rank > 0:
        return 0  # rank 0 reports
    write_json(json_path, report.to_dict())
    if nll_path:
        report.save_nll(nll_path)
    click.echo(describe(report))
    if report.profile is not None:
        click.echo("\n" + describe_profile(report.profile))
    if enforce_cap and report.artifact is not None and report.artifact.cap_headroom_bytes < 0:
        over = -report.artifact.cap_headroom_bytes
        click.echo(f"evalkit: what ships is {over:,} bytes over the cap of {SIZE_CAP:,}", err=True)
        return 3
    return 0


def describe(report: ScoreReport) -> str:
    """Return the report as two columns for a terminal, the number first."""
    legal = f"no: {report.illegal_because}" if report.legal is False else "not checked (evalkit check)"
    rows = [
        ("bpb", f"{report.bpb:.6f} bits per byte"),
        ("val_loss", f"{report.val_loss:.6f} nats per token"),
        ("legal", legal),
        ("scored", f"{report.tokens_scored:,} tokens, {report.bytes_scored:,} bytes{_describe_bytes(report)}"),
    ]
    if report.unknown_tokens:
        rows.append(("unknown", f"{report.unknown_tokens:,} tokens of text that is lost, which count no bytes"))
    if report.bpb_raw is not None:
        raw = f"{report.bytes_raw:,} bytes before normalisation: {report.bpb_raw:.6f} bits per raw byte"
        rows.append(("raw text", raw))
    if report.network_bpb is not None:
        rows.append(("network alone", f"{report.network_bpb:.6f} bits per byte"))
    gain = (report.ttt_report or {}).get("gain")
    if gain and gain["bpb"] is not None:
        between = ", 95% {:.5f} to {:.5f}".format(*gain["interval_95"]) if gain["interval_95"] else ""
        rows.append(("ttt gain", f"{gain['bpb']:.5f} bits per byte{between}, {gain['documents']:,} documents"))
    if report.artifact is not None:
        a = report.artifact
        code = f" with {a.shipped_bytes - a.bytes:,} of code" if a.code else ""
        cap = f"{abs(a.cap_headroom_bytes):,} {'under' if a.cap_headroom_bytes >= 0 else 'over'} the cap"
        rows += [
            ("artifact", f"{a.path} ({a.shipped_bytes:,} bytes{code}, {cap})"),
            ("window", _describe_window(report)),
        ]
    rows += [
        ("mixer, ttt", f"{report.mixer}, {'on' if report.ttt else 'off'}"),
        ("time", f"{format_seconds(report.seconds)}, {report.tokens_per_second or 0:,.0f} tokens/s"),
    ]
    return format_pairs(rows)


def _describe_bytes(report: ScoreReport) -> str:
    if report.token_bytes is None:
        return ""
    documents = report.token_bytes.documents
    compared = "compared with nothing" if documents is None else f"equal to those of {documents:,} documents"
    return f" (as --token-bytes says; {compared})"


def _describe_window(report: ScoreReport) -> str:
    if report.context == "streaming":
        how = "streaming: keys and values are kept"
    else:
        how = f"stride {report.stride}{', each document by itself' if report.context == 'documents' else ''}"
    own = report.dtype == "own"  # says itself why
    dtype = "its own number type" if own else report.dtype
    reasons = (None if own else report.dtype_because, report.attention)
    because = [reason for reason in reasons if reason and reason != "--dtype"]
    why = f" ({'; '.join(because)})" if because else ""
    return f"{report.seq_len} tokens, {how}, {dtype} on {report.device}{why}"
