"""V6, normalisation: p^(1/n) on each of the n bytes of a token, mixed byte by byte with a byte model."""

import numpy as np
from parts import PIECES, Counts


class ByteSpread(Counts):
    def score(self, tokens, start, stop):
        p = np.exp(-super().score(tokens, start, stop))
        nats = np.zeros(stop - start)
        for i, token in enumerate(tokens[start:stop]):
            n = len(PIECES[token])
            first = 0.5 * p[i] ** (1 / n) + 0.5 / 8
            later = 0.5 * p[i] ** (1 / n) + 0.5 * 0.9  # bytes repeat inside a piece
            nats[i] = -np.log(first) - (n - 1) * np.log(later)
        return nats


def make():
    return ByteSpread()
