"""The tree expert: owns the count lists, learned tables and weights of the kernels in ``tree.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.mixers.tree import (
    CODES_PER_ORDER,
    LEVEL_STARTS,
    LEVELS,
    SQUASH_SCALE,
    TOKEN_ROWS,
    UNIT,
    WEIGHTED_NODES,
    tree_pass,
    tree_row,
)
from evalkit.mixers.tree_lists import CONTEXT, CONTEXT_TOP, DEPTH, POOL_TOP, tree_prune, tree_undo
from evalkit.mixers.tree_work import SETS, input_count, new_nodes, new_sums

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

_FINAL_RATE = 0.002
"""Step of the weights that join the weight vectors' answers."""
FIRST_POOL = 1 << 17
_DOCUMENT_POOL = 1 << 18
# What goes first when the bound is reached: (counts up to, the oldest share of the contexts), milder steps first.
_AGEING = ((1, 0.1), (1, 0.25), (1, 0.5), (1, 0.75), (1, 0.9), (2, 0.75), (4, 0.9), (65535, 0.9), (65535, 1.0))
_SMALL = (
    "state",
    "heap",
    "heap_count",
    "document_state",
    "document_heap",
    "document_heap_count",
    "tables",
    "weights",
    "finals",
)
_TOPS = {
    "pool": ("state", POOL_TOP),
    "contexts": ("state", CONTEXT_TOP),
    "document_pool": ("document_state", POOL_TOP),
    "document_contexts": ("document_state", CONTEXT_TOP),
}
_LARGE = ("pool", "contexts", "document_pool", "document_contexts")


