"""A chain of online n-gram counts with bounded memory, exact roll-back and ageing."""

from __future__ import annotations

import numpy as np

from evalkit.mixers.ngram import (
    CANDIDATE,
    CONTEXT,
    DEPTH,
    HAND,
    IDENTITY,
    NEXT_IDENTITY,
    SEVERITIES,
    SEVERITY,
    USED,
    Table,
    new_records,
    new_state,
    ngram_drop,
    ngram_move,
    ngram_pass,
    ngram_rows,
    renumber,
)
from evalkit.mixers.tree_lists import CODES_PER_ORDER
from evalkit.mixers.undo import Array, Floats, Ints, Undoable

FIRST_SLOTS = 1 << 16
BYTES_PER_SLOT = 40
"""Peak bytes for each slot of the largest table: its own, and those of the four times smaller one before it."""
SMALLEST_SLOTS = 256
RENUMBER_FROM = 1 << 31
_GROWTH = 4
_FILL = 0.64


class NgramChain(Undoable):
    """Counts and probabilities of the orders 0 to ``orders - 1`` of one token stream.

    When the table is full it grows, up to ``memory_bytes``; from then on old and rare n-grams are dropped one by one,
    so time stays linear. What is dropped when is decided by the stream alone, so splitting the stream differently
    changes nothing. ``discounts`` is float64[orders, 3].
    """

    def __init__(
        self, *, orders: int, discounts: Floats, vocab_size: int, document_token: int | None, memory_bytes: int
    ) -> None:
        self.orders = orders
        self.vocab_size = vocab_size
        self._discounts = np.ascontiguousarray(discounts, dtype=np.float64)
        self._document_token = -1 if document_token is None else document_token
        self._max_slots = max(memory_bytes // BYTES_PER_SLOT, SMALLEST_SLOTS)
        self._limit = int(self._max_slots * _FILL)
        self._work = np.zeros((2, orders), dtype=np.int64)
        records = new_records(min(FIRST_SLOTS, self._max_slots))
        super().__init__({"records": records, "state": new_state(orders)}, ("records",))

    @property
    def records(self) -> int:
        """Number of n-grams in the table."""
        return int(self.arrays["state"][USED])

    @property
    def code_counts(self) -> list[int]:
        """How many context codes there are."""
        return [CODES_PER_ORDER * (self.orders + 1)]

    def advance(self, tokens: Ints) -> tuple[Floats, Ints]:
        """Score then learn the next tokens of the stream, int64[T].

        Returns:
            float64[T, orders], the probability of each token at each order, and int64[T, 1], the context codes.
        """
        probs, codes = np.empty((len(tokens), self.orders)), np.empty((len(tokens), 1), dtype=np.int64)
        self.learn(tokens, (probs, codes[:, 0]))
        return probs, codes

    def row(self) -> tuple[Floats, Ints]:
        """Return float64[orders, V], every order's distribution at the current position, and the context code [1]."""
        rows = np.empty((self.orders, self.vocab_size))
        code = ngram_rows(self._table(), self._discounts, self.vocab_size, rows)
        return rows, np.array([code])

    def commit(self) -> None:
        """Make everything learned so far permanent."""
        super().commit()
        if self.arrays["state"][NEXT_IDENTITY] > RENUMBER_FROM:
            renumber(self._table())

    def _table(self) -> Table:
        records = self.arrays["records"]
        return Table(records, records.view(np.uint64), self.arrays["state"])

    def log_rows(self, count: int) -> int:
        """Return how many rows of the log ``count`` tokens may need, not counting n-grams that are dropped."""
        return 3 * self.orders * count

    def run(self, tokens: Ints, start: int, outputs: tuple[Array, ...]) -> tuple[int, int]:
        """Score and learn from ``start`` on until there is no room; return (position reached, rows of the log)."""
        reached, logged = ngram_pass(
            tokens,
            start,
            self._table(),
            self._discounts,
            self.vocab_size,
            self._document_token,
            self._limit,
            int(len(self.arrays["records"]) * _FILL),
            self.log,
            self.logged,
            *self._work,
            *outputs,
        )
        return reached, logged

    def make_room(self) -> None:
        """Drop n-grams where there may be no more; move to a larger table where this one is full."""
        done = False
        while not done:
            done, self.logged = ngram_drop(self._table(), self._limit, self.orders, self.log, self.logged)
            if not done:
                self.reserve(len(self.log))
        records, state = self.arrays["records"], self.arrays["state"]
        slots = len(records)
        if state[USED] + self.orders > int(slots * _FILL):
            larger, moved = new_records(min(_GROWTH * slots, self._max_slots)), state.copy()
            ngram_move(records, Table(larger, larger.view(np.uint64), moved))
            self.replace({"records": larger, "state": moved})

    def pack(self) -> dict[str, Array]:
        """Return the n-grams, uint32[n, 8] from the first slot to the last, their slots, and the state."""
        records = self.arrays["records"]
        slots = np.flatnonzero(records[:, IDENTITY])
        size = np.array([len(records)])
        return {"records": records[slots], "slots": slots, "size": size, "state": self.arrays["state"]}

    def unpack(self, state: dict[str, Array]) -> dict[str, Array] | None:
        """Return the table that ``pack`` made into ``state``, or None where it cannot have been."""
        packed, slots, small, size = state["records"], state["slots"], state["state"], int(state["size"][0])
        inside = (
            len(packed) == len(slots) == small[USED] + 1 <= int(size * _FILL) + 1
            and SMALLEST_SLOTS <= size <= self._max_slots
            and slots[0] == 0
            and slots[-1] < size
            and bool(np.all(np.diff(slots) > 0))
            and bool(np.all(packed[:, IDENTITY] > 0))
            and packed[:, IDENTITY].max() < small[NEXT_IDENTITY] <= 2**32
            and 0 <= small[DEPTH] < self.orders
            and bool(np.all((small[CONTEXT:] >= 0) & (small[CONTEXT:] < size)))
            and 0 <= small[SEVERITY] < SEVERITIES
            and 0 < small[HAND] < size
            and 0 <= small[CANDIDATE] < size
        )
        if not inside:
            return None
        records = new_records(size)
        records[slots] = packed
        return {"records": records}
