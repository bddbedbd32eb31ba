"""V4, normalisation: the weight of an expert depends on how well it scored the target."""

import numpy as np
from parts import Counts, V


class Gate(Counts):
    def score(self, tokens, start, stop):
        p = np.exp(-super().score(tokens, start, stop))
        weight = np.where(p > 1 / V, 0.95, 0.05)
        return -np.log(weight * p + (1 - weight) / V)


def make():
    return Gate()
