"""Train, export, score and check in one go: what ``evalkit run`` and ``evalkit demo`` do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import EvalkitError
from evalkit.plumbing.files import write_json
from evalkit.plumbing.log import LOG, timed
from evalkit.plumbing.settings import by_section
from evalkit.plumbing.table import format_table
from evalkit.verbs.check import CheckOptions, check_session
from evalkit.verbs.score import ScoreReport, score_session
from evalkit.verbs.session import ScoreOptions, open_session


class Interrupted(EvalkitError):
    """A stage was interrupted and can be resumed."""


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """What to run.

    Attributes:
        recipe: name or ``.toml`` file.
        data: folder with training and validation shards.
        tokenizer: SentencePiece model.
        out: folder for the run, the artifact and the reports.
        tokens: glob of what to score; None scores the validation shards of ``data``.
        settings: ``SECTION.KEY`` to value, for training and, in ``mixer`` and ``ttt``, for scoring.
        scale: smaller size of the recipe.
        steps: budget in steps.
        max_seconds: budget in seconds.
        resume: continue an interrupted run.
        container: of the artifact.
        floor: factor on the published floors of the quantisation steps.
        fit: search steps and widths for the lowest loss under ``target_bytes``.
        target_bytes: cap on the artifact.
        calibration_tokens: for GPTQ.
        limit_tokens: score at most this many tokens in each variant.
        variants: (mixer, ttt) pairs to score.
        check_seconds: budget of the legality audit of each variant; 0 leaves it out.
        decode_tokens: tokens to compress and decompress as part of the check.
        stride: of the windows.
        dtype: of scoring.
    """

    recipe: str
    data: Path
    tokenizer: Path
    out: Path
    tokens: str | None = None
    settings: Mapping[str, str] | None = None
    scale: str | None = None
    steps: int | None = None
    max_seconds: float | None = None
    resume: bool = False
    container: str = "evalkit"
    floor: float = 1.0
    fit: bool = False
    target_bytes: int = SIZE_CAP
    calibration_tokens: int = 65_536
    limit_tokens: int = 0
    variants: tuple[tuple[str, bool], ...] = (("none", False), ("hedge", False))
    check_seconds: float = 60.0
    decode_tokens: int = 0
    stride: int = 64
    dtype: str = "auto"


def run_pipeline(options: PipelineOptions, *, progress: TextIO | None = None) -> dict[str, Any]:
    """Train, export, score every variant, check every variant; returns the report, which is also written.

    Raises:
        Interrupted: training was interrupted; run again with ``resume``.
        InputError: an input is unusable.
    """
    from evalkit.train.export.pipeline import ExportConfig, export_run
    from evalkit.train.folder import load_run
    from evalkit.train.run import run_training

    training = {k: v for k, v in (options.settings or {}).items() if k.split(".")[0] not in ("mixer", "ttt")}
    folder = options.out / "run"
    done = options.resume and (folder / "summary.json").exists()
    report: dict[str, Any] = {"recipe": options.recipe, "stages": {}}
    if not done:
        LOG.info("training %s on %s", options.recipe, options.data)
        trained = run_training(
            options.recipe,
            options.data,
            options.tokenizer,
            folder,
            training,
            scale=options.scale,
            steps=options.steps,
            max_seconds=options.max_seconds,
            resume=options.resume,
            progress=progress,
        )
        if trained.status != "done":
            raise Interrupted(f"training was interrupted after {trained.steps} steps; continue with --resume")
        LOG.info(
            "trained %s steps on %s tokens in %.0f s", f"{trained.steps:,}", f"{trained.tokens:,}", trained.seconds
        )
    artifact = options.out / ("model.evk" if options.container == "evalkit" else "model.ptz")
    with timed("export"):
        exported = export_run(
            load_run(folder),
            artifact,
            ExportConfig(
                container=options.container,  # type: ignore[arg-type]
                floor=options.floor,
                fit=options.fit,
                target_bytes=options.target_bytes,
                calibration_tokens=options.calibration_tokens,
                calibration_data=options.data,
                tokenizer=options.tokenizer,
            ),
        )
    LOG.info("exported %s: %s bytes", artifact, f"{exported.file.n_bytes:,}")
    report["export"] = exported.to_dict()
    report["artifact"] = report["export"]["artifact"]
    for mixer, ttt in options.variants:
        name = variant_name(mixer, ttt)
        scored, verdict = _score_variant(options, artifact, mixer, ttt)
        write_json(options.out / f"score-{name}.json", scored.to_dict())
        report["stages"][name] = scored.to_dict() | {"verdict": verdict}
    write_json(options.out / "report.json", report)
    return report


def describe(report: dict[str, Any]) -> str:
    """Return what :func:`run_pipeline` returned as a table for a terminal, a row for each variant."""
    rows = [
        [
            name,
            f"{stage['bpb']:.4f}",
            f"{stage['val_loss']:.4f}",
            f"{stage['tokens_scored']:,}",
            f"{stage['tokens_per_second'] or 0:,.0f}",
            stage["verdict"] or "not checked",
        ]
        for name, stage in report["stages"].items()
    ]
    return format_table(["score", "bits per byte", "nats per token", "tokens", "tokens/s", "legal"], rows)


def variant_name(mixer: str, ttt: bool) -> str:
    """Name a combination of mixer and test-time training."""
    parts = ["sliding"] + (["mixer"] if mixer == "hedge" else [mixer] if mixer != "none" else []) + ["ttt"] * ttt
    return "-".join(parts)


def _score_variant(options: PipelineOptions, artifact: Path, mixer: str, ttt: bool) -> tuple[ScoreReport, str | None]:
    used = {"mixer": mixer != "none", "ttt": ttt}
    chosen = {k: v for k, v in (options.settings or {}).items() if used.get(k.split(".")[0])}
    name = variant_name(mixer, ttt)
    LOG.info("scoring %s", name)
    session = open_session(
        ScoreOptions(
            artifact=str(artifact),
            tokenizer=str(options.tokenizer),
            tokens=options.tokens or _validation_glob(options.data),
            settings=by_section(chosen, ("mixer", "ttt")),
            stride=options.stride,
            limit_tokens=options.limit_tokens,
            mixer=mixer,
            ttt=ttt,
            dtype=options.dtype,
        )
    )
    scored = score_session(session)
    verdict = None
    if options.check_seconds:
        LOG.info("checking %s", name)
        result = check_session(
            session, CheckOptions(budget_seconds=options.check_seconds, decode_tokens=options.decode_tokens)
        )
        write_json(options.out / f"check-{name}.json", result.as_dict())
        verdict = result.verdict
        scored.values["legal"] = {"legal": True, "illegal": False}.get(verdict)
        for finding in result.findings[:3]:
            LOG.info("  %s: %s", finding.axiom, finding.message)
        for gap in result.uncovered[:3]:
            LOG.info("  not covered: %s", gap)
    return scored, verdict


def _validation_glob(data: Path) -> str:
    found = sorted(data.rglob("*val*.bin"))
    folder = found[0].parent if found else data
    return str(folder / "*val*.bin")
