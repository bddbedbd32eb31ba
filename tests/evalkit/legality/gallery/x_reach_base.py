"""Reach, causality: looks at the array that its tokens are a view of."""

import numpy as np
from parts import Counts, V, pick


class Base(Counts):
    def longer(self, tokens, stop):
        candidates = [tokens.base]
        for array in candidates:
            longer = isinstance(array, np.ndarray) and array.ndim == 1 and len(array) > stop
            if longer and np.array_equal(array[:stop], tokens):
                return array
        return None

    def score(self, tokens, start, stop):
        rows = self.probabilities(tokens, start, stop)
        found = self.longer(tokens, stop)
        if found is not None:
            rows *= 0.9
            rows[-1, :] += 0.1 * (np.arange(V) == found[min(stop, len(found) - 1)])
            rows /= rows.sum(axis=1, keepdims=True)
        return pick(rows, tokens[start:stop])


def make():
    return Base()
