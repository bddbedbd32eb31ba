"""Put every token of the vocabulary at t: the probabilities that would have been reported sum to at most 1.

Two ways to ask: *single* cuts the stream at t and scores a span of one token (cheap, so many positions), *span*
keeps the span of the ledger with its later tokens (costly, so fewer positions, but exactly the ledger's own call).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from evalkit.legality.driver import walk
from evalkit.legality.evalue import symmetric_bets
from evalkit.legality.hosts import Fault, Floats, Host, Ids
from evalkit.legality.noise import FLOAT32, P_SYSTEMATIC, NoiseProfile, step
from evalkit.legality.outcome import Notes, Outcome
from evalkit.legality.subject import Repeatability, Subject

Mode = Literal["single", "span"]
RUN = 128
"""Length of the unbroken runs of positions: a leak that comes back every 128 tokens or sooner cannot hide in one."""

BRIEF = 8
"""Sums that are enough where calls are costly and the verdict stands."""

KEPT = 256
"""Positions of which every score is remembered, to see how often a token's score changes."""

SCORES: dict[Mode, int] = {"single": 1 << 18, "span": 1 << 22}
"""Scores that an audit asks for at most, so its positions: 256 and 64 of 1,024 tokens in spans of 64."""

SCORES_STATED: dict[Mode, int] = {"single": 1 << 11, "span": 1 << 17}
"""The same where rows are stated, which say more for less."""

SCORES_OURS: dict[Mode, int] = {"single": 1 << 9, "span": 1 << 15}
"""The same for our own forecasters that state rows, whose calls are whole windows."""


@dataclass(frozen=True, kw_only=True)
class SumsAsked:
    """What a substitution audit is asked for, besides the subject.

    Attributes:
        known: How far the forecaster repeats itself.
        noise: What the suffix audit knows of its noise.
        suspects: Positions that are asked for first.
        leaking: Positions whose scores move with later tokens: where these stand in the span, that is another case.
        brief: Whether the verdict stands, so that a few sums are enough where calls are costly.
    """

    known: Repeatability = field(default_factory=Repeatability)
    noise: NoiseProfile = field(default_factory=NoiseProfile)
    suspects: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    leaking: frozenset[int] = frozenset()
    brief: bool = False


def tolerance(scores: Floats, noise: NoiseProfile, drift: float = 0.0) -> float:
    """Return how far above 1 the sum of ``exp(-scores)`` may lie by arithmetic alone.

    1e-4 is float32's share (see :data:`~evalkit.legality.noise.FLOAT32`); on a coarse grid every score may be one
    step low (half a step of its own, as much for what it was computed from); content noise, noise of equal calls (all
    rows may share one state of a random generator) and what fresh forecasters differ by count eightfold.
    """
    allowed = FLOAT32
    if noise.grid not in ("float64", "float32"):
        allowed += float(np.sum(np.exp(-scores) * np.expm1(step(scores, noise.grid))))
    return allowed + 8.0 * (noise.upper + noise.call + drift)


