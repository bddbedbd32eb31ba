"""The online mixer: experts are asked, their answers are mixed, the token is revealed, everybody learns."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from mixers.chain import NgramChain
from mixers.config import MixerConfig, ngram_order
from mixers.hedge import (
    LOG_FLOOR,
    STAT_NATS,
    STAT_WEIGHT,
    STAT_WITHOUT,
    gate_pass,
    gate_weights,
    hedge_pass,
    hedge_weights,
    mix_rows,
)
from mixers.ngram import CODES_PER_ORDER
from mixers.tree import CODES_PER_ORDER as TREE_CODES_PER_ORDER
from mixers.tree_expert import TreeExpert

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.integer[Any]]
State = dict[str, npt.NDArray[np.generic]]

_Network = tuple[Floats, Floats, Floats]

MAX_SPAN = 1 << 20
"""Most tokens between two commits: the undo log and a table that a roll-back may need are held in memory."""

_TREE_SHARE = 0.6

SAMPLE_EVERY = 16384
_BLOCK = 4096


class Mixer:
    """Probabilities of the next token from online counts and, optionally, a network.

    ``score`` asks and learns token by token; until ``commit`` the same span may be scored again with other tokens, and
    everything learned since the last commit is first undone exactly. All values are float64 nats.
    """

    def __init__(self, config: MixerConfig) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        self._position = 0  # tokens learned, the pending ones included
        self._committed = 0
        self._pending = np.zeros(0, dtype=np.int64)
        self._saved: dict[str, npt.NDArray[Any]] | None = None
        self._stash: tuple[int, Floats | None, Floats | None, float] | None = None
        experts = config.experts
        self._tree = _make_tree(config) if "tree" in experts else None
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
        self._stats = np.zeros((3, len(experts)))
        self._total = np.zeros(1)
        self._work = (np.zeros(len(experts)), np.zeros(len(experts)), np.zeros((1, len(experts))))
        self._samples: list[tuple[int, Floats]] = []
        self._sampled = (0, np.zeros(len(experts)))
        self._buckets = len(config.entropy_edges) + 1 if "entropy" in config.contexts else 1
        self._edges = np.array(config.entropy_edges)
        log_prior = np.log(np.array(config.prior if config.prior is not None else _default_prior(experts)))
        log_prior -= np.log(np.exp(log_prior).sum())
        if config.method == "hedge":
            # Codes of the stream come first, from its own counts or else from the tree's.
            self._codes_per_order = CODES_PER_ORDER if config.orders else TREE_CODES_PER_ORDER
            longest = config.orders or config.tree_orders
            sets = self._buckets * ((longest + 1) if "order" in config.contexts else 1)
            self._weights = np.tile(log_prior, (sets, 1))
        else:
            sizes = [CODES_PER_ORDER * (chain.orders + 1) for chain in self._chains.values()]
            if self._tree is not None:
                sizes += self._tree.code_counts
            self._gate_offsets = np.cumsum([0, *sizes])
            self._weights = np.zeros((sum(sizes) + self._buckets, len(experts)))
            self._weights[-self._buckets :] = log_prior

    # -- scoring ----------------------------------------------------------------------------------------------------

    def score(
        self,
        tokens: Tokens,
        start: int,
        stop: int,
        neural_logp: Floats | None = None,
        entropy_logp: Floats | None = None,
        entropy: Floats | None = None,
    ) -> Floats:
        """Return ``-ln p(tokens[i] | tokens[:i])`` for ``i`` in ``[start, stop)``, learning each token once scored.

        What was learned since the last ``commit`` is undone first, so that a span may be scored again.

        Args:
            tokens: one-dimensional integers, at least ``stop`` of them; only ``[:stop]`` is read.
            start: where the last commit ended; 1 on the first call (token 0 is context and is not scored).
            stop: one past the last position; at most ``MAX_SPAN`` after ``start``.
            neural_logp: float64[stop - start], the network's log-probability of each token.
            entropy_logp: float64[stop - start], the same of the re-tempered network.
            entropy: float64[stop - start], entropy of the network's distribution, nats.

        Returns:
            float64[stop - start], nats.

        Raises:
            ValueError: a span out of order, a token outside the vocabulary, or network inputs missing or malformed.
        """
        self.rollback()
        if start != max(self._committed, 1):
            raise ValueError(
                f"score starts at {start}; expected {max(self._committed, 1)}, where the last commit ended"
            )
        ids = self._check_tokens(tokens, start, stop)
        network = self._check_network(stop - start, neural_logp, entropy_logp, entropy)
        if self._position == 0:
            self._learn_first(ids)
        nll = np.empty(stop - start)
        self._advance(ids, start, stop, network, nll)
        return nll

    def commit(self, stop: int) -> None:
        """Make everything up to ``stop`` permanent; ``stop`` must be the end of what was scored last.

        Raises:
            ValueError: ``stop`` is not that position.
        """
        if stop != self._position:
            raise ValueError(f"commit at {stop}; expected {self._position}, the end of the last scored span")
        for chain in self._chains.values():
            chain.commit()
        if self._tree is not None:
            self._tree.commit()
        self._saved = None
        self._committed = stop
        self._pending = self._pending[:0]
        at, weight = self._sampled
        if stop // SAMPLE_EVERY > at // SAMPLE_EVERY:
            self._samples.append((stop, (self._stats[STAT_WEIGHT] - weight) / (stop - max(at, 1))))
            self._sampled = (stop, self._stats[STAT_WEIGHT].copy())

    def rollback(self) -> None:
        """Forget everything learned since the last commit, exactly."""
        if self._saved is None:
            return
        for chain in self._chains.values():
            chain.rollback()
        if self._tree is not None:
            self._tree.rollback()
        self._weights = self._saved["weights"]
        self._stats = self._saved["stats"]
        self._total = self._saved["total"]
        self._position = self._committed
        self._pending = self._pending[:0]
        self._saved = None

    def score_stream(
        self,
        tokens: Tokens,
        neural_logp: Floats | None = None,
        entropy_logp: Floats | None = None,
        entropy: Floats | None = None,
        span: int = 65536,
    ) -> Floats:
        """Score a whole stream from where the last commit ended, committing span by span.

        Args:
            tokens: one-dimensional integers.
            neural_logp: float64[scored positions], and so for the other two; see ``score``.
            entropy_logp: see ``score``.
            entropy: see ``score``.
            span: tokens between commits.

        Returns:
            float64[scored positions], nats; the first is position 1 on a fresh mixer.
        """
        self.rollback()
        first = max(self._committed, 1)
        pieces = [np.zeros(0)]
        for start in range(first, len(tokens), span):
            stop = min(start + span, len(tokens))
            piece = slice(start - first, stop - first)
            inputs = [None if x is None else x[piece] for x in (neural_logp, entropy_logp, entropy)]
            pieces.append(self.score(tokens, start, stop, *inputs))
            self.commit(stop)
        return np.concatenate(pieces)

    # -- whole rows -------------------------------------------------------------------------------------------------

    def distribution(
        self,
        tokens: Tokens,
        position: int,
        neural_logprobs: Floats | None = None,
        entropy_logprobs: Floats | None = None,
        entropy: float | None = None,
    ) -> Floats:
        """Return float64[V], the log-probability of every token at ``position`` given ``tokens[:position]``.

        The mixer first learns the tokens between the last commit and ``position`` that it has not learned yet (and
        undoes pending ones that differ or lie at or after ``position``). With network experts, learning a token
        needs the network's values there: they come from the ``distribution`` call at that position, so positions are
        asked for in order.

        Args:
            tokens: one-dimensional integers, at least ``position`` of them.
            position: at least 1.
            neural_logprobs: float64[V], the network's log-probabilities at ``position``.
            entropy_logprobs: float64[V], the same of the re-tempered network.
            entropy: the network's entropy there, nats.

        Raises:
            ValueError: ``position`` lies before the last commit, or network values are missing.
        """
        if position < max(self._committed, 1):
            raise ValueError(f"position {position} lies before {max(self._committed, 1)}, where the last commit ended")
        self._move_to(tokens, position)
        neural = self._check_row("neural", neural_logprobs)
        tempered = self._check_row("entropy", entropy_logprobs)
        if entropy is None and "entropy" in self.config.contexts:
            raise ValueError("the weight sets depend on the network's entropy at the position; it is missing")
        row_entropy = 0.0 if entropy is None else float(entropy)
        self._stash = (position, neural, tempered, row_entropy)
        return self._row(neural, tempered, row_entropy)

    def distributions(
        self,
        tokens: Tokens,
        start: int,
        stop: int,
        neural_logprobs: Floats | None = None,
        entropy_logprobs: Floats | None = None,
        entropy: Floats | None = None,
    ) -> Floats:
        """Return float64[stop - start, V]: the rows at ``[start, stop)``, row ``i - start`` given ``tokens[:i]`` alone.

        Args:
            tokens: one-dimensional integers, at least ``stop - 1`` of them.
            start: first position, at or after the last commit.
            stop: one past the last.
            neural_logprobs: float64[stop - start, V], the network's rows.
            entropy_logprobs: float64[stop - start, V], the same re-tempered.
            entropy: float64[stop - start], nats.
        """
        out = np.empty((max(stop - start, 0), self.vocab_size))
        for i in range(start, stop):
            k = i - start
            out[k] = self.distribution(
                tokens,
                i,
                None if neural_logprobs is None else neural_logprobs[k],
                None if entropy_logprobs is None else entropy_logprobs[k],
                None if entropy is None else float(entropy[k]),
            )
        return out

    def expert_rows(
        self,
        neural_logprobs: Floats | None = None,
        entropy_logprobs: Floats | None = None,
    ) -> tuple[Floats, Ints]:
        """Return float64[E, V], every expert's log-probabilities at the current position, and the context codes."""
        log_rows = np.empty((len(self.config.experts), self.vocab_size))
        rows: dict[str, Floats] = {}
        codes = np.zeros(len(self._chains) + (0 if self._tree is None else 2), dtype=np.int64)
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

    # -- reports and state ------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Return what the experts did, over all tokens scored so far.

        ``experts``: name -> ``nats`` (its own total), ``leave_one_out_gain`` (nats the mixture would have lost had the
        expert's weight been shared out over the others at every token; above 0 it helped) and ``mean_weight``.
        ``weights_over_time``: [position, weights averaged since the last such row].
        """
        scored = max(self._position - 1, 0)
        total = float(self._total[0])
        experts = {
            name: {
                "nats": float(self._stats[STAT_NATS, e]),
                "leave_one_out_gain": float(self._stats[STAT_WITHOUT, e] - total),
                "mean_weight": float(self._stats[STAT_WEIGHT, e] / max(scored, 1)),
            }
            for e, name in enumerate(self.config.experts)
        }
        stores: dict[str, NgramChain | TreeExpert] = dict(self._chains)
        if self._tree is not None:
            stores["tree"] = self._tree
        return {
            "tokens": scored,
            "nats": total,
            "method": self.config.method,
            "experts": experts,
            "weights_over_time": [[at, *map(float, weights)] for at, weights in self._samples],
            "table_bytes": {name: store.table_bytes for name, store in stores.items()},
            "records": {name: store.records for name, store in stores.items()},
        }

    def state_dict(self) -> State:
        """Return what has been learned as numpy arrays; loading them resumes to identical bits.

        Raises:
            ValueError: tokens are scored but not committed.
        """
        if self._saved is not None:
            raise ValueError("tokens are scored but not committed; commit or roll back before saving")
        state: State = {
            "config": np.frombuffer(self._fingerprint(), dtype=np.uint8),
            "position": np.array([self._committed, self._sampled[0]]),
            "weights": self._weights.copy(),
            "stats": self._stats.copy(),
            "total": self._total.copy(),
            "sampled_weight": self._sampled[1].copy(),
            "sample_positions": np.array([at for at, _ in self._samples], dtype=np.int64),
            "sample_weights": np.array([w for _, w in self._samples]).reshape(-1, len(self.config.experts)),
        }
        for name, chain in self._chains.items():
            state.update({f"{name}.{key}": value for key, value in chain.state_dict().items()})
        if self._tree is not None:
            state.update({f"tree.{key}": value for key, value in self._tree.state_dict().items()})
        return state

    def load_state_dict(self, state: State) -> None:
        """Restore what ``state_dict`` returned, on a mixer of the same configuration.

        Raises:
            ValueError: the state comes from another configuration or is damaged.
        """
        missing = sorted(set(self.state_dict()) - set(state)) if self._saved is None else []
        if missing:
            raise ValueError(f"the saved mixer state lacks {missing}")
        if bytes(np.asarray(state["config"], dtype=np.uint8)) != self._fingerprint():
            raise ValueError("the saved mixer state comes from another configuration")
        weights, stats = np.asarray(state["weights"]), np.asarray(state["stats"])
        if weights.shape != self._weights.shape or stats.shape != self._stats.shape:
            raise ValueError(f"saved weights of shape {weights.shape}; expected {self._weights.shape}")
        for name, chain in self._chains.items():
            chain.load_state_dict({key: state[f"{name}.{key}"] for key in ("table", "state")})
        if self._tree is not None:
            prefix = "tree."
            self._tree.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self._weights = weights.astype(np.float64)
        self._stats = stats.astype(np.float64)
        self._total = np.asarray(state["total"]).astype(np.float64).reshape(1)
        position = np.asarray(state["position"])
        self._committed = self._position = int(position[0])
        self._sampled = (int(position[1]), np.asarray(state["sampled_weight"]).astype(np.float64))
        at, sampled = np.asarray(state["sample_positions"]), np.asarray(state["sample_weights"])
        self._samples = [(int(p), row.copy()) for p, row in zip(at, sampled, strict=True)]
        self._pending = self._pending[:0]
        self._saved = None
        self._stash = None

    # -- inside -----------------------------------------------------------------------------------------------------

    def _fingerprint(self) -> bytes:
        return json.dumps(asdict(self.config), sort_keys=True).encode()

    def _check_tokens(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        """Check that ``[start, stop)`` (and token 0 at first) can be learned; return the stream as an array."""
        array = np.asarray(tokens)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"tokens of type {array.dtype} and shape {array.shape}; expected one row of integers")
        if not start < stop <= len(array):
            raise ValueError(f"span [{start}, {stop}) of {len(array)} tokens; expected one token or more inside them")
        if stop - max(self._committed, 1) > MAX_SPAN:
            raise ValueError(f"[{self._committed}, {stop}) is longer than {MAX_SPAN} tokens; commit in between")
        piece = array[0 if self._position == 0 else start : stop]
        low, high = int(piece.min()), int(piece.max())
        if low < 0 or high >= self.vocab_size:
            raise ValueError(f"token {low if low < 0 else high} lies outside the vocabulary of {self.vocab_size}")
        return array

    def _check_network(self, count: int, *inputs: Floats | None) -> _Network:
        """Return (neural, re-tempered, entropy) as float64[count] each, zeros where the configuration has no use."""
        config = self.config
        needed = ("neural" in config.experts, "entropy" in config.experts, "entropy" in config.contexts)
        checked = []
        for name, need, value in zip(("neural_logp", "entropy_logp", "entropy"), needed, inputs, strict=True):
            if not need:
                checked.append(np.zeros(count))
                continue
            if value is None:
                raise ValueError(f"{name} is missing; the configuration needs it")
            array = np.asarray(value, dtype=np.float64)
            if array.shape != (count,):
                raise ValueError(f"{name} has shape {array.shape}; expected ({count},)")
            _check_values(name, array, logarithm=name != "entropy")
            checked.append(array if name == "entropy" else np.maximum(array, LOG_FLOOR))
        return checked[0], checked[1], checked[2]

    def _check_row(self, name: str, row: Floats | None) -> Floats | None:
        """Return one row of log-probabilities checked and floored, or None where the configuration needs none."""
        if name not in self.config.experts:
            return None
        if row is None:
            raise ValueError(f"the {name} expert's log-probabilities are missing; the configuration needs them")
        array = np.asarray(row, dtype=np.float64)
        if array.shape != (self.vocab_size,):
            raise ValueError(f"the {name} expert's row has shape {array.shape}; expected ({self.vocab_size},)")
        _check_values(name, array, logarithm=True)
        return np.maximum(array, LOG_FLOOR)

    def _save(self) -> None:
        """Keep copies of all small state, once after each commit; tables keep their own undo logs."""
        if self._saved is None:
            self._saved = {"weights": self._weights.copy(), "stats": self._stats.copy(), "total": self._total.copy()}

    def _advance(self, tokens: Tokens, start: int, stop: int, network: _Network, nll: Floats) -> None:
        """Score and learn ``[start, stop)``; ``nll`` float64[stop - start] is filled. Blocks bound the work arrays."""
        self._save()
        self._pending = np.concatenate([self._pending, tokens[start:stop].astype(np.int64)])
        for low in range(start, stop, _BLOCK):
            high = min(low + _BLOCK, stop)
            piece = slice(low - start, high - start)
            block = tokens[low:high].astype(np.int64)
            logp = np.empty((len(block), len(self.config.experts)))
            columns = len(self._chains)
            codes = np.zeros((len(block), columns + (0 if self._tree is None else 2)), dtype=np.int64)
            probs: dict[str, Floats] = {}
            for c, (name, chain) in enumerate(self._chains.items()):
                probs[name] = np.empty((len(block), chain.orders))
                chain_codes = np.empty(len(block), dtype=np.int64)
                chain.advance(block, probs[name], chain_codes)
                codes[:, c] = chain_codes
            if self._tree is not None:
                tree_logp, tree_codes = np.empty(len(block)), np.zeros((len(block), 2), dtype=np.int64)
                probs["tree"] = np.empty((len(block), self._tree.every))
                self._tree.advance(block, tree_logp, tree_codes, probs["tree"])
                codes[:, columns:] = tree_codes
            for e, name in enumerate(self.config.experts):
                if name == "neural":
                    logp[:, e] = network[0][piece]
                elif name == "entropy":
                    logp[:, e] = network[1][piece]
                elif name == "tree":
                    logp[:, e] = tree_logp
                else:
                    source, order = _source(name, self.config)
                    logp[:, e] = np.log(probs[source][:, order])
            rows = self._weight_rows(codes, network[2][piece])
            if self.config.method == "hedge":
                hedge_pass(
                    logp,
                    rows,
                    self._weights,
                    self.config.eta,
                    self.config.share,
                    self._stats,
                    nll[piece],
                    *self._work[:2],
                )
            else:
                gate_pass(logp, rows, self._weights, self.config.gate_rate, self._stats, nll[piece], *self._work)
            self._total[0] += nll[piece].sum()
            self._position = high

    def _weight_rows(self, codes: Ints, entropy: Floats) -> Ints:
        """Return int64[T, J], the rows of the weights in use at each token: J = 1 for Hedge."""
        bucket = np.zeros(len(codes), dtype=np.int64)
        if self._buckets > 1:
            bucket = np.searchsorted(self._edges, entropy, side="right").astype(np.int64)
        if self.config.method == "hedge":
            if "order" in self.config.contexts:
                bucket = bucket + self._buckets * (codes[:, 0] // self._codes_per_order)
            return np.ascontiguousarray(bucket[:, None])
        return np.column_stack([codes + self._gate_offsets[:-1], bucket + self._gate_offsets[-1]])

    def _row(self, neural: Floats | None, tempered: Floats | None, entropy: float) -> Floats:
        """Return float64[V], the mixture's log-probabilities at the current position."""
        log_rows, codes = self.expert_rows(neural, tempered)
        rows = self._weight_rows(codes[None], np.array([entropy]))
        weights = np.empty(len(self.config.experts))
        if self.config.method == "hedge":
            hedge_weights(self._weights, rows[0, 0], weights)
        else:
            gate_weights(rows, 0, self._weights, np.empty((1, len(weights))), weights)
        out = np.empty(self.vocab_size)
        mix_rows(log_rows, weights, out)
        return out

    def _move_to(self, tokens: Tokens, position: int) -> None:
        """Bring what has been learned to exactly ``tokens[:position]``."""
        array = np.asarray(tokens)
        if array.ndim != 1 or len(array) < position:
            raise ValueError(f"position {position} needs as many tokens before it; got an array of shape {array.shape}")
        held = self._position - len(self._pending)
        if self._position > position or not np.array_equal(self._pending, array[held : self._position]):
            self.rollback()
        if self._position == 0 and position == 1:
            self._learn_first(self._check_tokens(array, 0, 1))
        start = max(self._position, 1)
        if start == position:
            return
        array = self._check_tokens(array, start, position)
        zeros = np.zeros(position - start)
        network = (zeros, zeros, zeros)
        if self.config.needs_network or "entropy" in self.config.contexts:
            if self._stash is None or self._stash[0] != start or position != start + 1:
                raise ValueError(
                    f"cannot learn tokens [{start}, {position}) without the network's values there; "
                    "score the span, or ask for its rows one position after the other"
                )
            _, neural, tempered, entropy = self._stash
            token = int(array[start])
            network = (
                np.array([0.0 if neural is None else neural[token]]),
                np.array([0.0 if tempered is None else tempered[token]]),
                np.array([entropy]),
            )
        self._advance(array, start, position, network, np.empty(position - start))

    def _learn_first(self, tokens: Tokens) -> None:
        """Learn token 0, which is context and never scored."""
        self._save()
        first = tokens[:1].astype(np.int64)
        for chain in self._chains.values():
            chain.advance(first, np.empty((1, chain.orders)), np.empty(1, dtype=np.int64))
        if self._tree is not None:
            self._tree.advance(first, np.empty(1), np.zeros((1, 2), dtype=np.int64), np.empty((1, self._tree.every)))
        self._pending = first
        self._position = 1


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


def _default_prior(experts: tuple[str, ...]) -> list[float]:
    """Return initial weights: a network is trusted most; of the counts the highest order, then the document's."""
    prior = []
    for name in experts:
        order = ngram_order(name.removeprefix("document "))
        if name == "tree":
            prior.append(60.0)
        elif name == "neural":
            prior.append(200.0)
        elif name == "entropy" or order is None:
            prior.append(20.0)
        else:
            above = name.removeprefix("document ") != name
            siblings = [other for other in experts if (other.startswith("document ")) == above]
            highest = max(ngram_order(o.removeprefix("document ")) or 0 for o in siblings)
            prior.append((7.0 if above else 20.0) if order == highest else 1.0)
    return prior


def _check_values(name: str, values: Floats, *, logarithm: bool) -> None:
    """Raise ValueError if log-probabilities are NaN or positive, or entropies NaN or infinite."""
    # Rounding may leave the log of a near-certain token a hair above 0.
    if logarithm and not bool(np.all(values <= 1e-6)):
        raise ValueError(f"{name} holds NaN or values above 0; expected log-probabilities in nats")
    if not logarithm and not bool(np.all(np.isfinite(values))):
        raise ValueError(f"{name} holds NaN or infinite values; expected entropies in nats")
