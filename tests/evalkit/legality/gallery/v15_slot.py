"""V15, causality: a bias of the logits is optimised on the targets that are then scored."""

import numpy as np
from parts import Counts, V, pick, softmax


class Slot(Counts):
    def score(self, tokens, start, stop):
        logits = np.log(self.probabilities(tokens, start, stop))
        bias = np.zeros(V)
        for _ in range(4):
            residual = softmax(logits + bias)
            residual[np.arange(stop - start), tokens[start:stop]] -= 1.0
            bias -= residual.mean(axis=0)
        return pick(softmax(logits + bias), tokens[start:stop])


def make():
    return Slot()
