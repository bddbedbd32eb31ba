"""Honest twin of V13: the temperature follows the scores of earlier tokens, token by token."""

import numpy as np
from parts import Counts, softmax


class Temperature(Counts):
    def __init__(self):
        super().__init__()
        self.rate = 0.0

    def run(self, tokens, start, stop):
        logits = np.log(self.probabilities(tokens, start, stop))
        rate, nats = self.rate, np.empty(stop - start)
        for i in range(stop - start):
            scale = np.exp(rate)
            row = softmax(scale * logits[i])
            target = tokens[start + i]
            nats[i] = -np.log(row[target])
            rate = np.clip(rate + 0.02 * scale * (logits[i, target] - row @ logits[i]), -1, 1)
        return nats, rate

    def score(self, tokens, start, stop):
        return self.run(tokens, start, stop)[0]

    def observe(self, tokens, start, stop):
        self.rate = self.run(tokens, start, stop)[1]
        super().observe(tokens, start, stop)


def make():
    return Temperature()
