"""Honest: probabilities and their sum in float16, so that rows sum to 1 within its rounding only."""

import numpy as np
from parts import Counts, pick


class Float16(Counts):
    def score(self, tokens, start, stop):
        rows = self.counts[tokens[start - 1 : stop - 1]].astype(np.float16)
        rows = rows / rows.sum(axis=1, keepdims=True, dtype=np.float16)
        return pick(rows.astype(np.float64), tokens[start:stop])


def make():
    return Float16()
