import numpy as np
from honest_counts import V, Counts
class Bad(Counts):
    def score(self, tokens, start, stop):
        nll = super().score(tokens, start, stop)
        nll[np.arange(start, stop) % 97 == 13] -= 1e-3
        return nll
def make():
    return Bad()
