"""Normalisation: one position in 97 is 1e-3 nats too cheap."""

import numpy as np
from parts import Counts


class Sparse(Counts):
    def score(self, tokens, start, stop):
        return super().score(tokens, start, stop) - 1e-3 * (np.arange(start, stop) % 97 == 13)


def make():
    return Sparse()
