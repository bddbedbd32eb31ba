"""V2, normalisation: all V counts are gathered, and divided by the count of the context instead of their sum."""

import numpy as np
from parts import Counts


class WrongDenominator(Counts):
    def score(self, tokens, start, stop):
        rows = self.counts[tokens[start - 1 : stop - 1]]
        seen = (rows - 0.05).sum(axis=1) + 0.5  # the smoothing of all V entries is left out
        targets = tokens[start:stop]
        return -np.log(np.minimum(rows[np.arange(len(targets)), targets] / seen, 1.0))


def make():
    return WrongDenominator()