class TreeExpert:
    """Scores tokens bit by bit from counts of the stream (``orders``) and of the document (``document_orders``).

    ``rate`` is the step of the logistic weights. What was learned since the last ``commit`` can be rolled back exactly.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        orders: int,
        document_orders: int,
        discounts: Floats,
        document_discounts: Floats,
        document_token: int | None,
        rate: float,
        memory_bytes: int,
    ) -> None:
        self.vocab_size = vocab_size
        self._orders, self._document_orders = orders, document_orders
        self.every = orders + document_orders
        self._bits = bits = max(1, (vocab_size - 1).bit_length())
        self._document_token = -1 if document_token is None else document_token
        self._rate = rate
        self._final_rate = _FINAL_RATE
        every = orders + document_orders
        self._margin = 2 * every * (1 << bits)
        self._document_words = max(min(_DOCUMENT_POOL, memory_bytes // 96), 4 * self._margin)
        # Twice, because a prune copies: 8 bytes a pool word, 8 bytes for a context on every other one.
        self._max_pool = max((memory_bytes - 12 * self._document_words) // 24, 8 * self._margin)
        size = min(max(FIRST_POOL, 4 * self._margin), self._max_pool)
        self._data: dict[str, Array] = {
            "pool": np.zeros(size, dtype=np.uint64),
            "contexts": np.zeros(size // 2, dtype=np.uint64),
            "state": np.zeros(CONTEXT + orders, dtype=np.int64),
            "heap": np.zeros(2 << bits, dtype=np.int64),
            "heap_count": np.zeros(2 << bits, dtype=np.int64),
            "document_pool": np.zeros(self._document_words, dtype=np.uint64),
            "document_contexts": np.zeros(self._document_words // 2, dtype=np.uint64),
            "document_state": np.zeros(CONTEXT + max(document_orders, 1), dtype=np.int64),
            "document_heap": np.zeros(2 << bits, dtype=np.int64),
            "document_heap_count": np.zeros(2 << bits, dtype=np.int64),
            "tables": _first_tables(every * bits),
            "weights": self._first_weights(),
            "finals": np.full(((orders + 1) * bits, SETS), 1.0 / SETS),
        }
        for name in ("state", "document_state"):
            self._data[name][POOL_TOP] = 1 << bits
            self._data[name][CONTEXT_TOP] = 1
        triples = np.concatenate([discounts[:orders], document_discounts[:document_orders]])
        self._units = np.zeros((every, 4), dtype=np.int64)
        self._units[:, 1:] = np.maximum(np.rint(triples * UNIT), 1)
        differ = np.arange(1 << bits)
        self._level_of = np.array([bits - int(d).bit_length() for d in differ], dtype=np.uint8)
        p = (np.arange(4096) + 0.5) / 4096
        self._stretch = np.log(p / (1 - p))
        self._levels = np.searchsorted(LEVEL_STARTS, np.arange(LEVEL_STARTS[-1] + 1), side="right") - 1
        self._squashed = 1 / (1 + np.exp(-((np.arange(4096) + 0.5) / SQUASH_SCALE - 12)))
        self._sums = new_sums(orders, document_orders, bits)
        self._nodes = new_nodes(bits, orders, document_orders)
        self._journal = np.zeros((1024, 2), dtype=np.int64)
        self._journal_used = 0
        self._saved: dict[str, Array] | None = None
        self._pruned = False

    def _first_weights(self) -> Floats:
        """Return the first logistic weights: trust in the highest order of the stream, some in everything else."""
        orders, document_orders, bits = self._orders, self._document_orders, self._bits
        every = orders + document_orders
        rows = (orders + 1) * bits + (orders + 1) * (document_orders + 1) + min(WEIGHTED_NODES, 1 << bits) + bits
        rows += 2 * TOKEN_ROWS
        weights = np.zeros((rows, input_count(orders, document_orders)))
        weights[:, :every] = 0.1
        weights[:, orders - 1] = 0.7
        return weights

    @property
    def table_bytes(self) -> int:
        """Bytes of the count lists now."""
        return sum(int(self._data[name].nbytes) for name in _LARGE)

    @property
    def code_counts(self) -> list[int]:
        """How many context codes there are for the stream's and for the document's counts."""
        return [CODES_PER_ORDER * (orders + 1) for orders in (self._orders, self._document_orders)]

    @property
    def records(self) -> int:
        """Words of the stream's lists in use."""
        return int(self._data["state"][POOL_TOP])

    def advance(self, tokens: Ints, logp: Floats, codes: Ints, probs: Floats) -> None:
        """Score then learn the next tokens of the stream.

        Args:
            tokens: int64[T].
            logp: float64[T], out: log-probability of each token.
            codes: int64[T, 2], out: context codes of the stream's and of the document's counts.
            probs: float64[T, K], out: what each order alone gave each token, the stream's orders first.
        """
        if self._saved is None:
            self._saved = {name: self._data[name].copy() for name in _SMALL}
        position = 0
        every = self._orders + self._document_orders
        while position < len(tokens):
            if self._pruned:
                self._journal_used = 0  # a roll-back returns to the unpruned lists; newer words need no log
            d = self._data
            # Logged words: three a token and order, four a token for the document's growing blocks, whose blocks from
            # before this call may each grow once more, and a reset.
            rest = len(tokens) - position
            room = self._journal_used + rest * (7 * every + 8) + self._document_words + self._margin
            if room > len(self._journal):
                grown = np.zeros((max(room, 2 * len(self._journal)), 2), dtype=np.int64)
                grown[: self._journal_used] = self._journal[: self._journal_used]
                self._journal = grown
            position, self._journal_used = tree_pass(
                tokens,
                position,
                self.vocab_size,
                self._bits,
                self._document_token,
                self._orders,
                self._document_orders,
                d["pool"],
                d["contexts"],
                d["state"],
                d["heap"],
                d["heap_count"],
                d["document_pool"],
                d["document_contexts"],
                d["document_state"],
                d["document_heap"],
                d["document_heap_count"],
                self._units,
                self._level_of,
                self._levels,
                d["tables"],
                self._stretch,
                d["weights"],
                d["finals"],
                self._squashed,
                self._rate,
                self._final_rate,
                self._journal,
                self._journal_used,
                self._sums,
                self._nodes,
                logp,
                codes,
                probs,
            )
            state = d["state"]
            if state[POOL_TOP] + self._margin > len(d["pool"]) or state[CONTEXT_TOP] + every > len(d["contexts"]):
                self._make_room()

    def row(self) -> tuple[Floats, Ints, Floats]:
        """Return what holds at the current position.

        Log-probabilities float64[V], the context codes int64[2], and float64[K, V], each order's own distribution.
        """
        rows = np.empty((self.every, self.vocab_size))
        d = self._data
        codes = np.zeros(2, dtype=np.int64)
        logp = np.empty(self.vocab_size)
        tree_row(
            self.vocab_size,
            self._bits,
            self._orders,
            self._document_orders,
            d["pool"],
            d["contexts"],
            d["state"],
            d["heap"],
            d["heap_count"],
            d["document_pool"],
            d["document_contexts"],
            d["document_state"],
            d["document_heap"],
            d["document_heap_count"],
            self._units,
            self._levels,
            d["tables"],
            self._stretch,
            d["weights"],
            d["finals"],
            logp,
            codes,
            rows,
        )
        return logp, codes, rows

    def commit(self) -> None:
        """Make everything learned so far permanent."""
        self._saved = None
        self._journal_used = 0
        self._pruned = False

    def rollback(self) -> None:
        """Return to the last commit, bit for bit."""
        if self._saved is None:
            return
        if self._pruned:
            self._journal_used = self._kept_journal_used
            self._journal = self._kept_journal
        self._data.update(self._saved)
        d = self._data
        tree_undo(
            d["pool"],
            d["contexts"],
            d["document_pool"],
            d["document_contexts"],
            self._journal,
            self._journal_used,
        )
        self.commit()

    def _make_room(self) -> None:
        """Double the lists (places stay) or, at the bound, move what is not rare to new ones."""
        d = self._data
        size = len(d["pool"])
        if size < self._max_pool:
            size = min(2 * size, self._max_pool)
            for name, length in (("pool", size), ("contexts", size // 2)):
                grown = np.zeros(length, dtype=np.uint64)
                grown[: len(d[name])] = d[name]
                d[name] = grown
            return
        new = {"pool": np.zeros(size, np.uint64), "contexts": np.zeros(size // 2, np.uint64)}
        state = np.zeros_like(d["state"])
        for highest_count, oldest in _AGEING:
            newest = int(oldest * d["state"][CONTEXT_TOP])
            tree_prune(
                d["pool"],
                d["contexts"],
                d["state"],
                self._bits,
                highest_count,
                newest,
                new["pool"],
                new["contexts"],
                state,
            )
            if state[POOL_TOP] <= 0.6 * size and state[CONTEXT_TOP] <= 0.3 * size:
                break
        if not self._pruned and self._saved is not None:
            self._saved.update({name: d[name] for name in ("pool", "contexts")})
            self._saved.update({name: d[name].copy() for name in ("document_pool", "document_contexts")})
            self._kept_journal, self._kept_journal_used = self._journal, self._journal_used
            self._journal = np.zeros((1024, 2), dtype=np.int64)
            self._pruned = True
        new["pool"][int(state[POOL_TOP]) :] = 0
        new["contexts"][int(state[CONTEXT_TOP]) :] = 0
        d.update(new)
        d["state"] = state

    def state_dict(self) -> dict[str, Array]:
        """Return copies of what has been learned. Raises ValueError if something is uncommitted."""
        if self._saved is not None:
            raise ValueError("the tree expert holds uncommitted tokens; commit or roll back before saving")
        saved = {}
        for name, value in self._data.items():
            # Beyond what is in use lies what roll-backs left behind.
            used = int(self._data[_TOPS[name][0]][_TOPS[name][1]]) if name in _LARGE else len(value)
            saved[name] = value[:used].copy()
        return saved

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Restore what ``state_dict`` returned. Raises ValueError if it does not fit this expert."""
        for name, value in self._data.items():
            given = state[name]
            fits = given.dtype == value.dtype and (name in _LARGE or given.shape == value.shape)
            if not fits or given.ndim != value.ndim:
                raise ValueError(f"tree state {name!r} is {given.dtype}{list(given.shape)}; expected {value.dtype}")
        for prefix, most in (("", self._max_pool), ("document_", self._document_words)):
            pool, contexts, small = (state[prefix + name] for name in ("pool", "contexts", "state"))
            # Beyond the depth stand contexts of an earlier document.
            current = small[CONTEXT : CONTEXT + max(int(small[DEPTH]), 0) + 1]
            ends = (contexts & np.uint64(0xFFFFFFFF)) + ((contexts >> np.uint64(32)) & np.uint64(0xFFFF))
            inside = (
                1 << self._bits <= len(pool) == small[POOL_TOP] <= most - self._margin
                and 1 <= len(contexts) == small[CONTEXT_TOP] <= most // 2
                and 0 <= small[DEPTH] <= len(small) - CONTEXT - 1
                and bool(np.all((current >= 0) & (current < len(contexts))))
                and int(ends.max()) <= len(pool)
                and int((pool >> np.uint64(32)).max()) < len(contexts)
                and int((pool & np.uint64(0xFFFF)).max()) < 1 << self._bits
            )
            if not inside:
                raise ValueError("tree state points outside its lists, or the lists exceed the memory bound")
        self._data = {name: np.ascontiguousarray(state[name]).copy() for name in self._data}
        every = self._orders + self._document_orders
        size = min(max(FIRST_POOL, 4 * self._margin), self._max_pool)
        while size < self._max_pool and (
            int(self._data["state"][POOL_TOP]) + self._margin > size
            or int(self._data["state"][CONTEXT_TOP]) + every > size // 2
        ):
            size = min(2 * size, self._max_pool)
        for prefix, room in (("", size), ("document_", self._document_words)):
            for name, length in (("pool", room), ("contexts", room // 2)):
                full = np.zeros(length, dtype=np.uint64)
                full[: len(self._data[prefix + name])] = self._data[prefix + name]
                self._data[prefix + name] = full
        self.commit()


def _first_tables(count: int) -> Floats:
    """Return float64[count * LEVELS ** 2, 2]: (probability of the right branch, how often learned) by counts."""
    low = np.array(LEVEL_STARTS)
    middle = (low + np.array([*low[1:] - 1, 120])) / 2
    p = (middle[None, :] + 0.4) / (middle[:, None] + middle[None, :] + 0.8)
    tables = np.empty((count * LEVELS * LEVELS, 2))
    tables[:, 0] = np.tile(p.ravel(), count)
    tables[:, 1] = 6.0
    return tables
