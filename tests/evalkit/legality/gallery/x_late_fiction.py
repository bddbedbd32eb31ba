"""Normalisation: honest for the first 400 tokens, then 2e-3 nats too cheap on one position in 50."""

import numpy as np
from parts import Counts


class Late(Counts):
    def score(self, tokens, start, stop):
        places = np.arange(start, stop)
        return super().score(tokens, start, stop) - 2e-3 * ((places > 400) & (places % 50 == 7))


def make():
    return Late()
