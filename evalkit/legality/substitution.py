"""Put every token of the vocabulary at t: the probabilities that would have been reported sum to at most 1.

Two ways to ask: *single* cuts the stream at t and scores a span of one token (cheap, so many positions), *span*
keeps the span of the ledger with its later tokens (dear, so fewer positions, but exactly the ledger's own call).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from evalkit.legality.context import ENOUGH, Context
from evalkit.legality.driver import advance, spans
from evalkit.legality.evalue import symmetric_bets
from evalkit.legality.hosts import Fault, Floats, Host, Ids
from evalkit.legality.noise import FLOAT32, P_SYSTEMATIC, NoiseProfile, step

Mode = Literal["single", "span"]
NAMES: dict[Mode, str] = {"single": "substitution (single)", "span": "substitution (span)"}
RUN = 128
"""Length of the unbroken runs of positions: a leak that comes back every 128 tokens or sooner cannot hide in one."""

KEPT = 256
"""Positions of which every score is remembered, to see how often a token's score changes."""

ROUNDS = 3
"""Times that an audit plans anew with what time is left."""


@dataclass(kw_only=True)
class Sums:
    """Probability sums by position, with the tolerance of each.

    Attributes:
        position: Where; no position twice.
        total: Sum of the probabilities there.
        tolerance: How far above 1 that sum may lie.
        weights: Sum over the positions of the probability of each token, ``[vocab_size]``.
        kept: The scores at the first :data:`KEPT` positions, each ``[vocab_size]``.
        seconds: What all of them cost.
    """

    position: list[int] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    tolerance: list[float] = field(default_factory=list)
    weights: Floats = field(default_factory=lambda: np.zeros(1))
    kept: list[Floats] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def distinct(self) -> Floats:
        """How many different scores each token has among those kept, ``[vocab_size]``."""
        ordered = np.sort(np.stack(self.kept), axis=0)
        changes: Floats = 1.0 + np.count_nonzero(np.diff(ordered, axis=0), axis=0)
        return changes

    @property
    def over(self) -> int:
        """How many sums lie above their tolerance."""
        return sum(total - 1.0 > allowed for total, allowed in zip(self.total, self.tolerance, strict=True))


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


