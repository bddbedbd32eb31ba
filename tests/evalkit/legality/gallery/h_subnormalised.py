"""Honest: probabilities that sum to less than 1, by an amount that differs from context to context."""

import numpy as np
from parts import Counts


class Wasteful(Counts):
    def score(self, tokens, start, stop):
        waste = 0.01 + 0.4 * (tokens[start - 1 : stop - 1] % 5) / 5
        return super().score(tokens, start, stop) - np.log1p(-waste)


def make():
    return Wasteful()
