"""The host of a stranger's forecaster: a child process that is only sent what it may see."""

from __future__ import annotations

import contextlib
import math
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evalkit.legality import child
from evalkit.legality.fork_server import ForkServer
from evalkit.legality.hosts import Fault, Floats, Host, Ids, out_of_time
from evalkit.plumbing.errors import InputError

BATCH_SECONDS = 0.1
"""Share of the patience with one call that a batch of calls is meant to take."""

BATCH_VALUES = 1 << 22
"""Scores that come back in one message at most: 32 MB."""


@dataclass(frozen=True)
class ChildFactory:
    """A factory that is called in a child process.

    Attributes:
        spec: Its name.
        arguments: Its arguments, as JSON holds them.
        modules: Modules of ours that all of its processes may share, imported before any stranger's code.
    """

    spec: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()


class ChildHost(Host):
    """A stranger's forecaster in a child process that is only sent what it may see.

    The process imports the stranger's module once; every fresh forecaster lives in a forked copy of that state, so
    nothing that an earlier one kept in memory is left.

    Args:
        factory: ``FILE.py:FACTORY`` or ``package.module:FACTORY``, with arguments where it takes some.
        call_seconds: How long one call of the forecaster may take.
        deadline: On the monotonic clock; no call begins later.
        stream_files: Files that it must not open.
        fork_server: Begins its process; without one a fork server of its own does.

    Raises:
        InputError: the factory cannot be loaded.
    """

    remote = True

    def __init__(
        self,
        factory: str | ChildFactory,
        *,
        call_seconds: float = 30.0,
        deadline: float = math.inf,
        stream_files: Sequence[str] = (),
        fork_server: ForkServer | None = None,
    ) -> None:
        if isinstance(factory, str):
            factory = ChildFactory(factory)
        super().__init__(deadline)
        self.call_seconds = call_seconds
        self.length = 0
        self._depth = 0
        self._end: Fault | None = None
        self._ended = False
        self._seconds_per_row: dict[tuple[str, bool, int], float] = {}
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        mine, theirs = socket.socketpair()
        self._link = mine
        self._fork_server = ForkServer(factory.modules) if fork_server is None else fork_server
        self._own_server = fork_server is None
        try:
            with theirs:
                self._process = self._fork_server.begin(factory.spec, theirs.fileno(), self._noise.fileno())
        except (OSError, EOFError) as error:
            self._ended = True
            self.close()
            raise InputError(f"no process could be started for the forecaster {factory.spec}: {error!r}") from None
        try:
            sealed = [child.seal(path) for path in stream_files]
            self._ask(
                {"do": "load", "sealed": sealed, "arguments": dict(factory.arguments)}, patience=max(call_seconds, 60.0)
            )
        except Fault as fault:
            self.close()
            if fault.kind == "budget":
                raise
            raise InputError(f"the forecaster {factory.spec} cannot be loaded: {fault}") from None

    @property
    def alive(self) -> bool:
        """See :class:`Host`."""
        return self._end is None

    def _ask(
        self, header: dict[str, Any], array: Ids | None = None, *, patience: float | None = None
    ) -> tuple[dict[str, Any], Floats | None]:
        """Send one request and return its answer.

        Raises:
            Fault: what went wrong in the child; once the process has ended, what ended it.
        """
        if self._end is not None:
            raise self._end
        patience = patience or self.call_seconds
        now = time.monotonic()
        if now > self.deadline:
            raise out_of_time(self.length)
        if self.deadline < math.inf:
            header = {**header, "seconds": self.deadline - now}
        deadline = now + patience
        try:
            self._link.settimeout(patience)
            child.send(self._link, header, array)
            reply, values = child.receive(self._link, deadline)
        except TimeoutError:
            self._end = Fault("hang", f"no answer to {header['do']} within {patience:.0f} s", start=self.length)
        except (EOFError, OSError, ValueError, KeyError):
            how = child.ending(self._fork_server.end(self._process, 1.0))
            self._ended = True
            message = f"the process of the forecaster {how} during {header['do']}{self._last_words()}"
            self._end = Fault("killed" if how.startswith("was killed") else "crash", message, start=self.length)
        if self._end is not None:
            self.close()
            raise self._end
        if "fault" in reply:
            kind = str(reply["fault"])
            if kind in ("died", "killed in a copy"):
                kind, self._depth = ("crash" if kind == "died" else "killed"), self._depth - 1
            raise Fault(kind, str(reply["message"]), start=self.length)
        return reply, values

    def _last_words(self) -> str:
        """Return the end of what the process printed, for messages."""
        with contextlib.suppress(OSError, ValueError):
            self._noise.seek(0)
            text = self._noise.read()[-400:].decode("utf-8", "replace").strip()
            if text:
                return f"; it last printed: {text.splitlines()[-1][:200]}"
        return ""

    def fresh(self, first: int, *, bait: Ids | None = None) -> None:
        """See :class:`Host`."""
        while self._depth:
            self._ask({"do": "pop"})
            self._depth -= 1
        self._ask({"do": "push"})
        self._depth += 1
        if bait is not None:
            self._ask({"do": "bait"}, bait)
        self.another(first)

    def another(self, first: int) -> None:
        """See :class:`Host`."""
        self.length = 0
        reply, _ = self._ask({"do": "make"})
        before, self.vocab_size = self.vocab_size, int(reply["vocab_size"])
        if before not in (0, self.vocab_size):
            raise Fault("shape", f"a fresh forecaster's vocab_size is {self.vocab_size}, where it was {before}")
        self.offers = frozenset(reply["offers"])
        self._ask({"do": "begin"}, np.array([first], np.int64))
        self.length = 1

    def _values(self, method: str, rows: Ids, shape: tuple[int, ...], isolated: bool) -> Floats:
        """Ask for rows in batches so small that a batch of slow calls is not taken for one that hangs."""
        kind = (method, isolated, rows.shape[1])
        values = np.empty((len(rows), *shape))
        first = 0
        while first < len(rows):
            seconds = self._seconds_per_row.get(kind, self.call_seconds)
            limit = min(BATCH_SECONDS * self.call_seconds / seconds, BATCH_VALUES / max(values[0].size, 1))
            batch = rows[first : first + max(1, int(limit))]
            began = time.monotonic()
            _, answer = self._ask({"do": method, "isolated": isolated}, batch)
            self._seconds_per_row[kind] = max(time.monotonic() - began, 1e-6) / len(batch)
            if answer is None or answer.shape != (len(batch), *shape):
                raise Fault("protocol", f"{method} came back in the wrong shape", start=self.length)
            values[first : first + len(batch)] = answer
            first += len(batch)
        return values

    def observe(self, span: Ids) -> None:
        """See :class:`Host`."""
        self._ask({"do": "observe"}, span)
        self.length += len(span)

    def boundary(self) -> int | None:
        """See :class:`Host`."""
        if "next_boundary" not in self.offers:
            return None
        return int(self._ask({"do": "boundary"})[0]["stop"])

    def close(self) -> None:
        """End the process and everything it forked."""
        if not self._ended:
            self._fork_server.end(self._process)
            self._ended = True
        if self._own_server:
            self._fork_server.close()
        self._link.close()
        self._noise.close()
