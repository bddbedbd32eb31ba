"""Causality: a leak of 1e-3 nats from the next token under float32 noise that depends on the whole span."""

import zlib

import numpy as np
from parts import Counts


class NoisyPeek(Counts):
    def score(self, tokens, start, stop):
        nats = super().score(tokens, start, stop)
        noise = np.random.default_rng(zlib.crc32(tokens[start:].tobytes())).standard_normal(stop - start)
        nats[:-1] += 1e-3 * (tokens[start + 1 :] % 2)
        return nats + 2e-6 * noise


def make():
    return NoisyPeek()
