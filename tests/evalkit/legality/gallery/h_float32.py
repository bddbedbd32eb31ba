"""Honest: computed in float32 throughout."""

import numpy as np
from parts import Softmax, V


class Single(Softmax):
    def __init__(self):
        self.weights = np.zeros((V, V), np.float32)

    def score(self, tokens, start, stop):
        logits = (8 * self.weights[tokens[start - 1 : stop - 1]]).astype(np.float32)
        logits -= logits.max(axis=1, keepdims=True)
        totals = np.log(np.exp(logits).sum(axis=1, dtype=np.float32))
        return (totals - logits[np.arange(stop - start), tokens[start:stop]]).astype(np.float64)


def make():
    return Single()
