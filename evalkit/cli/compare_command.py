"""``evalkit compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evalkit.cli.options import scored_stream_options
from evalkit.plumbing.constants import RECORD_NATS
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import check_outputs, write_json
from evalkit.plumbing.log import LOG
from evalkit.plumbing.table import format_pairs, format_table

if TYPE_CHECKING:
    from evalkit.report.paired import PairedDifference
    from evalkit.verbs.compare import Comparison

EXAMPLE = """Examples:

  evalkit compare new-seed1.json new-seed2.json new-seed3.json --baseline old-seed1.json old-seed2.json old-seed3.json

  evalkit compare new.json --nll new.npz --baseline old.json --baseline-nll old.npz
"""


class _WithBaselines(click.Command):
    """Lets ``--baseline`` take every file up to the next option, as people type it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        taking = False
        for argument in args:
            if argument == "--baseline":
                taking = True
            elif taking and not argument.startswith("-"):
                spread += ["--baseline", argument]
            else:
                taking = False
                spread.append(argument)
        return super().parse_args(ctx, spread)


@click.command("compare", epilog=EXAMPLE, cls=_WithBaselines)
@click.argument("reports", nargs=-1, required=True)
@click.option("--baseline", multiple=True, metavar="REPORT.json...", help="Reports to compare with.")
@click.option("--nll", metavar="FILE.npz", help="Per-token file of the report (default: beside it, same name).")
@click.option("--baseline-nll", metavar="FILE.npz", help="Per-token file of the baseline (default: beside it).")
@scored_stream_options
@click.option("--json", "json_path", metavar="FILE", help="Write the comparison as JSON.")
def command(
    reports: tuple[str, ...],
    baseline: tuple[str, ...],
    nll: str | None,
    baseline_nll: str | None,
    json_path: str | None,
    **stream: str | None,
) -> None:
    """Compare REPORTS of several seeds with a baseline's, or one run with another token by token.

    Without --baseline: mean and standard deviation of the reports. Copies of one run count once, and a side without
    spread enters no test.
    """
    from evalkit.report.load import (
        files_behind,
        find_token_scores,
        open_report_stream,
        read_report,
        read_token_scores,
        require_same_tokens,
    )
    from evalkit.report.paired import compare_tokens
    from evalkit.verbs.compare import as_dict, compare_reports, distinct_runs, is_same_run, mixed_contexts

    new = [read_report(path) for path in reports]
    old = [read_report(path) for path in baseline]
    if json_path:
        check_outputs({"--json": json_path}, [file for saved in (*new, *old) for file in files_behind(saved)])
    require_same_tokens([*new, *old])
    cautions = mixed_contexts([*new, *old])
    (new, again), (old, old_again) = distinct_runs(new), distinct_runs(old)
    repeated = [*again, *old_again]
    if len(new) == len(old) == 1 and is_same_run(new[0], old[0]):
        repeated.append(f"{new[0].path} and {old[0].path} are one run, or two with the same scores")
    for sentence in repeated:
        LOG.warning("%s", sentence)
    if not old:
        runs = [(saved.path, saved.report.val_loss, saved.report.bpb) for saved in new]
        click.echo("\n\n".join([_summary([(path.name, loss, bpb) for path, loss, bpb in runs]), *cautions]))
        listed = [{"path": str(path), "val_loss": loss, "bpb": bpb} for path, loss, bpb in runs]
        write_json(json_path, {"format": 1, "runs": listed, "repeated": repeated, "cautions": cautions})
        return
    comparisons = compare_reports(new, old)
    paired: PairedDifference | None = None
    wanted = nll is not None or baseline_nll is not None
    if wanted and not (len(new) == len(old) == 1):
        raise InputError("--nll and --baseline-nll compare one report with one baseline, token by token")
    if len(new) == len(old) == 1:
        files = (nll or find_token_scores(new[0]), baseline_nll or find_token_scores(old[0]))
        if wanted and None in files:
            raise InputError("comparing token by token needs --nll and --baseline-nll (evalkit score --dump-nll)")
        LOG.debug("per-token files: %s and %s", *(file or "none" for file in files))
        if files[0] is not None and files[1] is not None:
            scores, before = read_token_scores(files[0], new[0]), read_token_scores(files[1], old[0])
            read, model = open_report_stream(new[0], **stream)
            ids = read.read(0, len(read))
            paired = compare_tokens(scores, before, ids, bos=model.bos_id, decode=model.decode)
    write_json(json_path, as_dict(comparisons, paired, repeated, cautions))
    click.echo("\n\n".join([describe(comparisons, paired), *cautions]))


