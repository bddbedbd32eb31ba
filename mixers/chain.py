"""A chain of online n-gram counts with bounded memory, exact roll-back and ageing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mixers.ngram import (
    CONTEXT,
    DEPTH,
    IDENTITY,
    NEXT_IDENTITY,
    RECORD_WORDS,
    USED,
    new_state,
    new_table,
    ngram_close_gaps,
    ngram_drop,
    ngram_living,
    ngram_move,
    ngram_pass,
    ngram_rows,
    ngram_undo,
    renumber,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FIRST_SLOTS = 1 << 16
BYTES_PER_SLOT = 64
"""Peak bytes for each slot: the table, and its successor, beside which it is kept until the next commit."""
SMALLEST_SLOTS = 256
RENUMBER_FROM = 1 << 31
_FILL = 0.64
_SAMPLE = 1 << 16

# What goes first when the bound is reached: (counts up to, the oldest share of the records), milder steps first.
_AGEING = ((1, 0.5), (1, 0.75), (1, 0.9), (2, 0.75), (4, 0.9), (2**32 - 1, 0.9), (2**32 - 1, 1.0))


class NgramChain:
    """Counts and probabilities of the orders 0 to ``orders - 1`` of one token stream.

    ``advance`` scores and learns; what it learned since the last ``commit`` can be rolled back exactly. When the table
    is full it doubles, up to ``memory_bytes``; from then on old and rare n-grams are dropped, so time stays linear.
    Rebuilding happens at points that the stream alone decides, so splitting the stream differently changes nothing.
    """

    def __init__(
        self,
        *,
        orders: int,
        discounts: Floats,
        vocab_size: int,
        exclusion: bool,
        document_token: int | None,
        document_local: bool,
        memory_bytes: int,
    ) -> None:
        self.orders = orders
        self.vocab_size = vocab_size
        self._discounts = np.ascontiguousarray(discounts, dtype=np.float64)
        self._exclusion = exclusion
        self._document_token = -1 if document_token is None else document_token
        self._document_local = document_local
        self._max_slots = max(memory_bytes // BYTES_PER_SLOT, SMALLEST_SLOTS)
        self._table = new_table(min(FIRST_SLOTS, self._max_slots))
        self._state = new_state(orders - 1)
        self._work = np.zeros((2, orders), dtype=np.int64)
        self._journal = np.zeros((1024, 2), dtype=np.int64)
        self._journal_used = 0
        self._saved_state: Ints | None = None
        self._saved_table: npt.NDArray[np.uint32] | None = None
        self._saved_journal = self._journal
        self._saved_journal_used = 0

    @property
    def records(self) -> int:
        """Number of n-grams in the table."""
        return int(self._state[USED])

    @property
    def table_bytes(self) -> int:
        """Bytes of the table now."""
        return int(self._table.nbytes)

    def advance(self, tokens: Ints, probs: Floats, codes: Ints) -> None:
        """Score then learn tokens one by one.

        Args:
            tokens: int64[T], the next tokens of the stream.
            probs: float64[T, orders], out: probability of each token at each order.
            codes: int64[T], out: context codes.
        """
        if self._saved_state is None:
            self._saved_state = self._state.copy()
        position, stop = 0, len(tokens)
        while position < stop:
            if self._saved_table is not None:
                self._journal_used = 0  # a roll-back goes to the saved table; newer events need no log
            room = self._journal_used + (stop - position) * (self.orders + 5)
            if room > len(self._journal):
                grown = np.zeros((max(room, 2 * len(self._journal)), 2), dtype=np.int64)
                grown[: self._journal_used] = self._journal[: self._journal_used]
                self._journal = grown
            position, used = ngram_pass(
                tokens,
                position,
                stop,
                self._table,
                self._state,
                self._discounts,
                self.vocab_size,
                self._exclusion,
                self._document_token,
                self._document_local,
                int(len(self._table) * _FILL),
                self._journal,
                self._journal_used,
                probs[position:],
                codes[position:],
                *self._work,
            )
            if self._saved_table is None:
                self._journal_used = used
            if self._state[USED] + self.orders > int(len(self._table) * _FILL):
                # At once, not before the next token: its distribution may be asked for first.
                self._rebuild()

    def rows(self) -> tuple[Floats, int]:
        """Return float64[orders, V], the whole distribution of every order at the current position, and the code."""
        rows = np.empty((self.orders, self.vocab_size))
        code = ngram_rows(self._table, self._state, self._discounts, self.vocab_size, rows)
        return rows, int(code)

    def commit(self) -> None:
        """Make everything learned so far permanent."""
        self._journal_used = 0
        self._saved_state = None
        self._saved_table = None
        self._saved_journal = self._journal

    def rollback(self) -> None:
        """Return to the last commit, bit for bit."""
        if self._saved_state is None:
            return
        if self._saved_table is not None:
            self._table = self._saved_table
            self._journal = self._saved_journal
            self._journal_used = self._saved_journal_used
        ngram_undo(self._table, self._journal[: self._journal_used], self._journal_used)
        self._state = self._saved_state
        self.commit()

    def _rebuild(self) -> None:
        """Move to a larger table or, at the bound, drop what is old and rare."""
        living = ngram_living(self._table) if self._document_local else self.records
        slots = len(self._table)
        while living > slots * _FILL / 3 and slots < self._max_slots:
            slots = min(2 * slots, self._max_slots)
        successor = new_table(slots)
        if self._saved_table is None:
            # The journal so far belongs to this table; keep both until the commit.
            self._saved_table = self._table
            self._saved_journal_used = self._journal_used
            self._journal, self._saved_journal = np.zeros((1024, 2), dtype=np.int64), self._journal
        ngram_move(self._table, self._state, successor)
        self._table = successor
        if slots == self._max_slots:
            self._drop()
        if self._state[NEXT_IDENTITY] > RENUMBER_FROM:
            renumber(self._table, self._state)

    def _drop(self) -> None:
        """Drop old and rare n-grams until the table is at most 60% as full as it may be."""
        step = max(len(self._table) // _SAMPLE, 1)
        identities = self._table[1::step, IDENTITY]
        identities = np.sort(identities[identities != 0])
        for highest_count, oldest in _AGEING:
            if self.records <= len(self._table) * _FILL * 0.6:
                break
            newest = identities[int(oldest * len(identities))] if oldest < 1 else 2**32
            ngram_drop(self._table, self._state, highest_count, int(newest))
        ngram_close_gaps(self._table, self._state)

    def state_dict(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return copies of what has been learned. Raises ValueError if something is uncommitted."""
        if self._saved_state is not None:
            raise ValueError("the n-gram counts hold uncommitted tokens; commit or roll back before saving")
        return {"table": self._table.copy(), "state": self._state.copy()}

    def load_state_dict(self, state: dict[str, npt.NDArray[np.generic]]) -> None:
        """Restore what ``state_dict`` returned. Raises ValueError if it does not fit this chain."""
        table: npt.NDArray[Any] = state["table"]
        small: npt.NDArray[Any] = state["state"]
        if table.dtype != np.uint32 or table.ndim != 2 or table.shape[1] != RECORD_WORDS:
            raise ValueError(f"n-gram table of type {table.dtype} and shape {table.shape}; expected uint32[slots, 8]")
        if small.dtype != np.int64 or small.shape != self._state.shape:
            raise ValueError(f"n-gram state of shape {small.shape}; expected int64{list(self._state.shape)}")
        inside = 0 <= small[DEPTH] < self.orders and np.all((small[CONTEXT:] >= 0) & (small[CONTEXT:] < len(table)))
        if not inside or not 256 <= len(table) <= max(self._max_slots, SMALLEST_SLOTS):
            raise ValueError("n-gram state points outside its table, or the table exceeds the memory bound")
        self._table = np.ascontiguousarray(table).copy()
        self._state = np.ascontiguousarray(small).copy()
        self.commit()
