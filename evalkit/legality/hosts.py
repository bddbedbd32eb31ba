"""Where a forecaster runs while it is audited: in a child process (a stranger's) or in this one (our own)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from evalkit.errors import EvalkitError, InputError
from evalkit.prequential.forecaster import Forecaster

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Fault(EvalkitError):
    """A forecaster failed in a call: crashed, hung, or answered with something that is not a score.

    Attributes:
        kind: "crash", "hang", "shape", "dtype", "rewrite", "import" or "protocol".
        row: Which row of the batch it happened in.
        start: First position of the span of the call.
    """

    def __init__(self, kind: str, message: str, *, row: int = 0, start: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.row = row
        self.start = start


class Host(Protocol):
    """One forecaster at a time with a prefix that it has observed.

    ``score`` and ``distribution`` take rows of alternative continuations of the prefix, ``[rows, length]``, and
    call the forecaster once per row; ``isolated`` makes every row the first call that the forecaster gets after
    the prefix. ``mark`` and ``rewind`` save and restore the whole state.
    """

    vocab_size: int
    offers: frozenset[str]
    remote: bool
    dtype_name: str

    def fresh(self, first: int) -> None:
        """Start a forecaster with no memory of any other; ``first`` is the given token at position 0."""
        ...

    def again(self, first: int) -> None:
        """Start another forecaster where the last one ran: same process, same modules."""
        ...

    def score(self, rows: Ids, *, isolated: bool = False) -> Floats:
        """Return nats, ``[rows, length]``."""
        ...

    def distribution(self, rows: Ids) -> Floats:
        """Return log-probabilities in nats, ``[rows, length, vocab_size]``."""
        ...

    def observe(self, span: Ids) -> None:
        """Let the forecaster learn from a span, and make it part of the prefix."""
        ...

    def boundary(self) -> int | None:
        """Return the largest stop of a span that starts after the prefix, if the forecaster says so."""
        ...

    def close(self) -> None:
        """End the processes."""
        ...


class ChildHost:
    """A stranger's forecaster in a child process that is only sent what it may see.

    The process imports the stranger's module once; every fresh forecaster lives in a forked copy of that state, so
    nothing that an earlier one kept in memory is left.

    Args:
        spec: ``FILE.py:FACTORY`` or ``package.module:FACTORY``.
        call_seconds: How long one request may take.
    """

    remote = True

    def __init__(self, spec: str, *, call_seconds: float = 30.0) -> None:
        self.spec = spec
        self.call_seconds = call_seconds
        self.vocab_size = 0
        self.offers: frozenset[str] = frozenset()
        self.dtype_name = "float64"
        self.length = 0
        self._depth = 0
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        mine, theirs = socket.socketpair()
        self._link = mine
        child = Path(__file__).with_name("child.py")
        one_thread = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(one_thread, "1"), "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, str(child), str(theirs.fileno()), spec],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=self._noise,
            stderr=self._noise,
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        try:
            self._ask({"do": "load"}, patience=max(call_seconds, 60.0))
        except Fault as fault:
            self.close()
            raise InputError(f"the forecaster {spec} cannot be loaded: {fault}") from None

    def _ask(
        self, header: dict[str, Any], array: Ids | None = None, *, patience: float | None = None
    ) -> tuple[dict[str, Any], Floats | None]:
        """Send one request and return its answer; a fault in it is raised."""
        payload = b""
        if array is not None:
            array = np.ascontiguousarray(array, dtype=np.int64)
            header = {**header, "dtype": array.dtype.str, "shape": list(array.shape)}
            payload = array.tobytes()
        head = json.dumps(header).encode()
        deadline = time.monotonic() + (patience or self.call_seconds)
        try:
            self._link.settimeout(max(0.01, deadline - time.monotonic()))
            self._link.sendall(struct.pack("<II", len(head), len(payload)) + head + payload)
            reply, values = self._receive(deadline)
        except TimeoutError:
            self.close()
            raise Fault(
                "hang", f"no answer to {header['do']} within {self.call_seconds:.0f} s", start=self.length
            ) from None
        except (EOFError, OSError, ValueError, KeyError):
            message = f"the process of the forecaster died during {header['do']}{self.last_words()}"
            self.close()
            raise Fault("crash", message, start=self.length) from None
        if "fault" in reply:
            kind = str(reply["fault"])
            if kind == "died":
                kind, self._depth = "crash", self._depth - 1
            raise Fault(kind, str(reply["message"]), row=int(reply.get("row", 0)), start=self.length)
        return reply, values

    def _receive(self, deadline: float) -> tuple[dict[str, Any], Floats | None]:
        head, body = struct.unpack("<II", self._exactly(8, deadline))
        header = json.loads(self._exactly(head, deadline))
        payload = self._exactly(body, deadline)
        if "shape" not in header:
            return header, None
        return header, np.frombuffer(payload, dtype=np.float64).reshape(header["shape"])

    def _exactly(self, count: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while count:
            self._link.settimeout(max(0.01, deadline - time.monotonic()))
            part = self._link.recv(min(count, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def last_words(self) -> str:
        """Return the end of what the process printed, for messages."""
        with contextlib.suppress(OSError, ValueError):
            self._noise.seek(0)
            text = self._noise.read()[-400:].decode("utf-8", "replace").strip()
            if text:
                return f"; it last printed: {text.splitlines()[-1][:200]}"
        return ""

    def push(self) -> None:
        """Fork: the copy answers from now on, and :meth:`pop` brings this state back."""
        self._ask({"do": "push"})
        self._depth += 1

    def pop(self) -> None:
        """End the forked copy."""
        self._ask({"do": "pop"})
        self._depth -= 1

    def bait(self, tokens: Ids) -> None:
        """Leave a longer array in the process, for the reach audit alone."""
        self._ask({"do": "bait"}, tokens)

    def fresh(self, first: int, *, bait: Ids | None = None) -> None:
        """See :class:`Host`; with ``bait`` the array is laid before the forecaster is made."""
        while self._depth:
            self.pop()
        self.push()
        if bait is not None:
            self.bait(bait)
        self.again(first)

    def again(self, first: int) -> None:
        """See :class:`Host`."""
        self.length = 0
        reply, _ = self._ask({"do": "make"})
        self.vocab_size = int(reply["vocab_size"])
        self.offers = frozenset(reply["offers"])
        self._ask({"do": "begin"}, np.array([first], np.int64))
        self.length = 1

    def score(self, rows: Ids, *, isolated: bool = False) -> Floats:
        """See :class:`Host`."""
        return self._values("score", rows, isolated)

    def distribution(self, rows: Ids) -> Floats:
        """See :class:`Host`."""
        return self._values("distribution", rows, False)

    def _values(self, method: str, rows: Ids, isolated: bool) -> Floats:
        per_row = rows.shape[1] * (self.vocab_size if method == "distribution" else 1)
        limit = max(1, (1 << 22) // max(per_row, 1))
        parts = []
        for first in range(0, len(rows), limit):
            batch = rows[first : first + limit]
            reply, values = self._ask({"do": method, "isolated": isolated}, batch)
            expected: tuple[int, ...] = batch.shape
            if method == "distribution":
                expected = (*expected, self.vocab_size)
            if values is None or values.shape != expected:
                raise Fault("protocol", f"{method} came back in the wrong shape", start=self.length)
            self.dtype_name = str(reply.get("dtype_name", "float64"))
            parts.append(values)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def observe(self, span: Ids) -> None:
        """See :class:`Host`."""
        self._ask({"do": "observe"}, span)
        self.length += len(span)

    def boundary(self) -> int | None:
        """See :class:`Host`."""
        if "next_boundary" not in self.offers:
            return None
        return int(self._ask({"do": "boundary"})[0]["stop"])

    @contextlib.contextmanager
    def marked(self) -> Iterator[None]:
        """Run the body on a forked copy and come back to the state before it."""
        length = self.length
        self.push()
        try:
            yield
        finally:
            if self._process.poll() is None:
                self.pop()
            self.length = length

    def close(self) -> None:
        """End the process and everything it forked."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._link.close()
        self._noise.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LocalHost:
    """A trusted forecaster in this process, made by a closure.

    There is no way to save its state, so ``isolated`` calls replay the prefix in a fresh forecaster.
    """

    remote = False

    def __init__(self, make: Callable[[], Forecaster]) -> None:
        self.make = make
        self.instance: Forecaster | None = None
        self.vocab_size = 0
        self.offers: frozenset[str] = frozenset()
        self.dtype_name = "float64"
        self._prefix = np.zeros(0, np.int64)
        self._spans: list[Ids] = []

    @property
    def length(self) -> int:
        """Tokens in the prefix."""
        return len(self._prefix)

    def fresh(self, first: int) -> None:
        """See :class:`Host`."""
        self.instance = self.make()
        self.vocab_size = int(self.instance.vocab_size)
        names = ("score", "observe", "distribution", "next_boundary")
        self.offers = frozenset(n for n in names if callable(getattr(self.instance, n, None)))
        self._prefix = np.array([first], np.int64)
        self._spans = []

    again = fresh

    def _call(self, instance: Forecaster, method: str, prefix: Ids, span: Ids) -> Any:
        tokens = np.concatenate([prefix, span])
        sent = tokens.copy()
        start, stop = len(prefix), len(tokens)
        try:
            result = getattr(instance, method)(tokens, start, stop)
        except EvalkitError:
            raise
        except Exception as error:
            raise Fault("crash", f"{type(error).__name__}: {error}", start=start) from error
        if not np.array_equal(tokens, sent):
            raise Fault("rewrite", f"{method}({start}, {stop}) wrote to the tokens it was handed", start=start)
        return result

    def score(self, rows: Ids, *, isolated: bool = False) -> Floats:
        """See :class:`Host`."""
        return self._values("score", rows, isolated)

    def distribution(self, rows: Ids) -> Floats:
        """See :class:`Host`."""
        return self._values("distribution", rows, False)

    def _values(self, method: str, rows: Ids, isolated: bool) -> Floats:
        assert self.instance is not None
        shape: tuple[int, ...] = (rows.shape[1],)
        if method == "distribution":
            shape = (rows.shape[1], self.vocab_size)
        values = np.empty((len(rows), *shape))
        for index, row in enumerate(rows):
            instance = self._replayed() if isolated else self.instance
            result = np.asarray(self._call(instance, method, self._prefix, row))
            if result.shape != shape:
                message = f"{method} returned shape {list(result.shape)}, expected {list(shape)}"
                raise Fault("shape", message, row=index, start=self.length)
            if result.dtype.kind != "f":
                message = f"{method} returned {result.dtype}, expected floating point numbers"
                raise Fault("dtype", message, row=index, start=self.length)
            self.dtype_name = result.dtype.name
            values[index] = result
        return values

    def _replayed(self) -> Forecaster:
        """Return a fresh forecaster that has scored and observed the prefix."""
        instance = self.make()
        prefix = self._prefix[:1]
        for span in self._spans:
            self._call(instance, "score", prefix, span)
            self._call(instance, "observe", prefix, span)
            prefix = np.concatenate([prefix, span])
        return instance

    def observe(self, span: Ids) -> None:
        """See :class:`Host`."""
        assert self.instance is not None
        self._call(self.instance, "observe", self._prefix, span)
        self._prefix = np.concatenate([self._prefix, span])
        self._spans.append(span.copy())

    def boundary(self) -> int | None:
        """See :class:`Host`."""
        if "next_boundary" not in self.offers:
            return None
        return int(self.instance.next_boundary(self.length))  # type: ignore[union-attr]

    def close(self) -> None:
        """Let go of the forecaster."""
        self.instance = None
