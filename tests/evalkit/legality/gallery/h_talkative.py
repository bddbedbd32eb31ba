"""Honest: prints a lot, on every channel it has."""

import os

from parts import Counts


class Talkative(Counts):
    def score(self, tokens, start, stop):
        print("scoring", start, stop)
        os.write(1, b"raw bytes on standard output" * 20)
        os.write(2, b"and on standard error")
        return super().score(tokens, start, stop)


def make():
    return Talkative()
