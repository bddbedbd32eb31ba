"""One self-contained page from a score report: data as JSON, drawn by the page's own script; nothing is fetched."""

from __future__ import annotations

import html
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.artifact.sizes import group_bytes
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import InputError
from evalkit.report import series
from evalkit.report.coverage import coverage
from evalkit.report.load import SavedReport, TokenScores, open_report_stream, read_check
from evalkit.report.passages import choose_passages, passage_spans
from evalkit.report.score_report import ArtifactIdentity, ScoreReport


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """What goes into the page besides the report.

    Attributes:
        scores: per-token scores; charts along the stream need them.
        check: path of what ``evalkit check --json`` wrote.
        tokens: shards in place of the report's paths.
        tokenizer: model in place of the report's.
        title: of the page; None names the artifact.
    """

    scores: TokenScores | None = None
    check: Path | None = None
    tokens: str | None = None
    tokenizer: str | None = None
    title: str | None = None


def build_page(saved: SavedReport, options: PageOptions) -> tuple[str, list[str]]:
    """Return the page, and sentences that say what it leaves out and why.

    Raises:
        InputError: a file that was named explicitly cannot be used.
    """
    try:
        return _build(saved, options)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError, ArithmeticError) as error:
        raise InputError(
            f"{saved.path} is not laid out as evalkit score writes it ({type(error).__name__}: {error}); score again"
        ) from error


def _build(saved: SavedReport, options: PageOptions) -> tuple[str, list[str]]:
    left_out: list[str] = []
    report, check = saved.report, None
    if options.check is None:
        left_out.append("legality findings: give --check (evalkit check --json)")
    else:
        check = read_check(options.check, saved)
        report = report.checked(check)
    data: dict[str, Any] = {"report": report.to_dict(), "size_cap": SIZE_CAP}
    data["bytes"] = _artifact_bytes(report.artifact, left_out)
    data["mixer"] = _mixer(report)
    data["check"] = check and check.to_dict()
    data["coverage"] = check and coverage(check)
    data["command"] = shlex.join(report.command) if report.command else None
    if options.scores is None:
        left_out.append("charts along the stream, by document and by chunk: give --nll (evalkit score --dump-nll)")
    else:
        data["stream"] = series.along_stream(options.scores, _other_scores(report, left_out))
        data["surprise"] = series.surprise_histogram(options.scores)
        chunks = (report.ttt_report or {}).get("chunks") or []
        if chunks:
            data["chunks"] = series.by_chunk(options.scores, chunks)
        owner = _documents(data, saved, options, left_out)
        if report.context == "sliding" and report.seq_len and report.stride:
            data["window_position"] = series.by_window_position(options.scores, report.seq_len, report.stride, owner)
    if report.reliability is None:
        left_out.append("the reliability curve: score again with --reliability 20000")
    else:
        points = series.reliability(report.reliability)
        data["reliability"] = {"positions": report.reliability["positions"], "points": points}
    data["left_out"] = left_out
    title = options.title or (Path(report.artifact.path).name if report.artifact else "online mixer")
    return fill(f"{title}: {report.bpb:.4f} bits per byte", "page.js", data), left_out


def _other_scores(report: ScoreReport, left_out: list[str]) -> dict[str, Mapping[str, Any]]:
    """Return what else scored the stream: the network beside a mixture, the frozen network beside one that trains."""
    others: dict[str, Mapping[str, Any]] = {}
    if report.network_stream is not None:
        others["network alone"] = report.network_stream
    elif report.mixer != "none" and report.artifact is not None:
        left_out.append("the network alone along the stream: score again with this version")
    if report.ttt:
        frozen = (report.ttt_report or {}).get("frozen_stream")
        if frozen is not None:
            others["frozen network"] = frozen
        else:
            left_out.append("the frozen network beside test-time training: score with --set ttt.compare=true")
    return others


