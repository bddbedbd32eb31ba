"""The ledger: one row for each scored position, in order, written once, never changed.

A row is (position, nats, bytes). Rows are appended a span at a time, each span hashed together with the hash of the
one before it, so that the final hash vouches for every number and for their order.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.errors import ForecasterError, InputError

_GENESIS = "0" * 64


class Ledger:
    """Append-only record of scores, on disk, so that memory stays flat.

    Args:
        folder: where ``nll.f64``, ``bytes.i32`` and ``spans.jsonl`` are kept; a temporary folder by default. A folder
            that holds an interrupted ledger is continued from its last whole span.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="evalkit-ledger-") if folder is None else None
        self.folder = folder if folder is not None else Path(self._temporary.name)  # type: ignore[union-attr]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open()

    def _open(self) -> None:
        """Take up what the folder holds, and open its files for more."""
        self.next_position = 1
        self.chain = _GENESIS
        self._span_stops: list[int] = []
        self._span_nats: list[float] = []
        self.num_bytes = 0
        self._restore()
        self._nll = (self.folder / "nll.f64").open("ab")
        self._bytes = (self.folder / "bytes.i32").open("ab")
        self._spans = (self.folder / "spans.jsonl").open("a", encoding="utf-8")

    def __len__(self) -> int:
        return self.next_position - 1

    @property
    def nats(self) -> float:
        """Sum of all scores in nats."""
        return math.fsum(self._span_nats)

    @property
    def bpb(self) -> float:
        """Bits per byte so far; NaN while no byte has been scored."""
        return bits_per_byte(self.nats, self.num_bytes) if self.num_bytes else math.nan

    def record(self, start: int, nll: npt.NDArray[np.float64], num_bytes: npt.NDArray[np.int32]) -> None:
        """Append the scores of positions ``start ..``.

        Args:
            start: first position; it must follow the last recorded one.
            nll: nats, float64 ``[n]``.
            num_bytes: bytes that each target stands for, int32 ``[n]``.

        Raises:
            ForecasterError: positions do not follow, or a score is not a finite number that is at least 0.
        """
        if start != self.next_position:
            raise ForecasterError(f"position {start} was scored where position {self.next_position} was due")
        check_scores(nll, start, len(num_bytes))
        nll = np.ascontiguousarray(nll, dtype="<f8")
        num_bytes = np.ascontiguousarray(num_bytes, dtype="<i4")
        chain = _link(self.chain, start, nll, num_bytes)
        with self._keeping():
            self._nll.write(nll.tobytes())
            self._bytes.write(num_bytes.tobytes())
        self._append(start + len(nll), chain, nll, num_bytes)
        with self._keeping():
            self._spans.write(json.dumps({"stop": self.next_position, "chain": chain}) + "\n")

    def flush(self) -> None:
        """Hand everything to the operating system; the scores go first, so that no span is announced without them."""
        with self._keeping():
            for file in (self._nll, self._bytes, self._spans):
                file.flush()

    def rewind(self, position: int) -> None:
        """Forget spans that end after ``position``: a resumed forecaster's learning may lag behind the ledger.

        Raises:
            InputError: no span ends at ``position``.
        """
        self.flush()
        stops = [1, *self._span_stops]
        if position not in stops:
            raise InputError(
                f"the saved state is at position {position}, where the ledger in {self.folder} has no seam"
            )
        keep = stops.index(position)
        self.close()
        os.truncate(self.folder / "nll.f64", 8 * (position - 1))
        os.truncate(self.folder / "bytes.i32", 4 * (position - 1))
        lines = (self.folder / "spans.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (self.folder / "spans.jsonl").write_text("".join(lines[:keep]), encoding="utf-8")
        self._open()

    def scores(self) -> npt.NDArray[np.float64]:
        """Return every score in nats, ``[len(self)]``, mapped from disk."""
        self.flush()
        return _map(self.folder / "nll.f64", np.dtype("<f8"), len(self))

    def bytes(self) -> npt.NDArray[np.int32]:
        """Return the bytes of every position, ``[len(self)]``, mapped from disk."""
        self.flush()
        return _map(self.folder / "bytes.i32", np.dtype("<i4"), len(self))

    def close(self) -> None:
        """Close the files; a temporary ledger keeps its folder until it is collected."""
        with self._keeping():
            for file in (self._nll, self._bytes, self._spans):
                file.close()

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"the scores cannot be kept in {self.folder} ({error.strerror}); make room, or name another place with "
                f"EVALKIT_STATE or TMPDIR; --resume goes on from the last whole span"
            ) from error

    def _append(self, stop: int, chain: str, nll: npt.NDArray[np.float64], num_bytes: npt.NDArray[np.int32]) -> None:
        self.next_position, self.chain = stop, chain
        self._span_stops.append(stop)
        self._span_nats.append(math.fsum(nll.tolist()))
        self.num_bytes += int(num_bytes.sum(dtype=np.int64))

    def _restore(self) -> None:
        """Take up whole spans whose hashes hold, and cut the files behind the last of them."""
        spans = self.folder / "spans.jsonl"
        good = 0
        if spans.exists():
            nll_file, bytes_file = self.folder / "nll.f64", self.folder / "bytes.i32"
            rows = min(nll_file.stat().st_size // 8, bytes_file.stat().st_size // 4)
            nll, num_bytes = _map(nll_file, np.dtype("<f8"), rows), _map(bytes_file, np.dtype("<i4"), rows)
            for line in spans.read_bytes().splitlines(keepends=True):
                entry = _parse_span(line)
                start = self.next_position
                if entry is None or not start < entry[0] <= rows + 1:
                    break
                part, part_bytes = nll[start - 1 : entry[0] - 1], num_bytes[start - 1 : entry[0] - 1]
                if _link(self.chain, start, part, part_bytes) != entry[1]:
                    break
                self._append(entry[0], entry[1], part, part_bytes)
                good += len(line)
        for name, size in (("spans.jsonl", good), ("nll.f64", 8 * len(self)), ("bytes.i32", 4 * len(self))):
            path = self.folder / name
            path.touch()
            os.truncate(path, size)


def check_scores(nll: Any, start: int, expected: int) -> None:
    """Check what a forecaster returned: float64, one finite number that is not negative for each position.

    Raises:
        ForecasterError: it is anything else.
    """
    if not isinstance(nll, np.ndarray) or nll.shape != (expected,) or nll.dtype != np.float64:
        got = f"{nll.dtype}{list(nll.shape)}" if isinstance(nll, np.ndarray) else type(nll).__name__
        raise ForecasterError(f"score returned {got} at position {start}; expected float64[{expected}]")
    bad = np.flatnonzero(~np.isfinite(nll))
    if bad.size:
        raise ForecasterError(
            f"position {start + int(bad[0])} scored {nll[bad[0]]} nats; expected a finite number: the model or its "
            f"input holds NaN or infinity"
        )
    negative = np.flatnonzero(nll < -1e-9)
    if negative.size:
        raise ForecasterError(
            f"position {start + int(negative[0])} scored {nll[negative[0]]:.6g} nats: a probability above 1"
        )


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Convert a total in nats to bits per byte: nats / ln 2 / bytes.

    Raises:
        InputError: there are no bytes to divide by.
    """
    if num_bytes <= 0:
        raise InputError("the scored tokens stand for 0 bytes of text; bits per byte needs at least 1")
    return nats / math.log(2) / num_bytes


def _link(chain: str, start: int, nll: npt.NDArray[np.float64], num_bytes: npt.NDArray[np.int32]) -> str:
    digest = hashlib.sha256(chain.encode())
    digest.update(start.to_bytes(8, "little"))
    digest.update(nll.tobytes())
    digest.update(num_bytes.tobytes())
    return digest.hexdigest()


def _parse_span(line: bytes) -> tuple[int, str] | None:
    try:
        entry = json.loads(line)
        return (int(entry["stop"]), str(entry["chain"])) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _map(path: Path, dtype: np.dtype[Any], rows: int) -> npt.NDArray[Any]:
    if rows == 0:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(rows,))
