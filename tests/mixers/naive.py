"""Slow, obvious twins of the mixers' kernels: dictionaries of counts, no tables, no roll-back."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np


class NaiveChain:
    """Interpolated Kneser-Ney over dictionaries keyed by whole contexts."""

    def __init__(self, orders, discounts, vocab_size, exclusion, document_token, document_local):
        self.orders, self.vocab_size, self.exclusion = orders, vocab_size, exclusion
        self.discounts, self.document_token, self.local = discounts, document_token, document_local
        self.counts = defaultdict(lambda: defaultdict(int))
        self.history = []

    def contexts(self):
        return [
            tuple(self.history[len(self.history) - k :]) for k in range(min(len(self.history), self.orders - 1) + 1)
        ]

    def rows(self):
        """Return [orders, V] and the highest order with counts plus one."""
        p = np.full(self.vocab_size, 1.0 / self.vocab_size)
        rows = np.empty((self.orders, self.vocab_size))
        best = 0
        contexts = self.contexts()
        for k in range(self.orders):
            events = self.counts.get(contexts[k], {}) if k < len(contexts) else {}
            if events:
                best = k + 1
                n = sum(events.values())
                d = self.discounts[k]
                held = sum(d[min(c, 3) - 1] for c in events.values())
                q = held * p
                for y, c in events.items():
                    q[y] += c - d[min(c, 3) - 1]
                p = q / n
            rows[k] = p
        return rows, best

    def learn(self, y):
        seen = False
        for context in reversed(self.contexts()):
            known = y in self.counts[context]
            if not known or not (self.exclusion and seen):
                self.counts[context][y] += 1
            seen = seen or known
        self.history.append(y)
        if y == self.document_token:
            if self.local:
                self.counts.clear()
                self.history = []
            else:
                self.history = [y]


def naive_hedge(logp, sets, prior, eta, share, n_sets):
    """Return nats of the Hedge mixture; weights as plain products of powers."""
    experts = logp.shape[1]
    weights = {s: [math.log(w) for w in prior] for s in range(n_sets)}
    nll = []
    for row, s in zip(logp, sets, strict=True):
        top = max(weights[s])
        v = [math.exp(w - top) for w in weights[s]]
        v = [x / sum(v) for x in v]
        nll.append(-math.log(sum(x * math.exp(loss) for x, loss in zip(v, row, strict=True))))
        new = [math.log(x) + eta * loss if x > 0 else -1e9 for x, loss in zip(v, row, strict=True)]
        if share:
            top = max(new)
            z = sum(math.exp(w - top) for w in new)
            new = [math.log((1 - share) * math.exp(w - top) / z + share / experts) for w in new]
        weights[s] = new
    return np.array(nll)
