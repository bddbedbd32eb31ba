"""How experts are weighed: the weight sets of Hedge or the gate, their learning, and statistics of every expert."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from evalkit.mixers.config import NGRAMS, MixerConfig
from evalkit.mixers.hedge import (
    STAT_NATS,
    STAT_WEIGHT,
    STAT_WITHOUT,
    gate_pass,
    gate_weights,
    hedge_pass,
    mix_rows,
)
from evalkit.mixers.tree_lists import CODES_PER_ORDER
from evalkit.mixers.undo import Floats, Ints, State

SAMPLE_EVERY = 1024
"""Tokens between two samples of the weights in the report, at first; taken at the first commit that comes after."""

MAX_SAMPLES = 400
"""Where there are more samples, every second one is left out, and they are taken half as often."""


class Weighting:
    """Mixes the experts' probabilities and learns the weights token by token.

    ``code_counts`` tells how many context codes there are in each column of codes.
    """

    def __init__(self, config: MixerConfig, code_counts: list[int]) -> None:
        self.config = config
        self._buckets = len(config.entropy_edges) + 1 if "entropy" in config.contexts else 1
        self._edges = np.array(config.entropy_edges)
        experts = len(config.experts)
        prior = np.array(config.prior if config.prior is not None else _default_prior(config.experts), dtype=float)
        prior /= prior.sum()
        if config.method == "hedge":
            # Codes of the stream come first, from the n-grams or else from the tree.
            orders = code_counts[0] // CODES_PER_ORDER if "order" in config.contexts else 1
            sets = self._buckets * orders
            self.weights = np.tile(prior, (sets, 1))
        else:
            self._offsets = np.cumsum([0, *code_counts])
            self.weights = np.zeros((int(self._offsets[-1]) + self._buckets, experts))
            self.weights[-self._buckets :] = np.log(prior)
        self.nats = 0.0
        self._stats = np.zeros((3, experts))
        self._sample_every = SAMPLE_EVERY
        self._samples: list[tuple[int, Floats]] = []  # position, and sums of the weights up to there
        self._products = np.ones((2, experts))
        self._saved: tuple[Floats, Floats, float] | None = None

    def advance(self, probs: Floats, codes: Ints, entropy: Floats, nll: Floats) -> None:
        """Score then learn tokens one by one.

        Args:
            probs: float64[T, E], each expert's probability of each token.
            codes: int64[T, C], context codes.
            entropy: float64[T], the network's entropy, nats; unused without the context ``entropy``.
            nll: float64[T], out: nats of the mixture.
        """
        if self._saved is None:
            self._saved = self.weights.copy(), self._stats.copy(), self.nats
        rows = self._rows(codes, entropy)
        config, experts = self.config, probs.shape[1]
        if config.method == "hedge":
            shared: tuple[Any, ...] = (self._stats, nll, np.empty(experts), self._products)
            hedge_pass(probs, rows, self.weights, config.eta, config.share, *shared)
        else:
            gate_pass(
                probs, rows, self.weights, config.gate_rate, self._stats, nll, np.empty((1, experts)), self._products
            )
        self.nats += float(nll.sum())

    def mix(self, log_rows: Floats, codes: Ints, entropy: float) -> Floats:
        """Return float64[V], the log-probabilities of the mixture of ``log_rows`` float64[E, V] with codes int64[C]."""
        rows = self._rows(codes[None], np.array([entropy]))
        if self.config.method == "hedge":
            weights = self.weights[rows[0, 0]]
        else:
            work = np.empty((1, len(log_rows)))
            gate_weights(rows, 0, self.weights, work)
            weights = work[0]
        out = np.empty(log_rows.shape[1])
        mix_rows(log_rows, weights, out)
        return out

    def commit(self, stop: int) -> None:
        """Make everything learned permanent; ``stop`` is one past the last token."""
        self._saved = None
        last = self._samples[-1][0] if self._samples else 0
        if stop // self._sample_every > last // self._sample_every:
            self._samples.append((stop, self._stats[STAT_WEIGHT].copy()))
        if len(self._samples) > MAX_SAMPLES:
            del self._samples[-2::-2]  # not the last
            self._sample_every *= 2

    def rollback(self) -> None:
        """Return to the last commit, bit for bit."""
        if self._saved is not None:
            self.weights, self._stats, self.nats = self._saved
            self._saved = None

    def report(self, scored: int) -> dict[str, Any]:
        """Return ``experts`` and ``weights_over_time`` of :meth:`Mixer.report`; ``scored`` tokens were."""
        experts = {
            name: {
                "nats": float(self._stats[STAT_NATS, e]),
                "leave_one_out_gain": float(self._stats[STAT_WITHOUT, e] - self.nats),
                "mean_weight": float(self._stats[STAT_WEIGHT, e] / max(scored, 1)),
            }
            for e, name in enumerate(self.config.experts)
        }
        samples = [(1, np.zeros(len(experts))), *self._samples]
        if scored + 1 > samples[-1][0]:
            samples.append((scored + 1, self._stats[STAT_WEIGHT]))
        rows = [
            [at, *map(float, (after - before) / (at - since))]
            for (since, before), (at, after) in itertools.pairwise(samples)
        ]
        return {"experts": experts, "weights_over_time": rows}

    def state_dict(self) -> State:
        """Return copies of what has been learned; nothing may be uncommitted."""
        return {
            "weights": self.weights.copy(),
            "stats": self._stats.copy(),
            "total": np.array([self.nats]),
            "sample_every": np.array([self._sample_every]),
            "sample_positions": np.array([at for at, _ in self._samples], dtype=np.int64),
            "sample_weights": np.array([w for _, w in self._samples]).reshape(-1, len(self.config.experts)),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what ``state_dict`` returned. Raises ValueError if it does not fit."""
        weights, stats = np.asarray(state["weights"]), np.asarray(state["stats"])
        if weights.shape != self.weights.shape or stats.shape != self._stats.shape:
            raise ValueError(f"saved weights of shape {weights.shape}; expected {self.weights.shape}")
        self.weights = weights.astype(np.float64)
        self._stats = stats.astype(np.float64)
        self.nats = float(np.asarray(state["total"], dtype=np.float64)[0])
        self._sample_every = int(np.asarray(state["sample_every"])[0])
        positions, sampled = np.asarray(state["sample_positions"]), np.asarray(state["sample_weights"])
        self._samples = [(int(p), row.copy()) for p, row in zip(positions, sampled, strict=True)]
        self._saved = None

    def _rows(self, codes: Ints, entropy: Floats) -> Ints:
        """Return int64[T, J], the rows of the weights in use at each token: J = 1 for Hedge."""
        bucket = np.zeros(len(codes), dtype=np.int64)
        if self._buckets > 1:
            bucket = np.searchsorted(self._edges, entropy, side="right").astype(np.int64)
        if self.config.method == "hedge":
            if "order" in self.config.contexts:
                bucket = bucket + self._buckets * (codes[:, 0] // CODES_PER_ORDER)
            return np.ascontiguousarray(bucket[:, None])
        return np.column_stack([codes + self._offsets[:-1], bucket + self._offsets[-1]])


def _default_prior(experts: tuple[str, ...]) -> list[float]:
    """Return initial weights: a network is trusted most; of the n-grams the one of the highest order."""
    highest = max((NGRAMS.index(name) for name in experts if name in NGRAMS), default=0)
    weights = {"neural": 200.0, "entropy": 20.0, "tree": 60.0, NGRAMS[highest]: 20.0}
    return [weights.get(name, 1.0) for name in experts]
