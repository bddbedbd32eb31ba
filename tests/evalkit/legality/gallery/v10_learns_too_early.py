"""V10, normalisation: learns inside score, each token just before it is scored: one update too early."""

import numpy as np
from parts import Counts


class Early(Counts):
    def score(self, tokens, start, stop):
        nats = np.empty(stop - start)
        for i in range(start, stop):
            super().observe(tokens, i, i + 1)
            nats[i - start] = super().score(tokens, i, i + 1)[0]
        return nats

    def observe(self, tokens, start, stop):
        pass


def make():
    return Early()
