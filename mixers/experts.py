"""The online experts of a mixer: count stores, what each expert reads from them, and their roll-back and state."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evalkit.mixers.chain import NgramChain
from evalkit.mixers.config import MixerConfig, ngram_order
from evalkit.mixers.hedge import LOG_FLOOR
from evalkit.mixers.inputs import Network
from evalkit.mixers.ngram import CODES_PER_ORDER
from evalkit.mixers.tree import CODES_PER_ORDER as TREE_CODES_PER_ORDER
from evalkit.mixers.tree_expert import TreeExpert

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
State = dict[str, npt.NDArray[np.generic]]

_TREE_SHARE = 0.6


class Experts:
    """Every expert of a configuration; ``neural`` and ``entropy`` pass on what a network said.

    What was learned since the last ``commit`` can be rolled back exactly.
    """

    def __init__(self, config: MixerConfig) -> None:
        self.config = config
        self._tree = _make_tree(config) if "tree" in config.experts else None
        rest = 1.0 if self._tree is None else 1.0 - _TREE_SHARE
        both = config.orders > 0 and config.document_orders > 0
        self._chains: dict[str, NgramChain] = {}
        for name, orders, triples, document in (
            ("stream", config.orders, config.discounts, False),
            ("document", config.document_orders, config.document_discounts, True),
        ):
            if orders:
                share = (0.125 if document else 0.875) if both else 1.0
                self._chains[name] = NgramChain(
                    orders=orders,
                    discounts=_triples(triples, orders),
                    vocab_size=config.vocab_size,
                    exclusion=config.exclusion,
                    document_token=config.document_token,
                    document_local=document,
                    memory_bytes=int(share * rest * config.memory_bytes),
                )
        self.stores: dict[str, NgramChain | TreeExpert] = dict(self._chains)
        if self._tree is not None:
            self.stores["tree"] = self._tree

    @property
    def code_counts(self) -> list[int]:
        """How many context codes there are in each column that ``advance`` returns."""
        counts = [CODES_PER_ORDER * (chain.orders + 1) for chain in self._chains.values()]
        return counts + (self._tree.code_counts if self._tree is not None else [])

    @property
    def codes_per_order(self) -> int:
        """Codes of the first column for each order of the stream: from its own counts or else from the tree's."""
        return CODES_PER_ORDER if self.config.orders else TREE_CODES_PER_ORDER

    def advance(self, tokens: Ints, network: Network) -> tuple[Floats, Ints]:
        """Score then learn the next tokens of the stream, one by one.

        Args:
            tokens: int64[T].
            network: the network's values at the tokens.

        Returns:
            float64[T, E], each expert's probability of each token, and int64[T, C], the context codes.
        """
        count = len(tokens)
        probs: dict[str, Floats] = {}
        columns = []
        for name, chain in self._chains.items():
            probs[name], codes = np.empty((count, chain.orders)), np.empty(count, dtype=np.int64)
            chain.advance(tokens, probs[name], codes)
            columns.append(codes)
        if self._tree is not None:
            tree_logp, tree_codes = np.empty(count), np.zeros((count, 2), dtype=np.int64)
            probs["tree"] = np.empty((count, self._tree.every))
            self._tree.advance(tokens, tree_logp, tree_codes, probs["tree"])
            columns += [tree_codes[:, 0], tree_codes[:, 1]]
        mixed = np.empty((count, len(self.config.experts)))
        for e, name in enumerate(self.config.experts):
            if name == "neural":
                mixed[:, e] = np.exp(network[0])
            elif name == "entropy":
                mixed[:, e] = np.exp(network[1])
            elif name == "tree":
                mixed[:, e] = np.exp(tree_logp)
            else:
                source, order = _source(name, self.config)
                mixed[:, e] = probs[source][:, order]
        return mixed, np.column_stack(columns) if columns else np.zeros((count, 0), dtype=np.int64)

    def rows(self, neural_logprobs: Floats | None, entropy_logprobs: Floats | None) -> tuple[Floats, Ints]:
        """Return float64[E, V], every expert's log-probabilities at the current position, and int64[C], the codes."""
        log_rows = np.empty((len(self.config.experts), self.config.vocab_size))
        rows: dict[str, Floats] = {}
        codes = np.zeros(len(self.code_counts), dtype=np.int64)
        for c, (name, chain) in enumerate(self._chains.items()):
            rows[name], codes[c] = chain.rows()
        if self._tree is not None:
            tree_row, codes[len(self._chains) :], rows["tree"] = self._tree.row()
        for e, name in enumerate(self.config.experts):
            if name == "neural":
                log_rows[e] = _given(neural_logprobs)
            elif name == "entropy":
                log_rows[e] = _given(entropy_logprobs)
            elif name == "tree":
                log_rows[e] = tree_row
            else:
                source, order = _source(name, self.config)
                log_rows[e] = np.log(rows[source][order])
        return log_rows, codes

    def commit(self) -> None:
        """Make everything learned so far permanent."""
        for store in self.stores.values():
            store.commit()

    def rollback(self) -> None:
        """Return to the last commit, bit for bit."""
        for store in self.stores.values():
            store.rollback()

    def state_dict(self) -> State:
        """Return copies of what has been learned; nothing may be uncommitted."""
        state: State = {}
        for name, store in self.stores.items():
            state.update({f"{name}.{key}": value for key, value in store.state_dict().items()})
        return state

    def load_state_dict(self, state: State) -> None:
        """Restore what ``state_dict`` returned; other keys are ignored. Raises ValueError if it does not fit."""
        for name, store in self.stores.items():
            prefix = f"{name}."
            store.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def _make_tree(config: MixerConfig) -> TreeExpert:
    """Return the tree expert of a configuration."""
    document_orders = config.tree_document_orders if config.document_token is not None else 0
    return TreeExpert(
        vocab_size=config.vocab_size,
        orders=config.tree_orders,
        document_orders=document_orders,
        discounts=_triples(config.discounts, config.tree_orders),
        document_discounts=_triples(config.document_discounts, document_orders),
        document_token=config.document_token,
        rate=config.tree_rate,
        memory_bytes=int((_TREE_SHARE if config.orders or config.document_orders else 1.0) * config.memory_bytes),
    )


def _triples(triples: tuple[tuple[float, float, float], ...], orders: int) -> Floats:
    """Return float64[orders, 3]: one triple of discounts for each order, the last repeated."""
    return np.array([triples[min(k, len(triples) - 1)] for k in range(orders)], dtype=np.float64).reshape(orders, 3)


def _given(row: Floats | None) -> Floats:
    """Return a network's row, floored; it must be there."""
    if row is None:
        raise ValueError("the network's log-probabilities are missing; the configuration needs them")
    return np.maximum(np.asarray(row, dtype=np.float64), LOG_FLOOR)


def _source(name: str, config: MixerConfig) -> tuple[str, int]:
    """Return where an n-gram expert's probabilities stand: (store, column)."""
    document = name.startswith("document ")
    order = ngram_order(name.removeprefix("document "))
    if order is None:
        raise ValueError(f"expert {name!r} is not an n-gram")
    if "tree" in config.experts and order < (config.tree_document_orders if document else config.tree_orders):
        return "tree", order + (config.tree_orders if document else 0)
    return "document" if document else "stream", order
