"""One self-contained page about two runs over the same tokens: where do they differ, by document and by token."""

from __future__ import annotations

import math
import shlex
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.typed_json import to_json
from evalkit.report import series
from evalkit.report.load import SavedReport, TokenScores, open_report_stream, require_same_tokens
from evalkit.report.page import fill
from evalkit.report.paired import compare_tokens
from evalkit.report.passages import passage_spans, tiles
from evalkit.report.score_report import ScoreReport

_EXAMPLES = 12
_COMPARED = ("recipe", "mixer", "ttt", "context", "seq_len", "stride", "dtype", "device")


Run: TypeAlias = tuple[SavedReport, TokenScores]
"""A run and the score of each of its tokens."""


def build_pair_page(
    one: Run,
    other: Run,
    *,
    tokens: str | None = None,
    tokenizer: str | None = None,
    title: str | None = None,
) -> str:
    """Return the page; differences are those of ``one`` less those of ``other``, so that below 0 ``one`` is better.

    Raises:
        InputError: the runs scored different tokens, or the tokens are not where the report says.
    """
    (saved, scores), (baseline, before) = one, other
    require_same_tokens([saved, baseline])
    stream, model = open_report_stream(saved, tokens=tokens, tokenizer=tokenizer)
    ids = stream.read(0, len(stream))
    paired = compare_tokens(scores, before, ids, bos=model.bos_id, decode=model.decode, examples=_EXAMPLES)
    owner = series.document_index(ids, model.bos_id)
    difference = scores.nll - before.nll
    change = TokenScores(nll=difference, num_bytes=scores.num_bytes)
    data: dict[str, Any] = {
        "runs": [_run(saved, "A"), _run(baseline, "B")],
        "differences": _differences(saved.report, baseline.report),
        "paired": to_json(paired),
        "stream": series.along_stream(scores, {"baseline": {"tokens": 1, "nats": before.nll}}),
        "documents": series.thinned(series.by_document(change, owner)),
        "by_cost": _by_cost(before, difference),
        "passages": [
            {
                "title": name,
                "position": start + 1,
                "tokens": stop - start,
                "nats": float(difference[start:stop].sum()),
                "spans": passage_spans(change, ids, model, start, stop),
            }
            for name, start, stop in _passages(difference)
        ],
    }
    return fill(title or f"{saved.path.name} and {baseline.path.name}", "pair.js", data)


def _run(saved: SavedReport, name: str) -> dict[str, Any]:
    report = saved.report
    return {
        "name": name,
        "path": saved.path.name,
        "artifact": report.artifact.path if report.artifact else "online mixer alone",
        "bpb": report.bpb,
        "val_loss": report.val_loss,
        "verdict": report.verdict,
        "seconds": report.seconds,
        "command": shlex.join(report.command) if report.command else None,
        "tokens": report.tokens_scored,
        "names": list(report.tokens.names),
    }


def _differences(one: ScoreReport, other: ScoreReport) -> list[list[str]]:
    """Return ``[what, A, B]`` for everything in which the runs were made differently."""

    def facts(report: ScoreReport) -> dict[str, Any]:
        artifact = report.artifact
        return {
            "artifact sha256": artifact and artifact.sha256,
            "bytes of artifact": artifact and artifact.bytes,
            "parameters": artifact and artifact.parameters,
            **{name: getattr(report, name) for name in _COMPARED},
            **{
                f"{section}.{key}": value
                for section, values in report.settings.items()
                for key, value in values.items()
            },
            **{f"model.{key}": value for key, value in (report.config or {}).items()},
            **{f"version of {name}": value for name, value in report.versions.items()},
        }

    a, b = facts(one), facts(other)
    return [[name, _said(a.get(name)), _said(b.get(name))] for name in {**a, **b} if a.get(name) != b.get(name)]


def _said(value: Any) -> str:
    return "\u2013" if value is None else str(value)


def _by_cost(baseline: TokenScores, difference: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return the sum of the differences, in bits, by what a token cost the baseline, in steps of one bit up to 16."""
    bins = series.cost_bins(baseline.nll)
    tokens = np.bincount(bins, minlength=17)
    bits = np.bincount(bins, weights=difference / math.log(2), minlength=17)
    return [
        {"label": label, "tokens": int(tokens[k]), "bits": float(bits[k])} for k, label in enumerate(series.COST_LABELS)
    ]


def _passages(difference: npt.NDArray[np.float64]) -> list[tuple[str, int, int]]:
    """Return (title, first, last + 1) of the passages where each run gains most on the other, and a typical one."""
    starts, size = tiles(len(difference))
    sums = np.add.reduceat(difference[: starts[-1] + size], starts)
    order = np.argsort(sums, kind="stable")
    picks = dict.fromkeys([int(starts[order[0]]), int(starts[order[-1]]), int(starts[order[len(order) // 2]])])
    titles = ("Where A gains most", "Where B gains most", "A typical passage")
    return [(title, start, start + size) for title, start in zip(titles, picks, strict=False)]
