"""Where the time of a run goes: phases that never overlap and add up to the wall time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from evalkit.plumbing.table import format_table

PHASES = ("load", "compile", "score", "mix", "train", "other")
"""In the order in which they are shown; what no phase claims is ``other``."""

T = TypeVar("T")


class Profile:
    """A stopwatch with one hand for each phase; exactly one runs at any time.

    A phase that starts inside another pauses it: what a mixer takes inside ``score`` counts as ``mix`` alone.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._running = ["other"]
        self._since = clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a ``with`` block as one of :data:`PHASES`."""
        if name not in self._seconds:
            raise ValueError(f"phase {name!r}; expected one of {', '.join(PHASES)}")
        self._settle()
        self._running.append(name)
        try:
            yield
        finally:
            self._settle()
            self._running.pop()

    def time_methods(self, target: T, name: str, methods: tuple[str, ...]) -> T:
        """Count the time of an object's methods as a phase; return the object. Methods that it lacks are left out."""
        for method in methods:
            if hasattr(target, method):
                setattr(target, method, self.phase(name)(getattr(target, method)))
        return target

    def to_dict(self) -> dict[str, Any]:
        """Return seconds and percent of each phase so far, and the wall time that they add up to."""
        self._settle()
        wall = sum(self._seconds.values())
        return {
            "wall_seconds": wall,
            "seconds": dict(self._seconds),
            "percent": {name: 100.0 * value / wall if wall else 0.0 for name, value in self._seconds.items()},
        }

    def _settle(self) -> None:
        now = self._clock()
        self._seconds[self._running[-1]] += now - self._since
        self._since = now


def describe_profile(profile: Mapping[str, Any]) -> str:
    """Return :meth:`Profile.to_dict` as a table for a terminal."""
    rows = [[name, f"{seconds:.2f}", f"{profile['percent'][name]:.1f}"] for name, seconds in profile["seconds"].items()]
    return format_table(["phase", "seconds", "percent"], [*rows, ["wall", f"{profile['wall_seconds']:.2f}", "100.0"]])
