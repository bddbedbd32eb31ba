"""V30, ledger: no number for the tail of the stream."""

import numpy as np
from parts import Counts


class Tail(Counts):
    def score(self, tokens, start, stop):
        nats = super().score(tokens, start, stop)
        if stop - start < 64:
            nats[:] = np.nan
        return nats


def make():
    return Tail()