class Sums:
    """Probability sums by position, with the tolerance of each."""

    def __init__(self, subject: Subject, mode: Mode, asked: SumsAsked) -> None:
        self.subject, self.mode, self.asked = subject, mode, asked
        self.notes = Notes(f"substitution ({mode})")
        self.position: list[int] = []  # no position twice
        self.total: list[float] = []  # sum of the probabilities there
        self.tolerance: list[float] = []  # how far above 1 that sum may lie
        self.weights = np.zeros(subject.vocab_size)  # sum over the positions of the probability of each token
        self.kept: list[Floats] = []  # the scores at the first positions, each [vocab_size]
        self.seconds = 0.0
        self.costly = subject.costly or not asked.known.in_place

    @property
    def distinct(self) -> Floats:
        """How many different scores each token has among those kept, ``[vocab_size]``."""
        ordered = np.sort(np.stack(self.kept), axis=0)
        changes: Floats = 1.0 + np.count_nonzero(np.diff(ordered, axis=0), axis=0)
        return changes

    @property
    def enough(self) -> bool:
        """Whether so many sums lie above their tolerance that more of them are not worth their time."""
        over = sum(total - 1.0 > allowed for total, allowed in zip(self.total, self.tolerance, strict=True))
        return self.costly and over >= BRIEF

    def score(self, host: Host, rows: Ids) -> Floats:
        """Return the scores of alternative continuations of the prefix."""
        return host.score(rows, isolated=not self.asked.known.in_place)

    def plan(self, count: int, rng: np.random.Generator) -> Ids:
        """Return about ``count`` positions: an unbroken run, suspects, seams, document starts, the best, random ones.

        Those that are covered already are left out.
        """
        subject, end = self.subject, len(self.subject.tokens)
        if count >= end - 1:
            return np.setdiff1d(np.arange(1, end, dtype=np.int64), np.array(self.position, np.int64))
        length = min(RUN, max(count * 2 // 3, 1))
        first = int(rng.integers(max(1, (end - length) // 3), max(2, end - length + 1)))
        chosen = set(range(first, min(first + length, end)))
        bos = np.flatnonzero(subject.tokens[:-1] == subject.options.bos) + 1
        seams = np.array([start for start, _ in subject.base.spans] + [stop - 1 for _, stop in subject.base.spans])
        best = np.argsort(subject.base.nats)[: max(8, end // 50)] + 1
        rest = max(count - len(chosen), 0)
        suspects = self.asked.suspects[: math.ceil(0.3 * rest)]
        for pool, share in ((suspects, 1.0), (seams, 0.2), (bos, 0.1), (best, 0.1)):
            picked = rng.permutation(pool)[: math.ceil(share * rest)]
            chosen.update(int(p) for p in picked if 0 < p < end)
        free = [p for p in rng.permutation(np.arange(1, end)).tolist() if p not in chosen]
        chosen.update(free[: max(count - len(chosen), 0)])
        return np.setdiff1d(np.array(sorted(chosen), np.int64), np.array(self.position, np.int64))

    def visit(self, host: Host, positions: Ids, deadline: float = math.inf) -> None:
        """Take a fresh forecaster along the stream and measure at ``positions`` (ascending) until the deadline.

        In the ledger's span the real token counts with the number that the ledger has: a forecaster that answers
        otherwise where it is asked again gains nothing by it.
        """
        began, tokens = time.monotonic(), self.subject.tokens
        wanted = set(positions.tolist())
        cuts = np.unique(np.concatenate([positions, positions + 1])) if self.mode == "single" else None
        for start, stop in walk(host, tokens, self.subject.options.span, cuts):
            for position in sorted(wanted.intersection(range(start, stop))):
                if time.monotonic() > deadline or self.enough:
                    wanted.clear()
                    break
                self.measure(host, start, stop, position)
                wanted.discard(position)
            if not wanted:
                break
        self.seconds += time.monotonic() - began

    def measure(self, host: Host, start: int, stop: int, position: int) -> None:
        """Ask for every token at ``position`` in the span from the prefix to ``stop``, and add the sum."""
        tokens, vocab_size = self.subject.tokens, self.subject.vocab_size
        rows = np.repeat(tokens[None, start:stop], vocab_size, axis=0)
        rows[:, position - start] = np.arange(vocab_size)
        scores = self.score(host, rows)[:, position - start]
        if self.mode == "span":
            scores[tokens[position]] = self.subject.base.nats[position - 1]
        with np.errstate(over="ignore"):
            p = np.where(np.isnan(scores), np.inf, np.exp(-scores))
        self.position.append(position)
        self.total.append(float(np.sum(p)))
        self.tolerance.append(tolerance(scores, self.asked.noise, self.asked.known.drift))
        self.weights += np.minimum(p, 1.0)
        if len(self.kept) < KEPT:
            self.kept.append(scores)

    def calibrate(self, host: Host) -> float:
        """Return the seconds that one position costs, estimated from a few rows in the first span."""
        tokens, vocab_size = self.subject.tokens, self.subject.vocab_size
        host.fresh(int(tokens[0]))
        stop = 2 if self.mode == "single" else self.subject.base.spans[0][1]
        cost, spent = math.inf, 0.0
        for count in (2, 16, 64):
            count = min(count, vocab_size)
            rows = np.repeat(tokens[None, 1:stop], count, axis=0)
            began = time.monotonic()
            self.score(host, rows)
            seconds = time.monotonic() - began
            cost, spent = min(cost, seconds * vocab_size / count), spent + seconds
            if spent > 0.5:  # a first call that merely stumbles must not end the estimate
                break
        return cost

    def conclude(self) -> None:
        """Note findings: single sums above their tolerance, or a mean above 1 beyond its scatter."""
        size = self.subject.options.size
        position, total, allowed = np.array(self.position), np.array(self.total), np.array(self.tolerance)
        excess = total - 1.0
        over = np.flatnonzero(excess > allowed)
        if self.mode == "span":
            over = over[[int(position[index]) not in self.asked.leaking for index in over]]
        fiction = np.log(np.maximum(total, 1.0))
        mean = float(np.mean(fiction))
        self.notes.cover(
            positions=len(position),
            first=int(position.min()),
            last=int(position.max()),
            longest_run=longest_run(position),
            largest_sum=float(total.max()),
            mean_sum=float(np.mean(total)),
            smallest_sum=float(total.min()),
            largest_tolerance=float(allowed.max()),
            positions_over=len(over),
            seconds=self.seconds,
        )
        for index in over[np.argsort(-excess[over], kind="stable")]:
            self.notes.find(
                "normalisation",
                int(position[index]),
                {
                    "sum": float(total[index]),
                    "tolerance": float(allowed[index]),
                    **size(float(fiction[index])),
                    "mean_nats": mean,
                    "mean_bpb": size(mean)["bpb"],
                    "positions_over": len(over),
                    "positions_tested": len(position),
                },
                f"The probabilities of the {self.subject.vocab_size} tokens sum to {total[index]:.6g}; "
                f"{len(over)} of {len(position)} tested positions are above 1, {mean:.4g} nats per token on average.",
            )
        if len(over) == 0 and np.all(total > 0):
            weights = self.weights / max(float(np.sum(self.weights)), 1e-300)
            bias = self.asked.noise.bias(weights, self.distinct)
            p_value = symmetric_bets(np.log(total) - bias).p_value
            self.notes.cover(mean_p_value=p_value, mean_tolerance=bias)
            if p_value < P_SYSTEMATIC:
                self.notes.find(
                    "normalisation",
                    int(position[int(np.argmax(excess))]),
                    {"mean_sum": float(np.mean(total)), "p_value": p_value, **size(mean)},
                    f"The probabilities sum to {np.mean(total):.6g} on average over {len(position)} positions, more "
                    "than noise explains.",
                )


def longest_run(position: Ids) -> int:
    """Return the length of the longest run of consecutive positions."""
    ordered = np.unique(position)
    breaks = np.flatnonzero(np.diff(ordered) != 1)
    edges = np.concatenate([[-1], breaks, [len(ordered) - 1]])
    return int(np.max(np.diff(edges)))


def plan_positions(subject: Subject, mode: Mode, *, ours: bool) -> int:
    """Return at how many positions the audit asks for every token of the vocabulary, if no budget ends it."""
    end = len(subject.tokens) - 1
    if subject.options.positions is not None:
        return min(subject.options.positions, end)
    scores = SCORES if not subject.states_rows else SCORES_OURS if ours else SCORES_STATED
    longest = max(stop - start for start, stop in subject.base.spans)
    count = scores[mode] // (subject.vocab_size * (longest if mode == "span" else 1))
    if not subject.states_rows and mode == "single":
        count = max(count, RUN)
    return min(count, end)


def audit(
    subject: Subject, host: Host, mode: Mode, asked: SumsAsked, seconds: float, rng: np.random.Generator
) -> Outcome:
    """Run the audit in one mode, at as many positions as :func:`plan_positions` says, and for ``seconds`` at most."""
    sums = Sums(subject, mode, asked)
    deadline = time.monotonic() + seconds
    planned = plan_positions(subject, mode, ours=not host.remote)
    if asked.brief:
        planned = min(planned, BRIEF)
    try:
        count = planned
        if planned and subject.options.timed:
            # the clock can only lower the count: few positions all over the stream say more than many at its start
            cost = sums.calibrate(host)
            count = int(min((0.8 * (deadline - time.monotonic()) - subject.base.seconds) / max(cost, 1e-6), planned))
        if count >= 1:
            sums.visit(host, sums.plan(count, rng), deadline)
    except Fault as fault:
        sums.notes.failed(fault, real=False)
    if not sums.position:
        sums.notes.cover(positions=0)
    if not sums.enough:
        sums.notes.cut(len(sums.position), planned)
    if sums.position:
        sums.conclude()
    return sums.notes.outcome()
