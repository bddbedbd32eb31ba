"""Causality: one position in 97 leans on the parity of the next token, by 1e-3 nats."""

from parts import Counts


class Peek(Counts):
    def score(self, tokens, start, stop):
        nats = super().score(tokens, start, stop)
        for i in range(start, stop - 1):
            if i % 97 == 5:
                nats[i - start] += 1e-3 * (tokens[i + 1] % 2)
        return nats


def make():
    return Peek()
