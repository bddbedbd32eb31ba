"""A submission folder of the challenge, generated from reports: no number in it is typed.

``submission.json`` has the keys of the challenge's own examples (author, github_id, name, blurb, date, val_loss,
val_bpb, bytes_total, bytes_code), and the runs it averages. Sizes are those of the files that ship.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.table import format_pairs, format_table
from evalkit.report.load import Report, read_check
from evalkit.verbs.compare import compare_values, require_same_tokens

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


def submit(reports: Sequence[Report], options: SubmitOptions) -> dict[str, Any]:
    """Write the folder; returns what is in ``submission.json``.

    Raises:
        InputError: reports are of different systems or texts, an artifact is not the one that was scored, a check says
            illegal, or what ships is over the cap. Nothing is written then.
    """
    if not reports:
        raise InputError("name at least one report with --report")
    folder = options.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; name another")
    require_same_tokens(reports)
    _require_same_system(reports)
    verdicts = _verdicts(reports, options.checks)
    sizes = _artifact_sizes(reports, options.artifacts)
    for path in (*options.code, *options.logs):
        if not path.is_file():
            raise InputError(f"{path} does not exist or is not a file")
    names = [path.name for path in (*options.code, *options.logs)]
    generated = ["submission.json", "README.md", "evalkit.log"]
    if len(set(names)) < len(names) or set(names) & set(generated):
        raise InputError(f"--code and --log need different file names, other than {', '.join(generated)}")
    code_bytes = sum(path.stat().st_size for path in options.code)
    largest = max(sizes)
    if largest + code_bytes > SIZE_CAP:
        raise InputError(
            f"artifact and code are {largest + code_bytes:,} bytes, {largest + code_bytes - SIZE_CAP:,} over the cap "
            f"of {SIZE_CAP:,}; make the artifact smaller (evalkit export --fit)"
        )
    values = _submission(reports, options, verdicts, sizes, code_bytes)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        (partial / "submission.json").write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(readme(values, reports, options), encoding="utf-8")
        (partial / "evalkit.log").write_text(_log(reports, verdicts), encoding="utf-8")
        for i, report in enumerate(reports):
            (partial / f"score-{i + 1}.json").write_text(
                json.dumps(_without_folders(report.values), indent=2, allow_nan=False) + "\n", encoding="utf-8"
            )
        for path in (*options.code, *options.logs):
            shutil.copyfile(path, partial / path.name)
        os.replace(partial, folder)
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return values


def _submission(
    reports: Sequence[Report], options: SubmitOptions, verdicts: list[str | None], sizes: list[int], code_bytes: int
) -> dict[str, Any]:
    losses, bits = [r.val_loss for r in reports], [r.bpb for r in reports]
    largest = max(sizes)
    return {
        "author": options.author,
        "github_id": options.github_id,
        "name": options.name,
        "blurb": options.blurb or _blurb(reports[0]),
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
        "legal": True if all(v == "legal" for v in verdicts) else None,
        "tokens_scored": reports[0].values["tokens_scored"],
        "bytes_scored": reports[0].values["bytes_scored"],
        "tokens_sha256": reports[0].tokens_sha256,
        "runs": [
            {
                "val_loss": r.val_loss,
                "val_bpb": r.bpb,
                "artifact_sha256": r.values["artifact"]["sha256"],
                "bytes_model": size,
                "seconds": r.values.get("seconds"),
                "verdict": verdict,
                "ledger_sha256": r.values.get("ledger_sha256"),
            }
            for r, size, verdict in zip(reports, sizes, verdicts, strict=True)
        ],
        "versions": reports[0].values.get("versions"),
    }


def readme(values: dict[str, Any], reports: Sequence[Report], options: SubmitOptions) -> str:
    """Return the README fragment: score, runs, sizes, how it was scored and how to score it again."""
    first = reports[0].values
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
    shards = ", ".join(Path(str(name)).name for name in first["tokens"].get("names", []))
    settings = " ".join(
        f"--set {section}.{key}={value}"
        for section, items in (first.get("settings") or {}).items()
        for key, value in items.items()
    )
    command = (
        f"evalkit score {Path(first['artifact']['path']).name} --tokens SHARDS --tokenizer MODEL "
        f"--seq-len {first['seq_len']} --stride {first['stride']} --mixer {first['mixer']}"
        f"{' --ttt' if first['ttt'] else ''}{' ' + settings if settings else ''}"
    )
    parts = [
        f"# {options.name}",
        values["blurb"],
        format_table(["run", "nats per token", "bits per byte", "bytes of model", "legal"], rows),
        f"{values['tokens_scored']:,} tokens ({shards}), {values['bytes_scored']:,} bytes of text, every position "
        f"scored exactly once, window {first['seq_len']}, stride {first['stride']}.",
        "## Size",
        format_table(["part", "bytes"], sizes),
        "## Score it again",
        f"```\n{command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _without_folders(values: dict[str, Any]) -> dict[str, Any]:
    """Return a report whose paths are bare file names: where they lay on this machine is nobody's business."""
    tokens, tokenizer = values["tokens"], values.get("tokenizer")
    return values | {
        "artifact": values["artifact"] | {"path": Path(values["artifact"]["path"]).name},
        "tokens": tokens | {"names": [Path(str(name)).name for name in tokens.get("names", [])]},
        "tokenizer": tokenizer and tokenizer | {"path": Path(str(tokenizer.get("path"))).name},
    }


