"""Honest: float32 noise that depends on all that is in the span."""

import zlib

import numpy as np
from parts import Counts


class BatchNoise(Counts):
    def score(self, tokens, start, stop):
        seed = zlib.crc32(tokens[start:stop].tobytes())
        noise = np.random.default_rng(seed).standard_normal(stop - start)
        return super().score(tokens, start, stop) + 3e-6 * noise


def make():
    return BatchNoise()
