"""Honest twin of V16: the cache of each chunk of 16 ends where the chunk ends."""

import numpy as np
from parts import Counts


class Chunked(Counts):
    def score(self, tokens, start, stop):
        learner, nats = Counts(), []
        learner.counts = self.counts.copy()
        for first in range(start, stop, 16):
            last = min(first + 16, stop)
            nats.append(learner.score(tokens, first, last))
            learner.observe(tokens, first, last)
        return np.concatenate(nats)


def make():
    return Chunked()
