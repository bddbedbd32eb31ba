"""Runs `evalkit verify` over real submission folders with known faults and clean ones, and prints its table.

    python bench/verify_cases.py CASES_DIR SNAPSHOT.git

CASES_DIR holds faults.json and clean.json: lists of {id, pr, ref, path, kind, severity}. SNAPSHOT.git is the git
directory of a snapshot of openai/parameter-golf with its pull requests. Nothing in the folders is executed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from evalkit.plumbing.table import format_table
from evalkit.verify.verify import VerifyReport, verify_folder

CLAIMS = {
    "log_vs_json": {"score"},
    "bpb_vs_loss": {"bpb"},
    "byte_denominator": {"bpb", "coverage"},
    "size": {"size"},
    "coverage": {"coverage"},
    "time": {"time"},
    "seeds": {"seeds", "score", "configuration"},
    "mixed_config": {"configuration", "seeds"},
    "missing_log": {"files", "score"},
    "val_in_train": {"data"},
    "significance": {"significance"},
}
"""Claims that name a kind of fault; any contradiction names the other kinds."""


def extract(snapshot: str, ref: str, path: str, root: Path) -> Path:
    git = ["git", "--git-dir", snapshot]
    listed = [*git, "ls-tree", "-r", "-z", "--name-only", ref, path + "/"]
    names = subprocess.run(listed, check=True, capture_output=True)
    for name in names.stdout.decode().split("\0")[:-1]:
        blob = subprocess.run([*git, "show", f"{ref}:{name}"], capture_output=True)
        if blob.returncode == 0:  # a snapshot lacks large files
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(blob.stdout)
    return root / path


def contradicted(report: VerifyReport) -> set[str]:
    return {c.claim for c in report.claims if c.status == "contradicted"}


def is_found(kind: str, report: VerifyReport) -> bool:
    if kind == "missing_log" and report.verdict == "incomplete":
        return True
    claims = contradicted(report)
    return bool(claims & CLAIMS[kind] if kind in CLAIMS else claims)


def main(cases: Path, snapshot: str) -> None:
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    slowest = 0.0
    for name in ("faults", "clean"):
        entries: list[dict[str, Any]] = json.loads((cases / f"{name}.json").read_text())
        for entry in entries:
            if entry.get("severity") == "flag":
                continue
            with tempfile.TemporaryDirectory() as root:
                folder = extract(snapshot, entry["ref"], entry["path"], Path(root))
                began = time.perf_counter()
                report = verify_folder(folder)
                slowest = max(slowest, time.perf_counter() - began)
            kind = entry["kind"] if name == "faults" else "clean"
            ok = is_found(kind, report) if name == "faults" else report.verdict != "contradicted"
            total[kind] += 1
            found[kind] += ok
            if not ok:
                print(f"{entry['id']} PR {entry['pr']} {kind}: {report.verdict} {sorted(contradicted(report))}")
    rows = [[kind, str(total[kind]), str(found[kind])] for kind in sorted(total, key=lambda k: (k == "clean", k))]
    faults = sum(total.values()) - total["clean"]
    rows.append(["all faults", str(faults), str(sum(found.values()) - found["clean"])])
    print(format_table(["kind", "folders", "judged right"], rows))
    print(f"slowest folder: {slowest:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
