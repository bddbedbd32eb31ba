"""Honest twin of v10_learns_too_early: learns inside score, each token after it is scored; observe is idle."""

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
