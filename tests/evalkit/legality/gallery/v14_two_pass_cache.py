"""V14, causality: a cache over all tokens of the span, each position left out of its own count."""

import numpy as np
from parts import Counts, V, pick


class TwoPass(Counts):
    def score(self, tokens, start, stop):
        rows = self.probabilities(tokens, start, stop)
        counts = np.bincount(tokens[start:stop], minlength=V) + 0.1
        others = counts[None, :] - np.eye(V)[tokens[start:stop]]
        return pick(0.8 * rows + 0.2 * others / others.sum(axis=1, keepdims=True), tokens[start:stop])


def make():
    return TwoPass()
