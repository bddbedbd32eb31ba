"""V4, causality: every row sums to 1, but has been sharpened at the token it is to predict."""

import numpy as np
from parts import Counts, pick


class Sharpened(Counts):
    def distribution(self, tokens, start, stop):
        rows = self.probabilities(tokens, start, stop)
        rows[np.arange(stop - start), tokens[start:stop]] += 0.05
        return np.log(rows / rows.sum(axis=1, keepdims=True))

    def score(self, tokens, start, stop):
        return pick(np.exp(self.distribution(tokens, start, stop)), tokens[start:stop])


def make():
    return Sharpened()