def _blurb(report: Report) -> str:
    v = report.values
    config = v.get("config") or {}
    layers, width, vocabulary = (config.get(name) for name in ("num_layers", "model_dim", "vocab_size"))
    parts = [f"{layers} layers, width {width}, vocabulary {vocabulary}"]
    if v["mixer"] != "none":
        parts.append(f"online mixer ({v['mixer']})")
    if v["ttt"]:
        parts.append("score-first test-time training")
    return f"{'; '.join(parts)}; {v['artifact']['format']}, {v['artifact']['compression']}."


def _log(reports: Sequence[Report], verdicts: list[str | None]) -> str:
    blocks = []
    for i, (report, verdict) in enumerate(zip(reports, verdicts, strict=True)):
        v = report.values
        blocks.append(
            format_pairs(
                [
                    ("run", str(i + 1)),
                    ("artifact", f"{v['artifact']['sha256']} ({v['artifact']['bytes']:,} bytes)"),
                    ("tokens", f"{v['tokens_scored']:,}, sha256 {report.tokens_sha256}"),
                    ("tokenizer", str((v.get("tokenizer") or {}).get("sha256"))),
                    ("val_loss", f"{report.val_loss:.8f}"),
                    ("val_bpb", f"{report.bpb:.8f}"),
                    ("seconds", f"{v.get('seconds') or 0:.1f}"),
                    ("ledger", str(v.get("ledger_sha256"))),
                    ("verdict", verdict or "not checked"),
                    ("versions", json.dumps(v.get("versions"))),
                ]
            )
        )
    if len(reports) > 1:
        summary = compare_values([r.bpb for r in reports], [reports[0].bpb], metric="bpb")
        blocks.append(format_pairs([("mean val_bpb", f"{summary.mean:.8f}"), ("sd", f"{summary.sd or 0:.8f}")]))
    return "\n\n".join(blocks) + "\n"


def _require_same_system(reports: Sequence[Report]) -> None:
    first = reports[0]
    for report in reports:
        if not isinstance(report.values.get("artifact"), dict):
            raise InputError(f"{report.path} has no artifact; a submission needs one")
        for name in _SAME:
            if report.values.get(name) != first.values.get(name):
                raise InputError(
                    f"{report.path} and {first.path} differ in {name}; the runs of one submission differ in their "
                    f"seed alone"
                )


def _verdicts(reports: Sequence[Report], checks: tuple[Path, ...]) -> list[str | None]:
    if checks and len(checks) != len(reports):
        raise InputError(f"{len(checks)} --check files for {len(reports)} reports; give one for each, in their order")
    verdicts: list[str | None] = []
    for i, report in enumerate(reports):
        verdict = {True: "legal", False: "illegal", None: None}.get(report.values.get("legal"))
        if checks:
            verdict = read_check(checks[i], report)["verdict"]
        if verdict == "illegal" or report.values.get("legal") is False:
            raise InputError(f"{report.path} is illegal; it cannot be submitted (evalkit check says why)")
        verdicts.append(verdict)
    return verdicts


def _artifact_sizes(reports: Sequence[Report], artifacts: tuple[Path, ...]) -> list[int]:
    """Return the sizes of the artifact files, each checked against its report's hash."""
    if artifacts and len(artifacts) != len(reports):
        raise InputError(f"{len(artifacts)} --artifact files for {len(reports)} reports; give one for each, in order")
    sizes = []
    for i, report in enumerate(reports):
        path = artifacts[i] if artifacts else Path(report.values["artifact"]["path"])
        if not path.is_file():
            raise InputError(f"artifact {path} does not exist; name it with --artifact")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != report.values["artifact"]["sha256"]:
            raise InputError(f"{path} is not the artifact that {report.path} scored (its SHA-256 is another)")
        sizes.append(len(data))
    return sizes
