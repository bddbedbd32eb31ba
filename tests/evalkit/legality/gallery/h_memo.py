"""Honest twin of the memories: remembers its own answers, inside one forecaster."""

from parts import Counts


class Memo(Counts):
    def __init__(self):
        super().__init__()
        self.answers = {}

    def score(self, tokens, start, stop):
        key = (start, tokens.tobytes())
        if key not in self.answers:
            self.answers[key] = super().score(tokens, start, stop)
        return self.answers[key].copy()


def make():
    return Memo()
