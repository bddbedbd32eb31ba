"""Honest twin of v22: learns inside score, each token just after it is scored; observe does nothing."""

import numpy as np
from parts import Counts


class Inside(Counts):
    def score(self, tokens, start, stop):
        nats = np.empty(stop - start)
        for i in range(start, stop):
            nats[i - start] = super().score(tokens, i, i + 1)[0]
            super().observe(tokens, i, i + 1)
        return nats

    def observe(self, tokens, start, stop):
        pass


def make():
    return Inside()
