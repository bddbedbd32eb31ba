"""Honest: an order-1 count mixture that learns only in observe."""

import numpy as np

V = 64


class Counts:
    vocab_size = V

    def __init__(self):
        self.counts = np.full((V, V), 0.05)

    def score(self, tokens, start, stop):
        rows = self.counts[tokens[start - 1 : stop - 1]]
        return -np.log(rows[np.arange(stop - start), tokens[start:stop]] / rows.sum(axis=1))

    def observe(self, tokens, start, stop):
        np.add.at(self.counts, (tokens[start - 1 : stop - 1], tokens[start:stop]), 1.0)


def make():
    return Counts()
