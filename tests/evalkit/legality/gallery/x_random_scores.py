"""Ledger: each fresh forecaster draws its own luck, so no ledger can be reproduced."""

import numpy as np
from parts import Counts, V


class Lucky(Counts):
    def __init__(self):
        super().__init__()
        self.counts += np.random.default_rng().random((V, V)) ** 8


def make():
    return Lucky()
