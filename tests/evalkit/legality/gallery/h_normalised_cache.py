"""Honest twin of V1 to V3: hashed contexts, but whole rows, divided by their own sum."""

import numpy as np
from parts import Counts, V, pick


class Cache(Counts):
    def __init__(self):
        super().__init__()
        self.hashed = np.full((8, V), 0.05)

    def score(self, tokens, start, stop):
        rows = self.hashed[tokens[start - 1 : stop - 1] * 7 % 8]
        rows = 0.6 * self.probabilities(tokens, start, stop) + 0.4 * rows / rows.sum(axis=1, keepdims=True)
        return pick(rows, tokens[start:stop])

    def observe(self, tokens, start, stop):
        super().observe(tokens, start, stop)
        np.add.at(self.hashed, (tokens[start - 1 : stop - 1] * 7 % 8, tokens[start:stop]), 1.0)


def make():
    return Cache()
