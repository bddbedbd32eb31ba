"""V29, ledger: scores only a part of each span."""

from parts import Counts


class Subset(Counts):
    def score(self, tokens, start, stop):
        nats = super().score(tokens, start, stop)
        return nats[nats < 6.0]


def make():
    return Subset()
