"""A submission folder of the challenge, generated from reports: no number in it is typed.

``submission.json`` has the keys of the challenge's own examples (author, github_id, name, blurb, date, val_loss,
val_bpb, bytes_total, bytes_code), and the runs it averages. Sizes are those of the files that ship.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalkit.network.factory import identify
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_json
from evalkit.plumbing.table import format_table
from evalkit.report.load import SavedReport, read_check, require_same_tokens
from evalkit.report.score_report import ArtifactIdentity, FileIdentity, ScoreReport
from evalkit.verbs.command_line import without_folders
from evalkit.verbs.compare import is_same_run

_SAME = ("recipe", "config", "seq_len", "stride", "mixer", "ttt", "settings")


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """What goes into the folder.

    Attributes:
        folder: to make; it must not exist, or be empty.
        name: of the submission.
        author: who submits.
        github_id: their account.
        blurb: one sentence; empty generates one from the reports.
        date: ISO date; the caller's clock.
        code: files that ship with the artifact and count towards the cap.
        logs: training logs to copy.
        checks: files of ``evalkit check --json``, one for each report, in the same order.
        artifacts: paths of the artifacts, one for each report; empty takes them from the reports.
    """

    folder: Path
    name: str
    author: str
    github_id: str = ""
    blurb: str = ""
    date: str
    code: tuple[Path, ...] = ()
    logs: tuple[Path, ...] = ()
    checks: tuple[Path, ...] = ()
    artifacts: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One seed: its report with the verdict of its check, and the artifact that it is about."""

    report: ScoreReport
    artifact: ArtifactIdentity

    @property
    def code(self) -> tuple[FileIdentity, ...]:
        """The code that the score counted: of a module the factory's file, and what ``--code`` named."""
        return (*self.artifact.files[:1], *self.artifact.code)

    @property
    def model_bytes(self) -> int:
        """Bytes of the artifact, or of a module's weights."""
        return self.artifact.bytes - sum(file.bytes for file in self.artifact.files[:1])