def describe(comparisons: dict[str, Comparison], paired: PairedDifference | None) -> str:
    """Return the comparison for a terminal."""
    header = ["metric", "runs", "mean", "sd", "baseline runs", "baseline mean", "baseline sd", "difference"]
    rows = [
        [
            c.metric,
            str(len(c.values)),
            f"{c.mean:.6f}",
            _number(c.sd),
            str(len(c.baseline)),
            f"{c.baseline_mean:.6f}",
            _number(c.baseline_sd),
            f"{c.difference:+.6f}",
        ]
        for c in comparisons.values()
    ]
    parts = [format_table(header, rows), _welch(comparisons["val_loss"])]
    if paired is not None:
        parts.append(_paired(paired))
    return "\n\n".join(parts)


def _welch(c: Comparison) -> str:
    if c.t is None or c.p_lower is None or c.low is None or c.high is None or c.p_margin is None:
        return "Welch test: not possible; it needs at least 2 different runs on each side (train with other seeds)"
    from evalkit.verbs.compare import FRONTIER_P, RECORD_P

    verdict = "significant" if c.p_lower < RECORD_P else "not significant"
    met = "met" if c.is_record else "not met"
    passes = "met" if c.passes_frontier else "not met"
    return format_pairs(
        [
            ("Welch test", f"t = {c.t:.4f}, {c.degrees:.2f} degrees of freedom"),
            ("lower", f"p = {c.p_lower:.4g}, one-sided: {verdict} at {RECORD_P}"),
            ("different", f"p = {c.p_two_sided:.4g}, two-sided"),
            ("95% interval", f"{c.low:+.6f} to {c.high:+.6f} nats per token"),
            (f"{RECORD_NATS} nats lower", f"p = {c.p_margin:.4g}, one-sided: the rule of {RECORD_NATS} nats at "
                                          f"p < {RECORD_P} is {met}"),
            ("later rule", f"p = {c.p_lower:.4g}, one-sided: lower than the frontier (the best run before) at "
                           f"p < {FRONTIER_P} is {passes}"),
        ]
    )  # fmt: skip


def _paired(p: PairedDifference) -> str:
    rows = [
        ("token by token", f"{p.tokens:,} positions in {p.documents:,} documents"),
        ("difference", f"{p.nats_per_token:+.6f} nats per token, {p.bpb:+.6f} bits per byte"),
    ]
    if p.low is None or p.high is None:
        rows.append(("95% interval", "none: a single document has no spread"))
    else:
        verdict = "no difference is shown" if p.low <= 0 <= p.high else "lower" if p.high < 0 else "higher"
        rows += [
            ("95% interval", f"{p.low:+.6f} to {p.high:+.6f} nats per token, documents as units: {verdict}"),
            ("lower", f"p = {p.p_lower:.4g}, one-sided"),
        ]
    rows.append(("documents", f"{p.better_documents:,} better, {p.worse_documents:,} worse"))
    documents = format_table(
        ["document", "first position", "tokens", "nats", "begins"],
        [[str(d["document"]), f"{d['position']:,}", f"{d['tokens']:,}", f"{d['nats']:+.3f}", _clip(d["text"], 40)]
         for d in p.most_changed_documents],
    )  # fmt: skip
    positions = format_table(
        ["position", "nats", "baseline", "token", "after"],
        [[f"{d['position']:,}", f"{d['nats']:.3f}", f"{d['baseline_nats']:.3f}", repr(d["token"]),
          "..." + _clip(d["before"], -32)] for d in p.most_changed_positions],
    )  # fmt: skip
    return "\n\n".join([format_pairs(rows), documents, positions])


def _summary(runs: list[tuple[str, float, float]]) -> str:
    import statistics

    rows: list[list[str]] = [[name, f"{loss:.6f}", f"{bpb:.6f}"] for name, loss, bpb in runs]
    for label, function in (("mean", statistics.fmean), ("sd", statistics.stdev)):
        if len(runs) > 1:
            rows.append([label, f"{function([r[1] for r in runs]):.6f}", f"{function([r[2] for r in runs]):.6f}"])
    return format_table(["report", "nats per token", "bits per byte"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _clip(text: Any, size: int) -> str:
    flat = " ".join(str(text).split()).replace("|", "/")
    return flat[:size] if size > 0 else flat[size:]
