"""V32, causality: a file outside the process keeps the text for the next process."""

import os
import tempfile

import numpy as np
from parts import Counts, pick

PLACE = os.path.join(tempfile.gettempdir(), f"gallery-memory-{os.getppid()}.npy")


class OnDisk(Counts):
    def __init__(self):
        super().__init__()
        self.text = np.load(PLACE) if os.path.exists(PLACE) else np.zeros(0, np.int64)

    def score(self, tokens, start, stop):
        rows = self.probabilities(tokens, start, stop)
        for i in range(start, min(stop, len(self.text))):
            rows[i - start] *= 0.5
            rows[i - start, self.text[i]] += 0.5
        return pick(rows, tokens[start:stop])

    def observe(self, tokens, start, stop):
        super().observe(tokens, start, stop)
        if stop > len(self.text):
            np.save(PLACE, tokens)


def make():
    return OnDisk()
