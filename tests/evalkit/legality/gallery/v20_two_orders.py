"""V20, causality: hints run forwards, weights adapt backwards; no order of decoding serves both."""

import numpy as np
from parts import Counts, V


class TwoOrders(Counts):
    def score(self, tokens, start, stop):
        hints, weights = np.full(V, 0.1), np.full(V, 0.1)
        backward = np.empty((stop - start, V))
        for i in range(stop - 1, start - 1, -1):
            backward[i - start] = weights / weights.sum()
            weights[tokens[i]] += 1.0
        nats = np.empty(stop - start)
        rows = self.probabilities(tokens, start, stop)
        for i in range(start, stop):
            p = 0.8 * rows[i - start] + 0.1 * hints / hints.sum() + 0.1 * backward[i - start]
            nats[i - start] = -np.log(p[tokens[i]])
            hints[tokens[i]] += 1.0
        return nats


def make():
    return TwoOrders()
