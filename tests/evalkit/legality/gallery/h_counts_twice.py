"""Honest twin of V21: every token is counted several times over; wasteful, and still a code."""

from parts import Counts


class Twice(Counts):
    def observe(self, tokens, start, stop):
        for _ in range(4):
            super().observe(tokens, max(1, start - 64), stop)


def make():
    return Twice()
