"""What the count stores share: learning in place, the undo log, roll-back to the last commit, and saved state."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
State = dict[str, Array]


class Undoable:
    """Arrays that are learned in place and return to the last ``commit`` bit for bit.

    Small arrays are copied when the first token after a commit is learned. Of large ones every word of 64 bits that is
    overwritten goes to a log: int64[rows, 2], with ``4 * place + number of the array`` and what the word was. Large
    arrays that are replaced are kept until the commit, and what happens to their successors needs no log.

    Attributes:
        arrays: everything that is learned, by name.
        large: names of the logged arrays, at most four; their number in the log is their place here.
    """

    def __init__(self, arrays: dict[str, Array], large: tuple[str, ...]) -> None:
        self.arrays = arrays
        self.large = large
        self._small = [name for name in arrays if name not in large]
        self.log: Ints = np.zeros((1024, 2), dtype=np.int64)
        self.logged = 0
        self._saved: dict[str, Array] | None = None
        self._kept_log: tuple[Ints, int] | None = None

    @property
    def table_bytes(self) -> int:
        """Bytes of the large arrays now."""
        return sum(int(self.arrays[name].nbytes) for name in self.large)

    def learn(self, tokens: Ints, outputs: tuple[Array, ...]) -> None:
        """Score then learn the next tokens of the stream, int64[T], filling ``outputs``."""
        if self._saved is None:
            self._saved = {name: self.arrays[name].copy() for name in self._small}
        position = 0
        while position < len(tokens):
            if self._kept_log is not None:
                self.logged = 0
            self.reserve(self.log_rows(len(tokens) - position))
            position, self.logged = self.run(tokens, position, outputs)
            # At once, not before the next token: its distribution may be asked for first.
            self.make_room()

    def log_rows(self, count: int) -> int:
        """Return how many rows of the log ``count`` tokens may need."""
        raise NotImplementedError

    def run(self, tokens: Ints, start: int, outputs: tuple[Array, ...]) -> tuple[int, int]:
        """Score and learn from ``start`` on until there is no room; return (position reached, rows of the log)."""
        raise NotImplementedError

    def make_room(self) -> None:
        """See to it that the next token fits."""
        raise NotImplementedError

    def reserve(self, rows: int) -> None:
        """Make room for more rows of the log."""
        needed = self.logged + rows
        if needed > len(self.log):
            grown = np.zeros((max(needed, 2 * len(self.log)), 2), dtype=np.int64)
            grown[: self.logged] = self.log[: self.logged]
            self.log = grown

    def replace(self, arrays: dict[str, Array]) -> None:
        """Put other arrays in place of some, keeping for a roll-back what was there."""
        if self._kept_log is None and self._saved is not None:
            for name in self.large:
                # Those that stay go on being written to, without a log.
                self._saved[name] = self.arrays[name] if name in arrays else self.arrays[name].copy()
            self._kept_log = self.log, self.logged
            self.log = np.zeros((1024, 2), dtype=np.int64)
            self.logged = 0
        self.arrays.update(arrays)

    def commit(self) -> None:
        """Make everything learned so far permanent."""
        self._saved = None
        self._kept_log = None
        self.logged = 0

    def rollback(self) -> None:
        """Return to the last commit."""
        if self._saved is None:
            return
        if self._kept_log is not None:
            self.log, self.logged = self._kept_log
        self.arrays.update(self._saved)
        words = [self.arrays[name].reshape(-1).view(np.uint64) for name in self.large]
        _restore(tuple((words * 4)[:4]), self.log, self.logged)
        self.commit()

    def state_dict(self) -> dict[str, Array]:
        """Return copies of what has been learned. Raises ValueError if something is uncommitted."""
        if self._saved is not None:
            raise ValueError("the counts hold uncommitted tokens; commit or roll back before saving")
        return {name: array.copy() for name, array in self.pack().items()}

    def pack(self) -> dict[str, Array]:
        """Return the part of the arrays that is in use."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Restore what ``state_dict`` returned. Raises ValueError if it does not fit."""
        for name, own in self.pack().items():
            given, skipped = state[name], int(name not in self._small)
            if given.dtype != own.dtype or given.ndim != own.ndim or given.shape[skipped:] != own.shape[skipped:]:
                raise ValueError(f"saved counts {name!r} are {given.dtype}{list(given.shape)}; expected {own.dtype}")
        unpacked = self.unpack(state)
        if unpacked is None:
            raise ValueError("saved counts point outside their tables, or the tables exceed the memory bound")
        self.arrays = {name: np.array(state[name] if name in self._small else unpacked[name]) for name in self.arrays}
        self.commit()

    def unpack(self, state: dict[str, Array]) -> dict[str, Array] | None:
        """Return the large arrays that ``pack`` made into ``state``, or None where they cannot have been."""
        raise NotImplementedError


@njit(cache=True, _nrt=False)
def _restore(arrays: Any, log: Any, logged: Any) -> None:
    """Restore the words in the first rows of the log, the last first, in four arrays uint64[words]."""
    for j in range(logged - 1, -1, -1):
        arrays[log[j, 0] & 3][log[j, 0] >> 2] = np.uint64(log[j, 1])
