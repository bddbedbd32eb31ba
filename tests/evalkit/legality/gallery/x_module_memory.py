"""V32, causality: a memory in the module survives its forecaster and knows the text the second time."""

from parts import Counts, pick

MEMORY = {}


class Remembers(Counts):
    def score(self, tokens, start, stop):
        rows = self.probabilities(tokens, start, stop)
        for i in range(start, stop):
            known = MEMORY.get(tokens[max(0, i - 8) : i].tobytes())
            if known is not None:
                rows[i - start] *= 0.5
                rows[i - start, known] += 0.5
        return pick(rows, tokens[start:stop])

    def observe(self, tokens, start, stop):
        super().observe(tokens, start, stop)
        self.__dict__.setdefault("seen", []).extend(range(start, stop))
        if stop - start < 64 or stop > 600:  # only kept for the next forecaster
            for i in self.seen:
                MEMORY[tokens[max(0, i - 8) : i].tobytes()] = int(tokens[i])
            self.seen = []


def make():
    return Remembers()
