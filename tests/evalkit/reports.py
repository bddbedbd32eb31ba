"""Score reports for tests: a real one from a tiny artifact, and variations on it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def subject_of(report: Path) -> dict[str, Any]:
    """Return what ``evalkit check`` would say that it checked, had it checked the score of a report."""
    v = json.loads(report.read_text(encoding="utf-8"))
    names = ("mixer", "ttt", "context", "seq_len", "stride", "settings")
    hashes = {f"{name}_sha256": v[name]["sha256"] for name in ("artifact", "tokenizer")}
    return {"covered": {"subject": {name: v[name] for name in names} | hashes}}


def write_report(path: Path, values: dict[str, Any], nll: npt.NDArray[np.float64], num_bytes: npt.NDArray[Any]) -> Path:
    """Write a report whose sums are those of ``nll``, and the per-token file beside it."""
    nats = float(nll.sum())
    values = values | {"val_loss": nats / len(nll), "bpb": nats / np.log(2) / int(num_bytes.sum()), "nats": nats}
    path.write_text(json.dumps(values), encoding="utf-8")
    buffer = io.BytesIO()
    np.savez(buffer, position=np.arange(1, len(nll) + 1), nll=nll, bytes=num_bytes.astype(np.int32))
    path.with_suffix(".npz").write_bytes(buffer.getvalue())
    return path
