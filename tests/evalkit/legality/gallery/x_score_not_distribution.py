"""Normalisation: states a fair distribution, and scores 0.01 nats better than it says, on one token in five."""

import numpy as np
from parts import Counts


class TwoFaced(Counts):
    def score(self, tokens, start, stop):
        return super().score(tokens, start, stop) - 0.01 * (tokens[start:stop] % 5 == 0)

    def distribution(self, tokens, start, stop):
        return np.log(self.probabilities(tokens, start, stop))


def make():
    return TwoFaced()
