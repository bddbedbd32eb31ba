"""Interrupted runs: a folder for each run, found again by what determines its scores."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import shutil
from contextlib import suppress
from typing import Any

import numpy as np

from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import user_folder, write_atomically
from evalkit.prequential.ledger import Ledger

_ARRAY = "__array__"


class StateUnavailableError(InputError):
    """The run's folder is in use or cannot be written."""


class ResumeFolder:
    """The ledger and the forecaster's state of one run.

    Args:
        identity: everything that determines the scores; its hash names the folder.
        resume: continue what an earlier run left; otherwise start over.

    Raises:
        StateUnavailableError: another process is working on the same run, or the folder cannot be written.
    """

    def __init__(self, identity: dict[str, Any], *, resume: bool) -> None:
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
        self.path = user_folder("EVALKIT_STATE", "XDG_STATE_HOME", "~/.local/state") / key
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("w")
        except OSError as error:
            raise StateUnavailableError(
                f"{self.path}: {error.strerror}; set EVALKIT_STATE to a folder that can be written"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateUnavailableError(
                f"another process is running this very score (its state is in {self.path})"
            ) from None
        self._identity = identity
        with suppress(InputError):  # for a message only
            write_atomically(self.path / "identity.json", json.dumps(identity, sort_keys=True).encode())
        if not resume:
            for name in ("nll.f64", "bytes.i32", "spans.jsonl", "state.npz"):
                (self.path / name).unlink(missing_ok=True)
        self.ledger = Ledger(self.path)

    def nearest(self) -> list[str] | None:
        """Return in what another interrupted run differs, the one that differs least; None where there is no other."""
        differing = []
        for path in self.path.parent.glob("*/identity.json"):
            with suppress(OSError, ValueError):
                other = json.loads(path.read_bytes())
                if path.parent != self.path and (path.parent / "nll.f64").exists():
                    differing.append([name for name, value in self._identity.items() if other.get(name) != value])
        return min(differing, key=len, default=None)

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the forecaster's state, as of the ledger's next position."""
        self.ledger.flush()
        write_atomically(self.path / "state.npz", dump_state({"position": self.ledger.next_position, "state": state}))

    def load_state(self) -> dict[str, Any] | None:
        """Return the saved state, with the ledger cut back to it; None (and an empty ledger) if there is none."""
        path = self.path / "state.npz"
        if not path.exists():
            self.ledger.rewind(1)
            return None
        saved = parse_state(path.read_bytes())
        self.ledger.rewind(int(saved["position"]))
        state: dict[str, Any] = saved["state"]
        return state

    def remove(self) -> None:
        """Delete everything: the run is complete."""
        self.ledger.close()
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def close(self) -> None:
        """Keep everything for a later ``--resume``."""
        self.ledger.close()
        self._lock.close()


def dump_state(state: dict[str, Any]) -> bytes:
    """Write nested dicts and lists of arrays, numbers and strings as an npz file, without pickle."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def strip(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            name = f"a{len(arrays)}"
            arrays[name] = value
            return {_ARRAY: name}
        if isinstance(value, dict):
            return {str(key): strip(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [strip(item) for item in value]
        return value.item() if isinstance(value, np.generic) else value

    skeleton = json.dumps(strip(state))
    buffer = io.BytesIO()
    np.savez(buffer, skeleton=np.frombuffer(skeleton.encode(), dtype=np.uint8), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def parse_state(content: bytes) -> dict[str, Any]:
    """Read what :func:`dump_state` wrote.

    Raises:
        InputError: the content is damaged.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        skeleton = json.loads(arrays.pop("skeleton").tobytes())
    except Exception as error:  # numpy and zipfile raise many kinds
        raise InputError(f"the saved state is damaged ({error}); start over without --resume") from None

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return arrays[value[_ARRAY]] if set(value) == {_ARRAY} else {key: fill(item) for key, item in value.items()}
        return [fill(item) for item in value] if isinstance(value, list) else value

    state: dict[str, Any] = fill(skeleton)
    return state
