"""Slow, obvious twins of the mixers' kernels: dictionaries of counts, no tables, no roll-back."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np


class NaiveChain:
    """Interpolated Kneser-Ney over dictionaries keyed by whole contexts."""

    def __init__(self, orders, discounts, vocab_size, document_token, document_local=False):
        self.orders, self.vocab_size = orders, vocab_size
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
            if not known or not seen:
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


class NaiveTree:
    """The tree expert over dictionaries: counts per context, sums over leaves, one weight vector at a time."""

    STARTS = (0, 1, 2, 3, 4, 5, 7, 10, 15, 23, 41, 81)

    def __init__(self, orders, document_orders, discounts, document_discounts, vocab_size, document_token, rate):
        rounded = [np.maximum(np.rint(np.asarray(d) * 256), 1) / 256 for d in (discounts, document_discounts)]
        self.stores = [NaiveChain(orders, rounded[0], vocab_size, document_token)]
        if document_orders:
            self.stores.append(NaiveChain(document_orders, rounded[1], vocab_size, document_token, True))
        self.orders, self.every, self.vocab_size, self.rate = orders, orders + document_orders, vocab_size, rate
        self.bits = max(1, (vocab_size - 1).bit_length())
        self.tables, self.weights, self.finals = {}, {}, {}
        self.recent = (0, 0)

    def level(self, n):
        return max(i for i, start in enumerate(self.STARTS) if start <= n)

    def table(self, cell):
        if cell not in self.tables:
            starts = [*self.STARTS, 121]
            middle = [(starts[i] + starts[i + 1] - 1) / 2 for i in range(12)]
            n0, n1 = middle[cell[2]], middle[cell[3]]
            self.tables[cell] = [(n1 + 0.4) / (n0 + n1 + 0.8), 6.0]
        return self.tables[cell]

    def vector(self, key):
        first = [0.1] * self.every + [0.0] * self.every
        first[self.orders - 1] = 0.7
        return self.weights.setdefault(key, np.array(first))

    def node(self, node):
        """Return (probability of the right branch, inputs, cells, keys, logits) of a node, or its forced branch."""
        depth = node.bit_length() - 1
        width = 1 << (self.bits - depth - 1)
        low = (node << (self.bits - depth)) - (1 << self.bits)
        left, right = (range(b, min(b + width, self.vocab_size)) for b in (low, low + width))
        if not left or not right:
            return 0.0 if left else 1.0
        odds, learned, cells, deep = [], [], [], [0, 0]
        for s, store in enumerate(self.stores):
            rows, _ = store.rows()
            contexts = store.contexts()
            for k in range(store.orders):
                odds.append(math.log(sum(rows[k, y] for y in right) / sum(rows[k, y] for y in left)))
                events = store.counts.get(contexts[k], {}) if k < len(contexts) else {}
                n0, n1 = (sum(events.get(y, 0) for y in side) for side in (left, right))
                if n0 + n1:
                    deep[s] = k + 1
                cell = (s, k, self.level(n0), self.level(n1), depth) if k and n0 + n1 else None
                cells.append(cell)
                stretched = min(int(self.table(cell)[0] * 4096), 4095) + 0.5 if cell else 2048
                learned.append(math.log(stretched / (4096 - stretched)))
        x = np.array(odds + learned)
        by_node = ("node", node) if node < 256 else ("deep node", depth)
        keys = [("depth", deep[0], depth), ("both", *deep), by_node, ("last", self.recent[0] % 1024)]
        keys.append(("before", self.recent[1] % 1024))
        logits = [float(self.vector(key) @ x) for key in keys]
        finals = self.finals.setdefault(keys[0], np.full(5, 0.2))
        p = 1 / (1 + math.exp(-float(finals @ logits)))
        return min(max(p, 1e-7), 1 - 1e-7), x, cells, keys, logits

    def score(self, y):
        """Return ln p(y), then learn it."""
        path = [((1 << self.bits) + y) >> (self.bits - b) for b in range(self.bits)]
        asked = [(self.node(n), (y >> (self.bits - 1 - b)) & 1) for b, n in enumerate(path)]
        logp = 0.0
        for answer, branch in asked:
            if not isinstance(answer, float):
                logp += math.log(answer[0] if branch else 1 - answer[0])
        for answer, branch in asked:
            if isinstance(answer, float):
                continue
            p, x, cells, keys, logits = answer
            for key, logit in zip(keys, logits, strict=True):
                centre = (int((min(max(logit, -11.99), 11.99) + 12) * 4096 / 24) + 0.5) * 24 / 4096 - 12
                self.vector(key)[:] += self.rate * (branch - 1 / (1 + math.exp(-centre))) * x
            self.finals[keys[0]] += 0.002 * (branch - p) * np.array(logits)
            for cell in filter(None, cells):
                entry = self.table(cell)
                entry[0] += (branch - entry[0]) / (entry[1] + 1.5)
                entry[1] = min(entry[1] + 1, 255.0)
        for store in self.stores:
            store.learn(y)
        self.recent = (y, self.recent[0])
        return logp
