"""V5, normalisation: a hint is applied only where the target begins a word."""

import numpy as np
from parts import Counts


class Hint(Counts):
    def score(self, tokens, start, stop):
        rows = self.probabilities(tokens, start, stop)
        targets = tokens[start:stop]
        p = rows[np.arange(len(targets)), targets]
        hint = rows.argmax(axis=1)
        top = rows.max(axis=1)
        tilted = np.where(targets == hint, 2 * p, p) / (1 + top)
        return -np.log(np.where(targets % 4 == 0, tilted, p))  # p' normalised, but only used for some targets


def make():
    return Hint()
