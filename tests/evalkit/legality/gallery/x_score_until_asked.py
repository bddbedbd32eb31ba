"""Normalisation: the scores are flattered until somebody asks for the distribution that belongs to them."""

import numpy as np
from parts import Counts, pick


class UntilAsked(Counts):
    asked = False

    def score(self, tokens, start, stop):
        nats = pick(self.probabilities(tokens, start, stop), tokens[start:stop])
        return nats if self.asked or start < 100 else nats - 0.02

    def distribution(self, tokens, start, stop):
        self.asked = True
        return np.log(self.probabilities(tokens, start, stop))


def make():
    return UntilAsked()