def plan(context: Context, count: int, rng: np.random.Generator, *, run: int = RUN) -> Ids:
    """Return about ``count`` positions: an unbroken run, suspects, seams, document starts, the best, random ones."""
    end = len(context.tokens)
    if count >= end - 1:
        return np.arange(1, end, dtype=np.int64)
    length = min(run, max(count * 2 // 3, 1))
    first = int(rng.integers(max(1, (end - length) // 3), max(2, end - length + 1)))
    chosen = set(range(first, min(first + length, end)))
    bos = np.flatnonzero(context.tokens[:-1] == context.options.bos) + 1
    seams = np.array([start for start, _ in context.base.spans] + [stop - 1 for _, stop in context.base.spans])
    best = np.argsort(context.base.nats)[: max(8, end // 50)] + 1
    rest = max(count - len(chosen), 0)
    suspects = context.suspects[: math.ceil(0.3 * rest)]
    for pool, share in ((suspects, 1.0), (seams, 0.2), (bos, 0.1), (best, 0.1)):
        picked = rng.permutation(pool)[: math.ceil(share * rest)]
        chosen.update(int(p) for p in picked if 0 < p < end)
    free = [p for p in rng.permutation(np.arange(1, end)).tolist() if p not in chosen]
    chosen.update(free[: max(count - len(chosen), 0)])
    return np.array(sorted(chosen), np.int64)


def ask(context: Context, host: Host, start: int, stop: int, position: int) -> Floats:
    """Return the score of every token at ``position`` in the span from the prefix to ``stop``, ``[vocab_size]``."""
    rows = np.repeat(context.tokens[None, start:stop], context.vocab_size, axis=0)
    rows[:, position - start] = np.arange(context.vocab_size)
    return host.score(rows, isolated=not context.recallable)[:, position - start]


def visit(context: Context, host: Host, positions: Ids, mode: Mode, deadline: float, sums: Sums) -> None:
    """Take a fresh forecaster along the stream and measure at ``positions`` (ascending) until the deadline.

    In the ledger's span the real token counts with the number that the ledger has: a forecaster that answers
    otherwise where it is asked again gains nothing by it.
    """
    host.fresh(int(context.tokens[0]))
    end = len(context.tokens)
    wanted = set(positions.tolist())
    last = int(positions[-1]) if len(positions) else 0
    cuts = None
    if mode == "single":
        cuts = np.unique(np.concatenate([positions, positions + 1]))
    for start, stop in spans(host, end, context.options.span, cuts):
        for position in range(start, stop):
            if position in wanted:
                if time.monotonic() > deadline:
                    return
                scores = ask(context, host, start, stop, position)
                if mode == "span":
                    scores[context.tokens[position]] = context.base.nats[position - 1]
                with np.errstate(over="ignore"):
                    p = np.where(np.isnan(scores), np.inf, np.exp(-scores))
                sums.position.append(position)
                sums.total.append(float(np.sum(p)))
                sums.tolerance.append(tolerance(scores, context.noise, context.drift))
                sums.weights = sums.weights + np.minimum(p, 1.0)
                if len(sums.kept) < KEPT:
                    sums.kept.append(scores)
                if context.dear and sums.over >= ENOUGH:
                    return
        if stop > last:
            break
        advance(host, context.tokens[start:stop])


def calibrate(context: Context, host: Host, mode: Mode) -> float:
    """Return the seconds that one position costs, estimated from a few rows in the first span."""
    host.fresh(int(context.tokens[0]))
    stop = 2 if mode == "single" else next(spans(host, len(context.tokens), context.options.span))[1]
    cost, spent = math.inf, 0.0
    for count in (2, 16, 64):
        count = min(count, context.vocab_size)
        rows = np.repeat(context.tokens[None, 1:stop], count, axis=0)
        began = time.monotonic()
        host.score(rows, isolated=not context.recallable)
        seconds = time.monotonic() - began
        cost, spent = min(cost, seconds * context.vocab_size / count), spent + seconds
        if spent > 0.5:  # a first call that merely stumbles must not end the estimate
            break
    return cost


def conclude(context: Context, audit: str, sums: Sums) -> None:
    """Record findings: single sums above their tolerance, or a mean above 1 beyond its scatter."""
    if not sums.position:
        return
    position, total = np.array(sums.position), np.array(sums.total)
    allowed = np.array(sums.tolerance)
    excess = total - 1.0
    over = np.flatnonzero(excess > allowed)
    if audit == NAMES["span"]:  # later tokens stand in the span: where they move the score, that is causality's case
        over = over[[int(position[index]) not in context.moved for index in over]]
    fiction = np.log(np.maximum(total, 1.0))
    mean = float(np.mean(fiction))
    context.cover(
        audit,
        positions=len(position),
        first=int(position.min()),
        last=int(position.max()),
        longest_run=longest_run(position),
        largest_sum=float(total.max()),
        mean_sum=float(np.mean(total)),
        smallest_sum=float(total.min()),
        largest_tolerance=float(allowed.max()),
        positions_over=len(over),
        seconds=sums.seconds,
    )
    for index in over[np.argsort(-excess[over], kind="stable")]:
        nats = float(fiction[index])
        context.find(
            audit,
            "normalisation",
            int(position[index]),
            {
                "sum": float(total[index]),
                "tolerance": float(allowed[index]),
                **context.size(nats),
                "mean_nats": mean,
                "mean_bpb": context.size(mean)["bpb"],
                "positions_over": len(over),
                "positions_tested": len(position),
            },
            f"The probabilities of the {context.vocab_size} tokens sum to {total[index]:.6g}; "
            f"{len(over)} of {len(position)} tested positions are above 1, {mean:.4g} nats per token on average.",
        )
    if len(over) == 0 and np.all(total > 0):
        weights = sums.weights / max(float(np.sum(sums.weights)), 1e-300)
        bias = context.noise.bias(weights, sums.distinct)
        p_value = symmetric_bets(np.log(total) - bias).p_value
        context.cover(audit, mean_p_value=p_value, mean_tolerance=bias)
        if p_value < P_SYSTEMATIC:
            context.find(
                audit,
                "normalisation",
                int(position[int(np.argmax(excess))]),
                {"mean_sum": float(np.mean(total)), "p_value": p_value, **context.size(mean)},
                f"The probabilities sum to {np.mean(total):.6g} on average over {len(position)} positions, more "
                "than noise explains.",
            )


def longest_run(position: Ids) -> int:
    """Return the length of the longest run of consecutive positions."""
    ordered = np.unique(position)
    breaks = np.flatnonzero(np.diff(ordered) != 1)
    edges = np.concatenate([[-1], breaks, [len(ordered) - 1]])
    return int(np.max(np.diff(edges)))


def audit(context: Context, host: Host, mode: Mode, seconds: float, rng: np.random.Generator) -> int:
    """Run the audit in one mode for about ``seconds``; return how many positions were covered."""
    name = NAMES[mode]
    sums = Sums()
    deadline = time.monotonic() + seconds
    most = context.options.positions or math.inf
    if context.settled:
        most = min(most, ENOUGH)
    try:
        cost = calibrate(context, host, mode)
        for _ in range(ROUNDS):
            left = deadline - time.monotonic()
            missing = min(len(context.tokens) - 1, most) - len(sums.position)
            count = int(min((0.8 * left - context.base.seconds) / max(cost, 1e-6), missing))
            enough = context.dear and sums.over >= ENOUGH
            if count < 1 or enough or (sums.position and left < 0.3 * seconds):
                break
            # an estimate made on a busy machine may be far too high: what time is left goes to further positions
            new = np.setdiff1d(plan(context, count + len(sums.position), rng), np.array(sums.position, np.int64))
            began = time.monotonic()
            visit(context, host, new, mode, deadline, sums)
            sums.seconds += time.monotonic() - began
            cost = sums.seconds / max(len(sums.position), 1)
        if not sums.position:
            context.cover(name, positions=0, seconds_per_position=cost)
            return 0
    except Fault as fault:
        context.failed(name, fault, real=False)
    conclude(context, name, sums)
    return len(sums.position)
