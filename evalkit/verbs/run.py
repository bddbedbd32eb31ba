"""Train, export, score and check in one go: what ``evalkit run`` and ``evalkit demo`` do; or only score and check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import EvalkitError, InputError
from evalkit.plumbing.files import in_order, write_json
from evalkit.plumbing.log import LOG, timed
from evalkit.plumbing.settings import by_section
from evalkit.plumbing.table import format_table
from evalkit.plumbing.typed_json import to_json
from evalkit.report.load import read_report
from evalkit.report.score_report import ScoreReport
from evalkit.tokens.shards import NAMES, split_of
from evalkit.verbs.check import CheckOptions, check_session
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.score import score_session
from evalkit.verbs.session import open_session
from evalkit.verbs.submit import SubmitOptions, require_new, submit


class Interrupted(EvalkitError):
    """A stage was interrupted and can be resumed."""


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """What to run: the options of ``evalkit train``, ``export`` and ``score`` under their names.

    Attributes:
        recipe: name or ``.toml`` file; None for that of the run that is resumed.
        data: folder with training and validation shards.
        tokenizer: SentencePiece .model, Hugging Face tokenizer.json, or ``bytes``.
        out: folder for the run, the artifact and the reports.
        tokens: glob of what to score; None scores the validation shards of ``data``.
        settings: ``SECTION.KEY`` to value, for training and, in ``mixer`` and ``ttt``, for scoring.
        fit: give every tensor the step with which the file just fits ``target_bytes``.
        code: files that ship with the artifact and count towards the cap.
        submission: folder to write of the last variant's score, and what it says; None writes none.
        limit_tokens: score at most this many tokens in each variant.
        variants: (mixer, ttt) pairs to score.
        check: how to check the score of each variant; None leaves it out.
    """

    recipe: str | None
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
    fit: bool = False
    target_bytes: int = SIZE_CAP
    code: tuple[Path, ...] = ()
    submission: SubmitOptions | None = None
    calibration_tokens: int = 65_536
    limit_tokens: int = 0
    variants: tuple[tuple[str, bool], ...] = (("none", False), ("hedge", False))
    check: CheckOptions | None = field(default_factory=CheckOptions)
    stride: int = 64
    dtype: str = "auto"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What ``evalkit run`` made.

    Attributes:
        recipe: that was trained; None for a user's module.
        export: what ``evalkit export --json`` writes of the artifact; None for a user's module.
        stages: the score of each variant by its name, with the verdict of its check.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("artifact",)

    recipe: str | None
    export: Mapping[str, Any] | None
    stages: Mapping[str, ScoreReport]

    @property
    def artifact(self) -> Mapping[str, Any]:
        """Path, bytes and hash of what was scored."""
        scored = next(iter(self.stages.values()))
        found: Mapping[str, Any] = to_json(scored.artifact) if self.export is None else self.export["artifact"]
        return found

    @property
    def is_illegal(self) -> bool:
        """Whether the check of some score found something."""
        return any(stage.verdict == "illegal" for stage in self.stages.values())

    @property
    def is_over_cap(self) -> bool:
        """Whether what ships is larger than the challenge allows."""
        return any(s.artifact is not None and s.artifact.cap_headroom_bytes < 0 for s in self.stages.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON holds it."""
        return dict(to_json(self))


def run_pipeline(options: PipelineOptions) -> RunReport:
    """Train, export, score every variant, check every variant; returns the report, which is also written.

    Raises:
        Interrupted: training was interrupted; run again with ``resume``.
        InputError: an input is unusable.
    """
    from evalkit.train.export.pipeline import ExportConfig, export_run
    from evalkit.train.folder import load_run
    from evalkit.train.run import run_training

    if options.submission is not None:
        require_new(options.submission.folder)
    training = {k: v for k, v in (options.settings or {}).items() if k.split(".")[0] not in ("mixer", "ttt")}
    folder = options.out / "run"
    done = options.resume and (folder / "summary.json").exists()
    if not done:
        LOG.info("training %s on %s", options.recipe or "the run that was begun", options.data)
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
        )
        if trained.status != "done":
            raise Interrupted(
                f"training was interrupted after {trained.steps} steps; continue with the same command and --resume"
            )
        LOG.info(
            "trained %s steps on %s tokens in %.0f s", f"{trained.steps:,}", f"{trained.tokens:,}", trained.seconds
        )
    artifact = options.out / ("model.evk" if options.container == "evalkit" else "model.ptz")
    weights = load_run(folder)
    with timed("export"):
        exported = export_run(
            weights,
            artifact,
            ExportConfig(
                container=options.container,  # type: ignore[arg-type]
                fit=options.fit,
                target_bytes=options.target_bytes,
                code=options.code,
                calibration_tokens=options.calibration_tokens,
                calibration_data=options.data,
                tokenizer=options.tokenizer,
            ),
        )
    LOG.info("exported %s: %s bytes", artifact, f"{exported.file.n_bytes:,}")
    score = ScoreOptions(
        artifact=str(artifact),
        tokenizer=str(options.tokenizer),
        tokens=options.tokens or validation_shards(options.data),
        stride=options.stride,
        limit_tokens=options.limit_tokens,
        dtype=options.dtype,
        threads=options.threads,
        code=tuple(map(str, options.code)),
    )
    settings = {k: v for k, v in (options.settings or {}).items() if k not in training}
    scoring = by_section(settings, ("mixer", "ttt"))
    stages = {
        variant_name(*variant): _score_variant(score, variant, scoring, options.out, options.check)
        for variant in options.variants
    }
    report = RunReport(recipe=weights.config.recipe, export=exported.to_dict(), stages=stages)
    return _written(report, options.out, options.submission)


