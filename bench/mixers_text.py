"""Shared by the mixer benchmarks: where the text is, shards, byte counts, timing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

DATA = Path(__file__).resolve().parents[1] / "../shared/data"


def load_tokens(folder: str) -> npt.NDArray[np.uint16]:
    """Return the tokens of the validation shard in ``folder`` (relative to the shared data)."""
    path = DATA / folder / "fineweb_val_000000.bin"
    if not path.is_file():
        raise SystemExit(f"{path} is not there; these benchmarks need the shared text data")
    header = np.fromfile(path, dtype="<i4", count=256)
    return np.fromfile(path, dtype="<u2", offset=1024)[: header[2]]


def load_text(folder: str) -> bytes:
    """Return the texts of ``docs.jsonl`` in ``folder``, one after the other."""
    with (DATA / folder / "docs.jsonl").open(encoding="utf-8") as lines:
        return "".join(json.loads(line)["text"] for line in lines).encode()


def cpu_seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Return the least processor time of several runs: other load on the machine counts less than in wall time."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best
