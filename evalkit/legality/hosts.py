"""What an audit asks of a forecaster, wherever it runs, and the host of our own ones, in this process."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from evalkit.legality.child import StrangerFault, checked
from evalkit.plumbing.errors import EvalkitError
from evalkit.prequential.forecaster import Forecaster, next_boundary_of, states_distribution, warm_up_tokens

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Fault(EvalkitError):
    """A forecaster failed in a call: crashed, hung, or answered with something that is not a score.

    Attributes:
        kind: "crash", "killed" (a signal ended its process), "hang", "budget" (no time was left for the call), "file"
            (it opened one that holds the stream), "shape", "dtype", "rewrite", "import" or "protocol".
        start: First position of the span of the call.
    """

    def __init__(self, kind: str, message: str, *, start: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.start = start


def out_of_time(start: int = 0) -> Fault:
    """Return the fault of a call that the budget left no time for."""
    return Fault("budget", "no time was left", start=start)


class Host(AbstractContextManager["Host"]):
    """One forecaster at a time with a prefix that it has observed.

    ``score`` and ``distribution`` take rows of alternative continuations of the prefix, ``[rows, length]``, and
    call the forecaster once per row; ``isolated`` makes every row the first call that the forecaster gets after
    the prefix. Once the deadline has passed no call is made any more: each raises a :class:`Fault`, "budget".

    Attributes:
        remote: Whether it runs in a process of its own.
        deadline: On the monotonic clock; no call begins later.
        vocab_size: Of the forecaster that was started last.
        offers: Names of the protocol's optional methods that it has.
    """

    remote: ClassVar[bool]

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.vocab_size = 0
        self.offers: frozenset[str] = frozenset()

    @property
    def alive(self) -> bool:
        """Whether the process can still be asked."""
        return True

    @abstractmethod
    def fresh(self, first: int, *, bait: Ids | None = None) -> None:
        """Start a forecaster with no memory of any other; ``first`` is the given token at position 0.

        With ``bait`` a remote host lays a longer array into the process before the forecaster is made.
        """

    def another(self, first: int) -> None:
        """Start another forecaster where the last one ran: same process, same modules."""
        self.fresh(first)

    def score(self, rows: Ids, *, isolated: bool = False) -> Floats:
        """Return nats, ``[rows, length]``."""
        return self._values("score", rows, (rows.shape[1],), isolated)

    def distribution(self, rows: Ids, *, isolated: bool = False) -> Floats:
        """Return log-probabilities in nats, ``[rows, length, vocab_size]``."""
        return self._values("distribution", rows, (rows.shape[1], self.vocab_size), isolated)

    @abstractmethod
    def _values(self, method: str, rows: Ids, shape: tuple[int, ...], isolated: bool) -> Floats:
        """Return what ``method`` answers to every row, of this shape each."""

    @abstractmethod
    def observe(self, span: Ids) -> None:
        """Let the forecaster learn from a span, and make it part of the prefix."""

    @abstractmethod
    def boundary(self) -> int | None:
        """Return the largest stop of a span that starts after the prefix, if the forecaster says so."""

    @abstractmethod
    def close(self) -> None:
        """End the processes."""

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalHost(Host):
    """A trusted forecaster in this process, made by a closure.

    There is no way to save its state, so ``isolated`` calls replay the prefix in a fresh forecaster.
    """

    remote = False

    def __init__(self, make: Callable[[], Forecaster], *, deadline: float = math.inf) -> None:
        super().__init__(deadline)
        self.make = make
        self.instance: Forecaster | None = None
        self.warm_up_tokens = 0
        self._boundary: Callable[[int], int] | None = None
        self._prefix = np.zeros(0, np.int64)
        self._spans: list[Ids] = []

    @property
    def length(self) -> int:
        """Tokens in the prefix."""
        return len(self._prefix)

    def fresh(self, first: int, *, bait: Ids | None = None) -> None:
        """See :class:`Host`; there is no bait in a process that is trusted."""
        if time.monotonic() > self.deadline:
            raise out_of_time()
        self.instance = self.make()
        self.vocab_size = int(self.instance.vocab_size)
        self.offers = frozenset({"distribution"} if states_distribution(self.instance) else ())
        self.warm_up_tokens = warm_up_tokens(self.instance)
        self._boundary = next_boundary_of(self.instance)
        self._prefix = np.array([first], np.int64)
        self._spans = []

    def _call(self, instance: Forecaster, method: str, prefix: Ids, span: Ids) -> Any:
        tokens = np.concatenate([prefix, span])
        sent = tokens.copy()
        start, stop = len(prefix), len(tokens)
        if time.monotonic() > self.deadline:
            raise out_of_time(start)
        try:
            result = getattr(instance, method)(tokens, start, stop)
        except EvalkitError:
            raise
        except Exception as error:
            raise Fault("crash", f"{type(error).__name__}: {error}", start=start) from error
        if not np.array_equal(tokens, sent):
            raise Fault("rewrite", f"{method}({start}, {stop}) wrote to the tokens it was handed", start=start)
        return result

    def _values(self, method: str, rows: Ids, shape: tuple[int, ...], isolated: bool) -> Floats:
        assert self.instance is not None
        values = np.empty((len(rows), *shape))
        for index, row in enumerate(rows):
            instance = self._replayed() if isolated else self.instance
            try:
                values[index] = checked(self._call(instance, method, self._prefix, row), method, shape)
            except StrangerFault as fault:
                raise Fault(fault.kind, str(fault), start=self.length) from None
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
        return None if self._boundary is None else int(self._boundary(self.length))

    def close(self) -> None:
        """Let go of the forecaster."""
        self.instance = None
