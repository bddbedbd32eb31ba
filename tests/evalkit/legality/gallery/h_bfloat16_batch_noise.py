"""Honest: bfloat16-sized noise that depends on all that is in the span."""

import zlib

import numpy as np
from parts import Counts


class CoarseNoise(Counts):
    def score(self, tokens, start, stop):
        seed = zlib.crc32(tokens[start:stop].tobytes())
        noise = np.random.default_rng(seed).standard_normal(stop - start)
        return super().score(tokens, start, stop) + 4e-3 * noise


def make():
    return CoarseNoise()
