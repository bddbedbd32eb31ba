"""Honest: noise of 1e-4 nats that no seed repeats, as on a busy accelerator."""

import numpy as np
from parts import Counts


class Unrepeatable(Counts):
    def score(self, tokens, start, stop):
        return super().score(tokens, start, stop) + 1e-4 * np.random.default_rng().standard_normal(stop - start)


def make():
    return Unrepeatable()
