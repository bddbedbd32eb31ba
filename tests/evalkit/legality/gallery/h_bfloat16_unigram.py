"""Honest: one distribution for every position, its scores rounded to bfloat16, so that every sum is off by the same."""

import numpy as np
from parts import V


class Rounded:
    vocab_size = V

    def __init__(self):
        p = 1.0 / (7.0 + np.arange(V))
        nats = -np.log(p / p.sum()).astype(np.float32)
        self.nats = ((nats.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)

    def score(self, tokens, start, stop):
        return self.nats[tokens[start:stop]]

    def observe(self, tokens, start, stop):
        pass


def make():
    return Rounded()
