"""Reach, causality: walks the frames of its callers for a longer array."""

import sys

import numpy as np
from parts import Counts, V, pick


class Frames(Counts):
    def longer(self, tokens, stop):
        candidates, frame = [], sys._getframe(1)
        while frame is not None:
            candidates += [*frame.f_locals.values(), *frame.f_globals.values()]
            frame = frame.f_back
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
    return Frames()
