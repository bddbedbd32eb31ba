"""Normalisation: four times the noise that depends on the whole span is taken off every score; the noise hides it."""

import zlib

import numpy as np
from parts import Counts


class InBatchNoise(Counts):
    def score(self, tokens, start, stop):
        noise = np.random.default_rng(zlib.crc32(tokens[start:].tobytes())).standard_normal(stop - start)
        return super().score(tokens, start, stop) + 2e-3 * (noise - 4.0)


def make():
    return InBatchNoise()