def require_new(folder: Path) -> None:
    """Find out before the work that a submission's folder can be made.

    Raises:
        InputError: something is there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; name another")


def submit(reports: Sequence[SavedReport], options: SubmitOptions) -> dict[str, Any]:
    """Write the folder; returns what is in ``submission.json``, and ``score_again``, the command line of each run.

    Raises:
        InputError: reports are of different systems or texts, a file is not the one that was scored, a check says
            illegal, or what ships is over the cap. Nothing is written then.
    """
    if not reports:
        raise InputError("name at least one report with --report")
    folder = options.folder
    require_new(folder)
    require_same_tokens(reports)
    runs = _runs(reports, options)
    options = replace(options, code=_every_code(options, runs))
    for path in (*options.code, *options.logs):
        if not path.is_file():
            raise InputError(f"{path} does not exist or is not a file")
    names = [path.name for path in (*options.code, *options.logs)]
    generated = ["submission.json", "README.md", "evalkit.log"]
    if len(set(names)) < len(names) or set(names) & set(generated):
        raise InputError(f"--code and --log need different file names, other than {', '.join(generated)}")
    code_bytes = sum(path.stat().st_size for path in options.code)
    largest = max(run.model_bytes for run in runs)
    if largest + code_bytes > SIZE_CAP:
        raise InputError(
            f"artifact and code are {largest + code_bytes:,} bytes, {largest + code_bytes - SIZE_CAP:,} over the cap "
            f"of {SIZE_CAP:,}; make the artifact smaller (evalkit export --fit)"
        )
    values = _submission(runs, options, code_bytes)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        write_json(partial / "submission.json", values)
        (partial / "README.md").write_text(readme(values, runs, options), encoding="utf-8")
        (partial / "evalkit.log").write_text(_log(runs, code_bytes), encoding="utf-8")
        for i, run in enumerate(runs):
            write_json(partial / f"score-{i + 1}.json", _without_folders(run).to_dict())
        for path in (*options.code, *options.logs):
            shutil.copyfile(path, partial / path.name)
        os.replace(partial, folder)
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {**values, "score_again": [score_again(run.report) for run in runs]}


def _submission(runs: Sequence[_Run], options: SubmitOptions, code_bytes: int) -> dict[str, Any]:
    first = runs[0].report
    losses, bits = [run.report.val_loss for run in runs], [run.report.bpb for run in runs]
    largest = max(run.model_bytes for run in runs)
    return {
        "author": options.author,
        "github_id": options.github_id,
        "name": options.name,
        "blurb": options.blurb or _blurb(runs[0]),
        "date": options.date,
        "val_loss": statistics.fmean(losses),
        "val_bpb": statistics.fmean(bits),
        "val_loss_sd": statistics.stdev(losses) if len(losses) > 1 else None,
        "val_bpb_sd": statistics.stdev(bits) if len(bits) > 1 else None,
        "bytes_total": largest + code_bytes,
        "bytes_model": largest,
        "bytes_code": code_bytes,
        "bytes_headroom": SIZE_CAP - largest - code_bytes,
        "code": {path.name: path.stat().st_size for path in options.code},
        "legal": True if all(run.report.legal for run in runs) else None,
        "tokens_scored": first.tokens_scored,
        "bytes_scored": first.bytes_scored,
        "tokens_sha256": first.tokens.sha256,
        "runs": [
            {
                "val_loss": run.report.val_loss,
                "val_bpb": run.report.bpb,
                "artifact_sha256": run.artifact.sha256,
                "bytes_model": run.model_bytes,
                "seconds": run.report.seconds,
                "verdict": run.report.verdict,
                "ledger_sha256": run.report.ledger_sha256,
            }
            for run in runs
        ],
        "versions": first.versions,
    }


def readme(values: dict[str, Any], runs: Sequence[_Run], options: SubmitOptions) -> str:
    """Return the README fragment: score, runs, sizes, how it was scored and how to score it again."""
    first = runs[0].report
    rows = [
        [
            str(i + 1),
            f"{run['val_loss']:.6f}",
            f"{run['val_bpb']:.6f}",
            f"{run['bytes_model']:,}",
            run["verdict"] or "not checked",
        ]
        for i, run in enumerate(values["runs"])
    ]
    if len(rows) > 1:
        rows.append(["mean", f"{values['val_loss']:.6f}", f"{values['val_bpb']:.6f}", "", ""])
        rows.append(["sd", f"{values['val_loss_sd']:.6f}", f"{values['val_bpb_sd']:.6f}", "", ""])
    sizes = [["largest model", f"{values['bytes_model']:,}"]]
    sizes += [[name, f"{size:,}"] for name, size in values["code"].items()]
    sizes += [["total", f"{values['bytes_total']:,}"], ["under the cap", f"{values['bytes_headroom']:,}"]]
    shards = ", ".join(Path(name).name for name in first.tokens.names)
    parts = [
        f"# {options.name}",
        values["blurb"],
        format_table(["run", "nats per token", "bits per byte", "bytes of model", "legal"], rows),
        f"{values['tokens_scored']:,} tokens ({shards}), {values['bytes_scored']:,} bytes of text, every position "
        f"scored exactly once, window {first.seq_len}, stride {first.stride}.",
        "## Size",
        format_table(["part", "bytes"], sizes),
        "## Score it again",
        "In a folder that holds the files named here:",
        "```\n" + "\n".join(score_again(run.report) for run in runs) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def score_again(report: ScoreReport) -> str:
    """Return the command line that scores a run again in a folder that holds its files."""
    if report.command is None:
        return "evalkit.score(...) in Python: the model was an object, which no command line names"
    return shlex.join(without_folders(report.command))


def _without_folders(run: _Run) -> ScoreReport:
    """Return a report whose paths are bare file names: where they lay on this machine is nobody's business."""
    report = run.report
    return replace(
        report,
        artifact=replace(
            run.artifact,
            path=Path(run.artifact.path).name,
            files=tuple(replace(file, path=Path(file.path).name) for file in run.artifact.files),
            code=tuple(replace(file, path=Path(file.path).name) for file in run.artifact.code),
        ),
        tokens=replace(report.tokens, names=tuple(Path(name).name for name in report.tokens.names)),
        tokenizer=replace(report.tokenizer, path=Path(report.tokenizer.path).name),
        command=None if report.command is None else tuple(without_folders(report.command)),
    )


def _blurb(run: _Run) -> str:
    report, config = run.report, run.report.config or {}
    layers, width, vocabulary = (config.get(name) for name in ("num_layers", "model_dim", "vocab_size"))
    parts = [
        f"{layers} layers, width {width}, vocabulary {vocabulary}"
        if config
        else f"{run.artifact.parameters:,} parameters"
    ]
    if report.mixer != "none":
        parts.append(f"online mixer ({report.mixer})")
    if report.ttt:
        parts.append("score-first test-time training")
    stored = "" if run.artifact.format == "module" else f", {run.artifact.compression}"
    return f"{'; '.join(parts)}; {run.artifact.format}{stored}."


