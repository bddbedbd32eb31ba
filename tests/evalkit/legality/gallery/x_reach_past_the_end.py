"""Reach, causality: reads the memory behind the end of its tokens."""

import numpy as np
from parts import Counts, V, pick


class PastTheEnd(Counts):
    def score(self, tokens, start, stop):
        rows = self.probabilities(tokens, start, stop)
        following = int(np.lib.stride_tricks.as_strided(tokens, shape=(stop + 1,))[stop])
        if 0 <= following < V:
            rows[-1] = 0.9 * rows[-1] + 0.1 * self.counts[:, following] / self.counts[:, following].sum()
        return pick(rows, tokens[start:stop])


def make():
    return PastTheEnd()
