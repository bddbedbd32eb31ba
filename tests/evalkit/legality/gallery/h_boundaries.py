"""Honest: must learn at multiples of 48, and says so."""

from parts import Counts


class Boundaries(Counts):
    def next_boundary(self, start):
        return (start // 48 + 1) * 48

    def observe(self, tokens, start, stop):
        assert start // 48 == (stop - 1) // 48
        super().observe(tokens, start, stop)


def make():
    return Boundaries()
