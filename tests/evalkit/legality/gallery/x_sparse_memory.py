"""V32, causality: a class attribute remembers one token in 97, worth 1e-3 nats in the next forecaster."""

from typing import ClassVar

from parts import Counts


class SparseMemory(Counts):
    kept: ClassVar[dict] = {}

    def score(self, tokens, start, stop):
        nats = super().score(tokens, start, stop)
        for i in range(start, stop):
            if i % 97 == 40 and (i, int(tokens[i])) in SparseMemory.kept:
                nats[i - start] -= 1e-3
        return nats

    def observe(self, tokens, start, stop):
        super().observe(tokens, start, stop)
        SparseMemory.kept.update({(i, int(tokens[i])): True for i in range(start, stop)})


def make():
    return SparseMemory()