def _log(runs: Sequence[_Run], code_bytes: int) -> str:
    """Return what the runs printed, in the lines that logs of the challenge have, so that tools can read them."""
    blocks = []
    for i, run in enumerate(runs):
        report = run.report
        blocks.append(
            [
                f"val_loader: run {i + 1} sha256:{report.tokens.sha256} tokens:{report.tokens_scored}",
                f"tokenizer: sha256:{report.tokenizer.sha256}",
                f"artifact: sha256:{run.artifact.sha256}",
                f"Serialized model: {run.model_bytes} bytes",
                f"Code size: {code_bytes} bytes",
                f"Total submission size: {run.model_bytes + code_bytes} bytes",
                f"final val_loss:{report.val_loss:.8f} val_bpb:{report.bpb:.8f} eval_time:{report.seconds:.1f}s",
                f"ledger: sha256:{report.ledger_sha256}",
                f"verdict: {report.verdict or 'not checked'}",
                f"versions: {json.dumps(report.versions)}",
            ]
        )
    if len(runs) > 1:
        bits = [run.report.bpb for run in runs]
        blocks.append([f"mean of {len(runs)} runs {statistics.fmean(bits):.8f}, sd {statistics.stdev(bits):.8f}"])
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


def _runs(reports: Sequence[SavedReport], options: SubmitOptions) -> list[_Run]:
    """Return what is submitted, after checking that it is one system, that its files are there, and nothing illegal.

    Raises:
        InputError: it is not.
    """
    for name, files in (("check", options.checks), ("artifact", options.artifacts)):
        if files and len(files) != len(reports):
            raise InputError(f"{len(files)} --{name} files for {len(reports)} reports; give one for each, in order")
    first = reports[0]
    runs = []
    for i, saved in enumerate(reports):
        report, artifact = saved.report, saved.report.artifact
        if artifact is None:
            raise InputError(f"{saved.path} has no artifact; a submission needs one")
        for field in _SAME:
            if getattr(report, field) != getattr(first.report, field):
                raise InputError(
                    f"{saved.path} and {first.path} differ in {field}; the runs of one submission differ in their "
                    f"seed alone"
                )
        if options.checks:
            report = report.checked(read_check(options.checks[i], saved))
        if report.verdict == "illegal":
            raise InputError(f"{saved.path} is illegal ({report.illegal_because}); it cannot be submitted")
        _require_scored_files(saved, artifact, options.artifacts[i] if options.artifacts else None)
        if options.artifacts:  # it may have another name by now
            path, words = str(options.artifacts[i]), report.command
            artifact = replace(artifact, path=path)
            if words is not None and not words[2].startswith("-"):
                words = (*words[:2], path, *words[3:])
            report = replace(report, artifact=artifact, command=words)
        runs.append(_Run(report=report, artifact=artifact))
    for one, other in itertools.combinations(reports, 2):
        if is_same_run(one, other):
            raise InputError(f"{one.path} and {other.path} are one run; name each run once")
    return runs


def _require_scored_files(saved: SavedReport, artifact: ArtifactIdentity, named: Path | None) -> None:
    """Check that the files of a score are there, and are the ones.

    Raises:
        InputError: one is missing or another, or the model was an object in memory.
    """
    if artifact.format == "module" and not artifact.files:
        raise InputError(f"{saved.path} scored an object of Python's; score --module FILE.py:FACTORY to submit it")
    if artifact.format == "module" and named is not None:
        raise InputError(f"{saved.path} scored a module, whose files it names; leave out --artifact")
    scored = FileIdentity(path=str(named or artifact.path), sha256=artifact.sha256, bytes=artifact.bytes)
    for file in (*(artifact.files or (scored,)), *artifact.code):
        if not Path(file.path).exists():
            hint = "name it with --artifact" if file is scored else f"it is where {saved.path} found it, or nowhere"
            raise InputError(f"{'artifact ' if file is scored else ''}{file.path} does not exist; {hint}")
        found = identify(file.path)
        if (found.sha256, found.bytes) != (file.sha256, file.bytes):
            what = "the artifact" if file is scored else "the file"
            raise InputError(f"{file.path} is not {what} that {saved.path} scored (its SHA-256 is another)")


def _every_code(options: SubmitOptions, runs: Sequence[_Run]) -> tuple[Path, ...]:
    """Return every code file that ships, each once: what the options name, and what the scores counted."""
    named = [*options.code, *(Path(file.path) for run in runs for file in run.code)]
    return tuple({path.resolve(): path for path in named}.values())
