"""V32, causality: a memory in the module that is worth 10^-3 nats, too little to stand out from noise by its size."""

from parts import Counts

MEMORY = {}


class Remembers(Counts):
    def score(self, tokens, start, stop):
        nats = super().score(tokens, start, stop)
        for i in range(start, stop):
            nats[i - start] -= 1e-3 * (MEMORY.get(i) == tokens[i])
        return nats

    def observe(self, tokens, start, stop):
        super().observe(tokens, start, stop)
        MEMORY.update((i, int(tokens[i])) for i in range(start, stop))


def make():
    return Remembers()
