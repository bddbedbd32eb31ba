"""Where a forecaster states whole distributions: rows sum to 1, agree with the scores, and do not see the answer."""

from __future__ import annotations

import time

import numpy as np

from evalkit.legality.driver import advance, spans
from evalkit.legality.evalue import symmetric_bets
from evalkit.legality.hosts import Fault, Floats, Host, Ids
from evalkit.legality.noise import FLOAT32, P_SYSTEMATIC, NoiseProfile, difference, step
from evalkit.legality.outcome import Notes
from evalkit.legality.subject import Repeatability, Subject
from evalkit.legality.substitution import SumsTaken
from evalkit.legality.suffix import replacement

AUDIT = "distribution"

LARGEST_ROWS = 1 << 23
"""Numbers in the rows of one call, 64 MB: of a longer span only its first positions are compared."""


class Rows:
    """Compares scores with the rows that are stated for them, and keeps the largest differences.

    Args:
        subject: What is audited.
        allowed: Nats (and total probability) by which two ways to ask for one thing may differ.
    """

    def __init__(self, subject: Subject, allowed: float) -> None:
        self.notes = Notes(AUDIT)
        self.allowed = allowed
        self.excess = 0.0  # largest sum of a row, less 1
        self.gap = 0.0  # largest difference between a score and its row, nats
        self.shift = 0.0  # largest change of a row with tokens that it must not see, twice the total variation
        self.better: list[float] = []  # nats by which the ledger's scores are better than their rows, by position
        self.weights = np.zeros(subject.vocab_size)  # sum of the rows of the real stream
        self._size = subject.options.size

    def compare(self, start: int, tokens: Ids, scores: Floats, rows: Floats) -> None:
        """Compare the scores of one span with its rows, and the rows' sums with 1."""
        stated = -rows[np.arange(len(tokens)), tokens]
        apart = np.abs(difference(scores, stated))
        apart = np.where(np.isfinite(apart), apart, np.inf)
        worst = int(np.argmax(apart))
        self.gap = max(self.gap, float(apart[worst]))
        if apart[worst] > self.allowed:
            size = self._size(float(stated[worst] - scores[worst]))
            self.notes.find(
                "normalisation",
                start + worst,
                {**size, "stated": float(stated[worst]), "tolerance": self.allowed},
                f"The score is {scores[worst]:.6g} nats, its own distribution says {stated[worst]:.6g}.",
            )
        excess = np.exp(np.logaddexp.reduce(rows, axis=1)) - 1.0
        excess = np.where(np.isnan(excess), np.inf, excess)
        worst = int(np.argmax(excess))
        self.excess = max(self.excess, float(excess[worst]))
        if excess[worst] > self.allowed:
            total = float(excess[worst]) + 1.0
            self.notes.find(
                "normalisation",
                start + worst,
                {"sum": total, "tolerance": self.allowed, **self._size(float(np.log1p(excess[worst])))},
                f"The row of the distribution sums to {total:.6g}.",
            )

    def compare_continuations(self, start: int, rows: Floats) -> None:
        """Compare the rows of one span before two different continuations, ``[2, length, vocab_size]``."""
        changed = np.abs(np.exp(rows[0]) - np.exp(rows[1])).sum(axis=1)
        worst = int(np.argmax(changed))
        self.shift = max(self.shift, float(changed[worst]))
        if changed[worst] > self.allowed:
            self.notes.find(
                "causality",
                start + worst,
                {"total_variation": float(changed[worst]) / 2, "tolerance": self.allowed, **self._size(0.0)},
                f"The row of this position changes with the tokens from {start + rows.shape[1] - 1} on, which it must "
                "not see.",
            )

    def conclude(self, noise: NoiseProfile) -> SumsTaken:
        """Find what every single comparison is too noisy for: scores that are better than their rows throughout."""
        better = np.array(self.better)
        self.notes.cover(
            positions=len(better),
            largest_excess=self.excess,
            largest_gap_nats=self.gap,
            largest_shift=self.shift,
            tolerance=self.allowed,
        )
        if self.gap <= self.allowed and np.isfinite(better).all():
            bias = noise.bias(self.weights / max(float(np.sum(self.weights)), 1e-300))
            evidence = symmetric_bets(better - bias)
            self.notes.cover(mean_p_value=evidence.p_value, mean_tolerance=bias)
            if evidence.p_value < P_SYSTEMATIC:
                mean = float(np.mean(better))
                self.notes.find(
                    "normalisation",
                    int(np.argmax(better)) + 1,
                    {"p_value": evidence.p_value, "tolerance": bias, **self._size(mean)},
                    f"The scores are better than their own distributions by {mean:.4g} nats on average over "
                    f"{len(better)} positions, more than noise explains.",
                )
        return SumsTaken(outcome=self.notes.outcome(), positions=len(better))


def audit(
    subject: Subject,
    host: Host,
    known: Repeatability,
    noise: NoiseProfile,
    seconds: float,
    rng: np.random.Generator,
) -> SumsTaken:
    """Compare ``distribution`` with the ledger at every position that the time allows.

    In each span: rows sum to at most 1; ``-row[token]`` is the score, on the real tokens (the ledger's score, not what
    is answered now) and on others; and a row stays what it is when its own token and all later ones are others.
    """
    deadline = time.monotonic() + seconds
    coarse = float(np.max(step(subject.base.nats, noise.grid)))
    seen = Rows(subject, FLOAT32 + 2 * coarse + 20.0 * max(noise.upper, noise.call, known.drift))
    isolated = not known.in_place
    most = max(LARGEST_ROWS // subject.vocab_size, 1)
    try:
        host.fresh(int(subject.tokens[0]))
        for start, stop in spans(host, len(subject.tokens), subject.options.span):
            if time.monotonic() > deadline:
                break
            real = subject.tokens[start : min(stop, start + most)]
            offset = int(rng.integers(0, len(real)))
            other = real.copy()
            other[offset:] = replacement(subject, real[offset:], rng)
            pair = np.stack([real, other])
            scores = host.score(pair, isolated=isolated)
            scores[0] = subject.base.nats[start - 1 : start - 1 + len(real)]
            rows = host.distribution(pair, isolated=isolated)
            for tokens, own_scores, own_rows in zip(pair, scores, rows, strict=True):
                seen.compare(start, tokens, own_scores, own_rows)
            seen.compare_continuations(start, rows[:, : offset + 1])
            seen.better.extend((-rows[0, np.arange(len(real)), real] - scores[0]).tolist())
            seen.weights += np.exp(np.minimum(rows[0], 0.0)).sum(axis=0)
            advance(host, subject.tokens[start:stop])
    except Fault as fault:
        seen.notes.failed(fault, real=False)
    return seen.conclude(noise)
