"""Honest: scores rounded to bfloat16 on top of float32 batch noise."""

import zlib

import numpy as np
from parts import Counts


class Rounded(Counts):
    def score(self, tokens, start, stop):
        seed = zlib.crc32(tokens[start:stop].tobytes())
        noise = np.random.default_rng(seed).standard_normal(stop - start)
        single = (super().score(tokens, start, stop) + 1e-5 * noise).astype(np.float32)
        bits = (single.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(np.float64)


def make():
    return Rounded()
