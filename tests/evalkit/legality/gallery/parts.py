"""What the gallery's forecasters share: a small vocabulary, and counts that learn only in ``observe``."""

import numpy as np

V = 16
PIECES = [bytes([97 + k % 8]) * (1 + k % 3) for k in range(V)]  # the bytes of each token, not all different


class Counts:
    """Honest order-1 counts; most of the gallery is this class with one thing changed."""

    vocab_size = V

    def __init__(self):
        self.counts = np.full((V, V), 0.05)

    def probabilities(self, tokens, start, stop):
        rows = self.counts[tokens[start - 1 : stop - 1]]
        return rows / rows.sum(axis=1, keepdims=True)

    def score(self, tokens, start, stop):
        return pick(self.probabilities(tokens, start, stop), tokens[start:stop])

    def observe(self, tokens, start, stop):
        np.add.at(self.counts, (tokens[start - 1 : stop - 1], tokens[start:stop]), 1.0)


def pick(rows, targets):
    return -np.log(rows[np.arange(len(targets)), targets])


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def unigram(tokens, weight=0.3):
    """Smoothed frequencies of ``tokens``."""
    counts = np.bincount(tokens, minlength=V) + weight
    return counts / counts.sum()


class Softmax:
    """A bigram softmax model trained by gradient steps."""

    vocab_size = V

    def __init__(self):
        self.weights = np.zeros((V, V))

    def rows(self, weights, tokens, start, stop):
        return softmax(weights[tokens[start - 1 : stop - 1]])

    def trained(self, weights, tokens, start, stop, epochs=1, rate=0.5):
        weights = weights.copy()
        previous, targets = tokens[start - 1 : stop - 1], tokens[start:stop]
        for _ in range(epochs):
            gradient = self.rows(weights, tokens, start, stop)
            gradient[np.arange(len(targets)), targets] -= 1.0
            np.add.at(weights, previous, -rate * gradient)
        return weights

    def score(self, tokens, start, stop):
        return pick(self.rows(self.weights, tokens, start, stop), tokens[start:stop])

    def observe(self, tokens, start, stop):
        self.weights = self.trained(self.weights, tokens, start, stop)
