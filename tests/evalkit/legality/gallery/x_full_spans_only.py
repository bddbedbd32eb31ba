"""Normalisation: cheats only in spans of the full length."""

from parts import Counts


class FullSpans(Counts):
    def score(self, tokens, start, stop):
        return super().score(tokens, start, stop) - (0.004 if stop - start > 40 else 0.0)


def make():
    return FullSpans()
