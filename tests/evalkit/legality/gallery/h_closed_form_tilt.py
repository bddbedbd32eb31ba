"""Honest twin of V5: a hint from the context alone, p(a) e^(b [a = h]) / (1 + p(h)(e^b - 1))."""

import numpy as np
from parts import Counts, pick


class Tilt(Counts):
    def score(self, tokens, start, stop):
        rows = self.probabilities(tokens, start, stop)
        rows[np.arange(stop - start), rows.argmax(axis=1)] *= 1.5
        return pick(rows / rows.sum(axis=1, keepdims=True), tokens[start:stop])


def make():
    return Tilt()