def _documents(
    data: dict[str, Any], saved: SavedReport, options: PageOptions, left_out: list[str]
) -> npt.NDArray[np.int64] | None:
    """Add what needs the tokens; return the document of each position, or None where the tokens are not there."""
    assert options.scores is not None
    try:
        stream, tokenizer = open_report_stream(saved, tokens=options.tokens, tokenizer=options.tokenizer)
    except InputError as error:
        if options.tokens or options.tokenizer:
            raise
        left_out.append(f"documents, intervals and passages: {error}")
        return None
    tokens = stream.read(0, len(stream))
    owner = series.document_index(tokens, tokenizer.bos_id)
    documents = series.by_document(options.scores, owner)
    data["half"] = series.score_interval(options.scores, owner)
    data["document_position"] = series.by_document_position(options.scores, tokens, tokenizer.bos_id)
    data["scatter"] = series.thinned(documents)
    ranked = [i for i in np.argsort([-(b or 0.0) for b in documents["bpb"]], kind="stable").tolist()
              if documents["bytes"][i] >= 200]  # fmt: skip
    data["documents"] = {"count": len(documents["bpb"]), "hardest": [
        {
            "index": i,
            **{key: documents[key][i] for key in documents},
            "begins": tokenizer.decode(tokens[documents["position"][i] : documents["position"][i] + 24]),
        }
        for i in ranked[:8]
    ]}  # fmt: skip
    data["passages"] = [
        {
            "title": title,
            "position": start + 1,
            "tokens": stop - start,
            "bpb": series.mean_bits_per_byte(options.scores, start, stop),
            "spans": passage_spans(options.scores, tokens, tokenizer, start, stop),
        }
        for title, start, stop in choose_passages(options.scores)
    ]
    return owner


def _artifact_bytes(artifact: ArtifactIdentity | None, left_out: list[str]) -> list[dict[str, Any]] | None:
    from evalkit.artifact.load import load_artifact
    from evalkit.network.factory import ModuleSource

    if artifact is None or artifact.format == ModuleSource.format:
        return None

    try:
        opened = load_artifact(artifact.path)
    except InputError as error:
        left_out.append(f"where the artifact's bytes go: {error}")
        return None
    if opened.sha256 != artifact.sha256:
        left_out.append(f"where the artifact's bytes go: {artifact.path} has changed since the score")
        return None
    return group_bytes(opened, each=False)


def _mixer(report: ScoreReport) -> dict[str, Any] | None:
    mixer = report.mixer_report
    if mixer is None or report.mixer == "published" or not mixer.get("experts"):
        return None
    per_byte = 1.0 / math.log(2) / report.bytes_scored
    names = list(mixer["experts"])
    return {
        "method": mixer.get("method"),
        "experts": [
            {
                "name": name,
                "bpb": e["nats"] * per_byte,
                "gain": e["leave_one_out_gain"] * per_byte,
                "weight": e["mean_weight"],
            }
            for name, e in mixer["experts"].items()
        ],
        "names": names,
        "weights": _thin(mixer.get("weights_over_time") or []),
    }


def _thin(rows: list[Any], most: int = 300) -> list[Any]:
    step = max(1, math.ceil(len(rows) / most))
    return [[row[0], *(round(w, 6) for w in row[1:])] for row in rows[::step]]


def fill(title: str, script: str, data: dict[str, Any]) -> str:
    """Return a page: the frame, the style, the charts, the script that places them, and the data.

    Args:
        title: of the page.
        script: file in this package, run after ``charts.js`` in one function.
        data: JSON types, which the script finds as ``D``.
    """
    folder = resources.files("evalkit.report")

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    # "<" in data could end the script element; as an escape it is the same JSON.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = read("page.html")
    for mark, value in (
        ("{{title}}", html.escape(title)),
        ("{{style}}", read("page.css")),
        ("{{charts}}", read("charts.js")),
        ("{{script}}", read(script)),
        ("{{data}}", text),  # last: it holds text that must not be searched for marks
    ):
        page = page.replace(mark, value)
    return page
