"""V13, causality: the temperature is fitted on the scores of the span, then the span is scored again."""

import numpy as np
from parts import Counts, pick, softmax


class Fitted(Counts):
    def score(self, tokens, start, stop):
        logits = np.log(self.probabilities(tokens, start, stop))
        tries = [pick(softmax(logits / t), tokens[start:stop]) for t in (0.7, 0.8, 0.9, 1.0, 1.1, 1.3)]
        return min(tries, key=np.sum)


def make():
    return Fitted()
