"""V4, normalisation: the better of two experts, chosen after the token is known."""

import numpy as np
from parts import Counts, V


class Oracle(Counts):
    def score(self, tokens, start, stop):
        return np.minimum(super().score(tokens, start, stop), np.log(V))


def make():
    return Oracle()
