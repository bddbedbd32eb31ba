"""The online experts of a mixer: count stores, what each expert reads from them, and their roll-back and state."""

from __future__ import annotations

import numpy as np

from evalkit.mixers.chain import NgramChain
from evalkit.mixers.config import NGRAMS, MixerConfig
from evalkit.mixers.inputs import Network
from evalkit.mixers.tree_expert import TreeExpert
from evalkit.mixers.undo import Floats, Ints, State

_TREE_SHARE = 0.6
"""The tree's part of the memory where there are n-grams beside it."""


class Experts:
    """Every expert of a configuration; ``neural`` and ``entropy`` pass on what a network said.

    What was learned since the last ``commit`` can be rolled back exactly.
    """

    def __init__(self, config: MixerConfig) -> None:
        self.config = config
        self.stores: dict[str, NgramChain | TreeExpert] = {}
        share = _TREE_SHARE if config.orders else 1.0
        if config.orders:
            self.stores["stream"] = NgramChain(
                vocab_size=config.vocab_size,
                orders=config.orders,
                discounts=_triples(config.discounts, config.orders),
                document_token=config.document_token,
                memory_bytes=int((1.0 - share if "tree" in config.experts else 1.0) * config.memory_bytes),
            )
        if "tree" in config.experts:
            document_orders = config.tree_document_orders if config.document_token is not None else 0
            self.stores["tree"] = TreeExpert(
                vocab_size=config.vocab_size,
                orders=config.tree_orders,
                document_orders=document_orders,
                discounts=_triples(config.discounts, config.tree_orders),
                document_discounts=_triples(config.document_discounts, document_orders),
                document_token=config.document_token,
                rate=config.tree_rate,
                memory_bytes=int(share * config.memory_bytes),
            )

    @property
    def code_counts(self) -> list[int]:
        """How many context codes there are in each column that ``advance`` returns."""
        return [count for store in self.stores.values() for count in store.code_counts]

    def advance(self, tokens: Ints, network: Network) -> tuple[Floats, Ints]:
        """Score then learn the next tokens of the stream, int64[T], one by one; ``network`` has its values at them.

        Returns:
            float64[T, E], each expert's probability of each token, and int64[T, C], the context codes.
        """
        values, codes = {"neural": network[0], "entropy": network[1]}, [np.zeros((len(tokens), 0), dtype=np.int64)]
        for name, store in self.stores.items():
            values[name], store_codes = store.advance(tokens)
            codes.append(store_codes)
        mixed = np.empty((len(tokens), len(self.config.experts)))
        for e, name in enumerate(self.config.experts):
            if name in NGRAMS:
                mixed[:, e] = values["stream"][:, NGRAMS.index(name)]
            else:
                mixed[:, e] = np.exp(values[name])
        return mixed, np.concatenate(codes, axis=1)

    def rows(self, neural: Floats, tempered: Floats) -> tuple[Floats, Ints]:
        """Return float64[E, V], every expert's log-probabilities at the current position, and int64[C], the codes.

        The network's own are given, float64[V] each.
        """
        values, codes = {"neural": neural, "entropy": tempered}, [np.zeros(0, dtype=np.int64)]
        for name, store in self.stores.items():
            values[name], store_codes = store.row()
            codes.append(store_codes)
        log_rows = np.empty((len(self.config.experts), self.config.vocab_size))
        for e, name in enumerate(self.config.experts):
            if name in NGRAMS:
                log_rows[e] = np.log(values["stream"][NGRAMS.index(name)])
            else:
                log_rows[e] = values[name]
        return log_rows, np.concatenate(codes)

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


def _triples(triples: tuple[tuple[float, float, float], ...], orders: int) -> Floats:
    """Return float64[orders, 3]: one triple of discounts for each order, the last repeated."""
    return np.array([triples[min(k, len(triples) - 1)] for k in range(orders)], dtype=np.float64).reshape(orders, 3)