def run_module(
    options: ScoreOptions, out: Path, check: CheckOptions | None = None, submission: SubmitOptions | None = None
) -> RunReport:
    """Score and check a user's module: alone, and with mixer and test-time training where ``options`` ask for them.

    ``out``, ``check`` and ``submission`` are those of :class:`PipelineOptions`.

    Raises:
        InputError: an input is unusable.
    """
    if submission is not None:
        require_new(submission.folder)
    out.mkdir(parents=True, exist_ok=True)
    variants = dict.fromkeys([("none", False), (options.mixer, options.ttt)])
    plain = replace(options, mixer="none", ttt=False, settings={})
    stages = {
        variant_name(*variant): _score_variant(plain, variant, options.settings, out, check) for variant in variants
    }
    return _written(RunReport(recipe=None, export=None, stages=stages), out, submission)


def _written(report: RunReport, out: Path, submission: SubmitOptions | None) -> RunReport:
    write_json(out / "report.json", report.to_dict())
    if submission is not None:
        submit([read_report(out / f"score-{list(report.stages)[-1]}.json")], submission)
    return report


def describe(stages: Mapping[str, ScoreReport]) -> str:
    """Return the scores of a run as a table for a terminal, a row for each variant."""
    rows = [
        [
            name,
            f"{stage.bpb:.4f}",
            f"{stage.val_loss:.4f}",
            f"{stage.tokens_scored:,}",
            f"{stage.tokens_per_second or 0:,.0f}",
            stage.verdict or "not checked",
        ]
        for name, stage in stages.items()
    ]
    return format_table(["score", "bits per byte", "nats per token", "tokens", "tokens/s", "legal"], rows)


def variant_name(mixer: str, ttt: bool) -> str:
    """Name a combination of mixer and test-time training."""
    parts = ["sliding"] + (["mixer"] if mixer == "hedge" else [mixer] if mixer != "none" else []) + ["ttt"] * ttt
    return "-".join(parts)


def _score_variant(
    plain: ScoreOptions,
    variant: tuple[str, bool],
    settings: Mapping[str, Mapping[str, str]],
    out: Path,
    check: CheckOptions | None,
) -> ScoreReport:
    mixer, ttt = variant
    used = {"mixer": mixer != "none", "ttt": ttt}
    chosen = {section: values for section, values in settings.items() if used[section]}
    name = variant_name(mixer, ttt)
    LOG.info("scoring %s", name)
    session = open_session(replace(plain, mixer=mixer, ttt=ttt, settings=chosen))
    scored = score_session(session).without_scores()
    if check is not None:
        LOG.info("checking %s", name)
        checked = check_session(session, check)
        write_json(out / f"check-{name}.json", checked.to_dict())
        scored = scored.checked(checked)
        for finding in checked.findings[:1]:
            LOG.info("  %s: %s", finding.axiom, finding.message)
        for gap in checked.uncovered[:3]:
            LOG.info("  not covered: %s", gap)
    write_json(out / f"score-{name}.json", scored.to_dict())
    return scored


def validation_shards(data: Path) -> tuple[str, ...]:
    """Return the validation shards in or below a data folder, as :func:`evalkit.tokens.shards.split_of` tells them.

    Raises:
        InputError: there are none.
    """
    found = sorted((p for p in data.rglob("*") if p.name.endswith(NAMES) and split_of(p) == "val"), key=in_order)
    if not found:
        raise InputError(
            f"data folder {data} holds no validation shard such as x_val_000000.bin; name one with --tokens"
        )
    return tuple(str(path) for path in found if path.parent == found[0].parent)
