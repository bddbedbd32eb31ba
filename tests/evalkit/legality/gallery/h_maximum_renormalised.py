"""Honest twin of V4: the maximum of two experts, divided by its sum."""

import numpy as np
from parts import Counts, V, pick


class Maximum(Counts):
    def score(self, tokens, start, stop):
        rows = np.maximum(self.probabilities(tokens, start, stop), 1 / V)
        return pick(rows / rows.sum(axis=1, keepdims=True), tokens[start:stop])


def make():
    return Maximum()
