"""The tree expert: owns the count lists, learned tables and weights of the kernels in ``tree.py``."""

from __future__ import annotations

import numpy as np

from evalkit.mixers.tree import (
    LEVEL_STARTS,
    SETS,
    SQUASH_SCALE,
    TOKEN_ROWS,
    UNIT,
    WEIGHTED_NODES,
    Curves,
    Learned,
    Shape,
    input_count,
    new_nodes,
    new_sums,
    tree_pass,
    tree_row,
)
from evalkit.mixers.tree_lists import CODES_PER_ORDER, CONTEXT, CONTEXT_TOP, DEPTH, LEVELS, POOL_TOP, Lists, tree_prune
from evalkit.mixers.undo import Array, Floats, Ints, Undoable

_FINAL_RATE = 0.002
"""Step of the weights that join the weight vectors' answers."""
FIRST_POOL = 1 << 17
_DOCUMENT_POOL = 1 << 18
# What goes first when the bound is reached: (counts up to, the oldest share of the contexts), milder steps first.
_AGEING = ((1, 0.1), (1, 0.25), (1, 0.5), (1, 0.75), (1, 0.9), (2, 0.75), (4, 0.9), (65535, 0.9), (65535, 1.0))


class TreeExpert(Undoable):
    """Scores tokens bit by bit from counts of the stream (``orders``) and of the document (``document_orders``).

    ``rate`` is the step of the logistic weights.
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
        self._bits = bits = max(1, (vocab_size - 1).bit_length())
        self._orders = total = orders + document_orders
        units = np.zeros((total, 4), dtype=np.int64)
        triples = np.concatenate([discounts[:orders], document_discounts[:document_orders]])
        units[:, 1:] = np.maximum(np.rint(triples * UNIT), 1)
        levels = np.searchsorted(LEVEL_STARTS, np.arange(LEVEL_STARTS[-1] + 1), side="right") - 1
        token = -1 if document_token is None else document_token
        self._shape = Shape(vocab_size, bits, token, orders, document_orders, units, levels)
        self._margin = 2 * total * (1 << bits)
        self._document_words = max(min(_DOCUMENT_POOL, memory_bytes // 96), 4 * self._margin)
        # Twice, because a prune copies: 8 bytes a pool word, 8 bytes for a context on every other one.
        self._max_pool = max((memory_bytes - 12 * self._document_words) // 24, 8 * self._margin)
        self._first_pool = min(max(FIRST_POOL, 4 * self._margin), self._max_pool)
        document = _new_lists(self._document_words, max(document_orders, 1), bits)
        arrays = {
            **_new_lists(self._first_pool, orders, bits)._asdict(),
            **{f"document_{name}": array for name, array in document._asdict().items()},
            "tables": _first_tables(total * bits),
            "weights": _first_weights(orders, document_orders, bits),
            "finals": np.full(((orders + 1) * bits, SETS), 1.0 / SETS),
        }
        super().__init__(arrays, ("pool", "contexts", "document_pool", "document_contexts"))
        differ = np.arange(1 << bits)
        p = (np.arange(4096) + 0.5) / 4096
        self._curves = Curves(
            level_of=np.array([bits - int(d).bit_length() for d in differ], dtype=np.uint8),
            stretch=np.log(p / (1 - p)),
            squashed=1 / (1 + np.exp(-((np.arange(4096) + 0.5) / SQUASH_SCALE - 12))),
            rate=rate,
            final_rate=_FINAL_RATE,
        )
        self._sums = new_sums(orders, document_orders, bits + 1)
        self._nodes = new_nodes(bits, orders, document_orders)

    @property
    def records(self) -> int:
        """Words of the stream's lists in use."""
        return int(self.arrays["state"][POOL_TOP])

    @property
    def code_counts(self) -> list[int]:
        """How many context codes there are for the stream's and for the document's counts."""
        return [CODES_PER_ORDER * (orders + 1) for orders in (self._shape.orders, self._shape.document_orders)]

    def advance(self, tokens: Ints) -> tuple[Floats, Ints]:
        """Score then learn the next tokens of the stream, int64[T].

        Returns:
            float64[T], log-probability of each token, and int64[T, 2], context codes of the stream's and of the
            document's counts.
        """
        logp, codes = np.empty(len(tokens)), np.zeros((len(tokens), 2), dtype=np.int64)
        self.learn(tokens, (logp, codes))
        return logp, codes

    def row(self) -> tuple[Floats, Ints]:
        """Return float64[V], the log-probabilities at the current position, and the context codes int64[2]."""
        logp, codes = np.empty(self.vocab_size), np.zeros((1, 2), dtype=np.int64)
        orders = self._shape.orders, self._shape.document_orders
        work = new_sums(*orders, 2 << self._bits), new_nodes(1, *orders)
        tree_row(
            self._shape, self._lists(""), self._lists("document_"), self._learned(), self._curves, *work, logp, codes
        )
        return logp, codes[0]

    def _lists(self, prefix: str) -> Lists:
        """Return the stream's counts, or with the prefix ``document_`` the document's."""
        return Lists(*(self.arrays[prefix + name] for name in Lists._fields))

    def _learned(self) -> Learned:
        return Learned(*(self.arrays[name] for name in Learned._fields))

    def log_rows(self, count: int) -> int:
        """Return how many rows of the log ``count`` tokens may need.

        Three a token and order, four a token for the document's growing blocks, whose blocks from before may each grow
        once more, and a reset.
        """
        return count * (7 * self._orders + 8) + self._document_words + self._margin

    def run(self, tokens: Ints, start: int, outputs: tuple[Array, ...]) -> tuple[int, int]:
        """Score and learn from ``start`` on until there is no room; return (position reached, rows of the log)."""
        reached, logged = tree_pass(
            tokens,
            start,
            self._shape,
            self._lists(""),
            self._lists("document_"),
            self._learned(),
            self._curves,
            self._sums,
            self._nodes,
            self.log,
            self.logged,
            *outputs,
        )
        return reached, logged

    def _fits(self, state: Ints, words: int) -> bool:
        """Return whether the next token fits where the stream's pool has so many words."""
        return bool(state[POOL_TOP] + self._margin <= words and state[CONTEXT_TOP] + self._orders <= words // 2)

    def make_room(self) -> None:
        """Double lists that are full (places stay) or, at the bound, move what is not rare to new ones."""
        lists = self._lists("")
        state, size = lists.state, len(lists.pool)
        if self._fits(state, size):
            return
        if size < self._max_pool:
            size = min(2 * size, self._max_pool)
            self.arrays["pool"] = _lengthened(lists.pool, size)
            self.arrays["contexts"] = _lengthened(lists.contexts, size // 2)
            return
        new = Lists(*map(np.zeros_like, lists))
        for highest_count, oldest in _AGEING:
            tree_prune(lists, self._bits, highest_count, int(oldest * state[CONTEXT_TOP]), new)
            if new.state[POOL_TOP] <= 0.6 * size and new.state[CONTEXT_TOP] <= 0.3 * size:
                break
        new.pool[int(new.state[POOL_TOP]) :] = 0
        new.contexts[int(new.state[CONTEXT_TOP]) :] = 0
        self.replace({"pool": new.pool, "contexts": new.contexts, "state": new.state})

    def pack(self) -> dict[str, Array]:
        """Return the part of the arrays that is in use: beyond it lies what roll-backs left behind."""
        packed = dict(self.arrays)
        for prefix in ("", "document_"):
            state = self.arrays[f"{prefix}state"]
            packed[f"{prefix}pool"] = packed[f"{prefix}pool"][: int(state[POOL_TOP])]
            packed[f"{prefix}contexts"] = packed[f"{prefix}contexts"][: int(state[CONTEXT_TOP])]
        return packed

    def unpack(self, state: dict[str, Array]) -> dict[str, Array] | None:
        """Return the lists that ``pack`` made into ``state``, or None where they cannot have been."""
        for prefix, most in (("", self._max_pool - self._margin), ("document_", self._document_words)):
            pool, contexts, small = (state[prefix + name] for name in ("pool", "contexts", "state"))
            # Beyond the depth stand contexts of an earlier document.
            current = small[CONTEXT : CONTEXT + max(int(small[DEPTH]), 0) + 1]
            ends = (contexts & np.uint64(0xFFFFFFFF)) + ((contexts >> np.uint64(32)) & np.uint64(0xFFFF))
            inside = (
                1 << self._bits <= len(pool) == small[POOL_TOP] <= most
                and 1 <= len(contexts) == small[CONTEXT_TOP] <= most // 2
                and 0 <= small[DEPTH] <= len(small) - CONTEXT - 1
                and bool(np.all((current >= 0) & (current < len(contexts))))
                and int(ends.max()) <= len(pool)
                and int((pool >> np.uint64(32)).max()) < len(contexts)
                and int((pool & np.uint64(0xFFFF)).max()) < 1 << self._bits
            )
            if not inside:
                return None
        size = self._first_pool
        while not self._fits(state["state"], size):
            if size == self._max_pool:
                return None
            size = min(2 * size, self._max_pool)
        lengths = {"pool": size, "contexts": size // 2}
        lengths |= {"document_pool": self._document_words, "document_contexts": self._document_words // 2}
        return {name: _lengthened(state[name], length) for name, length in lengths.items()}


def _new_lists(words: int, orders: int, bits: int) -> Lists:
    """Return empty lists with so many words of the pool."""
    state = np.zeros(CONTEXT + orders, dtype=np.int64)
    state[POOL_TOP], state[CONTEXT_TOP] = 1 << bits, 1
    pool, contexts = np.zeros(words, dtype=np.uint64), np.zeros(words // 2, dtype=np.uint64)
    return Lists(pool, contexts, state, np.zeros(2 << bits, dtype=np.int64), np.zeros(2 << bits, dtype=np.int64))


def _lengthened(array: Array, length: int) -> Array:
    """Return a copy with zeros at its end."""
    longer = np.zeros(length, dtype=array.dtype)
    longer[: len(array)] = array
    return longer


def _first_weights(orders: int, document_orders: int, bits: int) -> Floats:
    """Return the first logistic weights: trust in the highest order of the stream, some in everything else."""
    rows = (orders + 1) * bits + (orders + 1) * (document_orders + 1) + min(WEIGHTED_NODES, 1 << bits) + bits
    rows += 2 * TOKEN_ROWS
    weights = np.zeros((rows, input_count(orders, document_orders)))
    weights[:, : orders + document_orders] = 0.1
    weights[:, orders - 1] = 0.7
    return weights


def _first_tables(count: int) -> Floats:
    """Return float64[count * LEVELS ** 2, 2]: (probability of the right branch, how often learned) by counts."""
    low = np.array(LEVEL_STARTS)
    middle = (low + np.array([*low[1:] - 1, 120])) / 2
    p = (middle[None, :] + 0.4) / (middle[:, None] + middle[None, :] + 0.8)
    tables = np.empty((count * LEVELS * LEVELS, 2))
    tables[:, 0] = np.tile(p.ravel(), count)
    tables[:, 1] = 6.0
    return tables
