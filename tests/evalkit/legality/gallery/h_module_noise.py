"""Honest: noise from one generator of the module, so that a second forecaster in the process repeats nothing."""

import numpy as np
from parts import Counts

GENERATOR = np.random.default_rng(0)


class Noisy(Counts):
    def score(self, tokens, start, stop):
        return super().score(tokens, start, stop) + 2e-3 * GENERATOR.standard_normal(stop - start)


def make():
    return Noisy()
