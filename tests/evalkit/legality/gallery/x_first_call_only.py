"""Normalisation: cheats in the first call for a span and is honest whenever it is asked again."""

from parts import Counts


class FirstCall(Counts):
    last = 0

    def score(self, tokens, start, stop):
        nats = super().score(tokens, start, stop)
        if start != self.last:
            nats -= 0.02
        self.last = start
        return nats


def make():
    return FirstCall()
