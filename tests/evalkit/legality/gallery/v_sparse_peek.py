import numpy as np
from honest_counts import V, Counts
class Bad(Counts):
    def score(self, tokens, start, stop):
        nll = super().score(tokens, start, stop)
        for i in range(start, stop-1):
            if i % 97 == 5: nll[i-start] += 1e-3*(tokens[i+1]%2-0.5)
        return nll
def make():
    return Bad()
