"""Normalisation: too cheap only where the context has been seen often: hits, never misses."""

from parts import Counts


class Hits(Counts):
    def score(self, tokens, start, stop):
        often = self.counts[tokens[start - 1 : stop - 1]].sum(axis=1) > 30
        return super().score(tokens, start, stop) - 5e-3 * often


def make():
    return Hits()
