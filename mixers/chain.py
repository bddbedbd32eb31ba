"""A chain of online n-gram counts with bounded memory, exact roll-back and ageing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.mixers.ngram import (
    CONTEXT,
    DEPTH,
    DROP_ROWS,
    HAND,
    HASH,
    IDENTITY,
    MOST_DROPS,
    NEXT_IDENTITY,
    OCCUPIED,
    PARENT,
    RECORD_WORDS,
    SEVERITIES,
    SEVERITY,
    TOKEN,
    USED,
    Table,
    hash_steps,
    new_state,
    new_table,
    ngram_drop,
    ngram_move,
    ngram_pass,
    ngram_purge,
    ngram_rows,
    ngram_slots,
    ngram_undo,
    renumber,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FIRST_SLOTS = 1 << 16
BYTES_PER_SLOT = 40
"""Peak bytes for each slot of the largest table: its own, and those of the four times smaller one before it."""
SMALLEST_SLOTS = 256
RENUMBER_FROM = 1 << 31
_GROWTH = 4
_FILL = 0.64
_REACHABLE = 0.75
"""Share of a largest table's records that n-grams of a document may take; the rest is left to those of earlier ones."""


class NgramChain:
    """Counts and probabilities of the orders 0 to ``orders - 1`` of one token stream.

    ``advance`` scores and learns; what it learned since the last ``commit`` can be rolled back exactly. When the table
    is full it grows, up to ``memory_bytes``; from then on old and rare n-grams are dropped one by one, so time stays
    linear. What is dropped when is decided by the stream alone, so splitting the stream differently changes nothing.
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
        self._limit = int(self._max_slots * _FILL * (_REACHABLE if document_local else 1.0))
        self._table = new_table(min(FIRST_SLOTS, self._max_slots))
        self._state = new_state(orders - 1)
        self._work = np.zeros((2, orders), dtype=np.int64)
        self._journal = np.zeros((1024, 2), dtype=np.int64)
        self._journal_used = 0
        self._saved: tuple[Ints, Table] | None = None

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
        if self._saved is None:
            # Slots change, so contexts are kept as records, to be found again.
            self._saved = self._state.copy(), self._table[self._contexts()]
        position, stop = 0, len(tokens)
        while position < stop:
            # Each token's events and, at the bound, as many n-grams dropped as are new.
            self._grow_journal((stop - position) * ((1 + DROP_ROWS) * self.orders + 5) + DROP_ROWS * MOST_DROPS)
            position, self._journal_used = ngram_pass(
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
                self._limit,
                int(len(self._table) * _FILL),
                self._journal,
                self._journal_used,
                probs[position:],
                codes[position:],
                *self._work,
            )
            # At once, not before the next token: its distribution may be asked for first.
            self._make_room()

    def rows(self) -> tuple[Floats, int]:
        """Return float64[orders, V], the whole distribution of every order at the current position, and the code."""
        rows = np.empty((self.orders, self.vocab_size))
        code = ngram_rows(self._table, self._state, self._discounts, self.vocab_size, rows)
        return rows, int(code)

    def commit(self) -> None:
        """Make everything learned so far permanent."""
        self._journal_used = 0
        self._saved = None
        if self._state[NEXT_IDENTITY] > RENUMBER_FROM:
            renumber(self._table, self._state)

    def rollback(self) -> None:
        """Return to the last commit: the same n-grams with the same counts, if not in the same slots."""
        if self._saved is None:
            return
        ngram_undo(self._table, self._journal, self._journal_used)
        self._state, contexts = self._saved
        self._find_contexts(contexts)
        self.commit()

    def _contexts(self) -> Ints:
        """Return the slots of the current contexts, orders 1.. as far as there are any."""
        return self._state[CONTEXT + 1 : CONTEXT + 1 + int(self._state[DEPTH])]

    def _find_contexts(self, records: Table) -> None:
        """Point the state to where these records, the current contexts, stand now."""
        ngram_slots(self._table, records[:, IDENTITY], records[:, HASH], self._contexts())

    def _grow_journal(self, rows: int) -> None:
        """Make room for more rows of the undo log."""
        needed = self._journal_used + rows
        if needed > len(self._journal):
            grown = np.zeros((max(needed, 2 * len(self._journal)), 2), dtype=np.int64)
            grown[: self._journal_used] = self._journal[: self._journal_used]
            self._journal = grown

    def _make_room(self) -> None:
        """Make room for the next token: drop n-grams where there may be no more, clean or enlarge the table."""
        done = False
        while not done:
            done, self._journal_used = ngram_drop(
                self._table, self._state, self._limit, self.orders, self._journal, self._journal_used
            )
            if not done:
                self._grow_journal(2 * len(self._journal))
        slots = len(self._table)
        used, occupied = self._state[USED], self._state[OCCUPIED]
        if occupied + self.orders <= int(slots * _FILL):
            return
        if slots == self._max_slots or (self._document_local and used <= occupied / 3):
            self._grow_journal(DROP_ROWS * int(occupied - used))
            self._journal_used = ngram_purge(self._table, self._state, self._journal, self._journal_used)
            return
        contexts = self._table[self._contexts()]
        larger = new_table(min(_GROWTH * slots, self._max_slots))
        ngram_move(self._table, larger)
        self._table = larger
        self._find_contexts(contexts)

    def state_dict(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return copies of what has been learned. Raises ValueError if something is uncommitted.

        ``records``: uint32[n, 8] by identity, the root first. ``state``: the small state, its contexts as rows of them.
        """
        if self._saved is not None:
            raise ValueError("the n-gram counts hold uncommitted tokens; commit or roll back before saving")
        records = self._table[self._table[:, IDENTITY] >= self._table[0, IDENTITY]]
        records = records[np.argsort(records[:, IDENTITY])]
        state = self._state.copy()
        state[OCCUPIED] = state[USED]
        state[CONTEXT:] = 0
        contexts = self._contexts()
        state[CONTEXT + 1 :][: len(contexts)] = np.searchsorted(records[:, IDENTITY], self._table[contexts, IDENTITY])
        return {"records": records, "state": state}

    def load_state_dict(self, state: dict[str, npt.NDArray[np.generic]]) -> None:
        """Restore what ``state_dict`` returned. Raises ValueError if it does not fit this chain."""
        records: npt.NDArray[Any] = state["records"]
        small: npt.NDArray[Any] = state["state"]
        if records.dtype != np.uint32 or records.ndim != 2 or records.shape[1] != RECORD_WORDS or not len(records):
            raise ValueError(f"n-grams of type {records.dtype} and shape {records.shape}; expected uint32[n, 8]")
        if small.dtype != np.int64 or small.shape != self._state.shape:
            raise ValueError(f"n-gram state of shape {small.shape}; expected int64{list(self._state.shape)}")
        identities = records[:, IDENTITY].astype(np.int64)
        parents = np.searchsorted(identities, records[1:, PARENT])
        inside = (
            identities[0] > 0
            and bool(np.all(np.diff(identities) > 0))
            and identities[-1] < small[NEXT_IDENTITY] <= 2**32
            # Every context is there, and is where the hash says.
            and bool(np.all(identities[parents % len(records)] == records[1:, PARENT]))
            and bool(np.all(hash_steps(records[parents, HASH], records[1:, TOKEN]) == records[1:, HASH]))
            and records[0, HASH] == 0
            and small[USED] == small[OCCUPIED] == len(records) - 1 <= self._limit
            and 0 <= small[DEPTH] < self.orders
            and bool(np.all((small[CONTEXT:] >= 0) & (small[CONTEXT:] < len(records))))
            and 0 <= small[SEVERITY] < SEVERITIES
            and 0 <= small[HAND] < 2**32
        )
        if not inside:
            raise ValueError("n-gram state points outside its records, or there are more than the memory bound allows")
        slots = min(FIRST_SLOTS, self._max_slots)
        while len(records) + self.orders > int(slots * _FILL) and slots < self._max_slots:
            slots = min(_GROWTH * slots, self._max_slots)
        self._table = new_table(slots)
        self._state = np.ascontiguousarray(small).copy()
        ngram_move(np.ascontiguousarray(records), self._table)
        self._find_contexts(records[self._contexts()])
        self._journal_used = 0
        self._saved = None
