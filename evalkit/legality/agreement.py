"""Where a forecaster states whole distributions: rows sum to 1, agree with the scores, and do not see the answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from evalkit.legality.context import Context
from evalkit.legality.driver import advance, spans
from evalkit.legality.evalue import symmetric_bets
from evalkit.legality.hosts import Fault, Floats, Host, Ids
from evalkit.legality.noise import FLOAT32, P_SYSTEMATIC, difference, step
from evalkit.legality.suffix import replacement

AUDIT = "distribution"


@dataclass(kw_only=True)
class Seen:
    """What the spans so far have shown.

    Attributes:
        allowed: Nats (and total probability) by which two ways to ask for one thing may differ.
        excess: Largest sum of a row, less 1.
        gap: Largest difference between a score and its row, nats.
        shift: Largest change of a row with tokens that it must not see, twice the total variation.
        better: By how many nats the ledger's scores are better than their rows, one for each position.
        weights: Sum of the rows of the real stream, ``[vocab_size]``.
    """

    allowed: float
    excess: float = 0.0
    gap: float = 0.0
    shift: float = 0.0
    better: list[float] = field(default_factory=list)
    weights: Floats = field(default_factory=lambda: np.zeros(1))


def audit(context: Context, host: Host, seconds: float, rng: np.random.Generator) -> int:
    """Compare ``distribution`` with the ledger at every position that the time allows; return how many.

    In each span: rows sum to at most 1; ``-row[token]`` is the score, on the real tokens (the ledger's score, not what
    is answered now) and on others; and a row stays what it is when its own token and all later ones are others.
    """
    deadline = time.monotonic() + seconds
    noise = context.noise
    coarse = float(np.max(step(context.base.nats, noise.grid)))
    seen = Seen(allowed=FLOAT32 + 2 * coarse + 20.0 * max(noise.upper, noise.call, context.drift))
    isolated = not context.recallable
    try:
        host.fresh(int(context.tokens[0]))
        for start, stop in spans(host, len(context.tokens), context.options.span):
            if time.monotonic() > deadline:
                break
            real = context.tokens[start:stop]
            offset = int(rng.integers(0, stop - start))
            other = real.copy()
            other[offset:] = replacement(real[offset:], context, rng)
            pair = np.stack([real, other])
            scores = host.score(pair, isolated=isolated)
            scores[0] = context.base.nats[start - 1 : stop - 1]
            rows = host.distribution(pair, isolated=isolated)
            for tokens, own_scores, own_rows in zip(pair, scores, rows, strict=True):
                _compare(context, seen, start, tokens, own_scores, own_rows)
            _unmoved(context, seen, start, rows[:, : offset + 1])
            seen.better.extend((-rows[0, np.arange(stop - start), real] - scores[0]).tolist())
            seen.weights = seen.weights + np.exp(np.minimum(rows[0], 0.0)).sum(axis=0)
            advance(host, real)
    except Fault as fault:
        context.failed(AUDIT, fault, real=False)
    context.cover(
        AUDIT,
        positions=len(seen.better),
        largest_excess=seen.excess,
        largest_gap_nats=seen.gap,
        largest_shift=seen.shift,
        tolerance=seen.allowed,
    )
    _on_average(context, seen)
    return len(seen.better)


def _compare(context: Context, seen: Seen, start: int, tokens: Ids, scores: Floats, rows: Floats) -> None:
    """Compare the scores of one span with its rows, and the rows' sums with 1."""
    stated = -rows[np.arange(len(tokens)), tokens]
    apart = np.abs(difference(scores, stated))
    apart = np.where(np.isfinite(apart), apart, np.inf)
    worst = int(np.argmax(apart))
    seen.gap = max(seen.gap, float(apart[worst]))
    if apart[worst] > seen.allowed:
        context.find(
            AUDIT,
            "normalisation",
            start + worst,
            {
                **context.size(float(stated[worst] - scores[worst])),
                "stated": float(stated[worst]),
                "tolerance": seen.allowed,
            },
            f"The score is {scores[worst]:.6g} nats, its own distribution says {stated[worst]:.6g}.",
        )
    excess = np.exp(np.logaddexp.reduce(rows, axis=1)) - 1.0
    excess = np.where(np.isnan(excess), np.inf, excess)
    worst = int(np.argmax(excess))
    seen.excess = max(seen.excess, float(excess[worst]))
    if excess[worst] > seen.allowed:
        context.find(
            AUDIT,
            "normalisation",
            start + worst,
            {
                "sum": float(excess[worst]) + 1.0,
                "tolerance": seen.allowed,
                **context.size(float(np.log1p(excess[worst]))),
            },
            f"The row of the distribution sums to {excess[worst] + 1.0:.6g}.",
        )


def _unmoved(context: Context, seen: Seen, start: int, rows: Floats) -> None:
    """Compare the rows of one span before two different continuations, ``[2, length, vocab_size]``."""
    changed = np.abs(np.exp(rows[0]) - np.exp(rows[1])).sum(axis=1)
    worst = int(np.argmax(changed))
    seen.shift = max(seen.shift, float(changed[worst]))
    if changed[worst] > seen.allowed:
        context.find(
            AUDIT,
            "causality",
            start + worst,
            {"total_variation": float(changed[worst]) / 2, "tolerance": seen.allowed, **context.size(0.0)},
            f"The row of this position changes with the tokens from {start + rows.shape[1] - 1} on, which it must "
            "not see.",
        )


def _on_average(context: Context, seen: Seen) -> None:
    """Find what every single comparison is too noisy for: scores that are better than their rows throughout."""
    better = np.array(seen.better)
    if seen.gap > seen.allowed or not np.isfinite(better).all():
        return
    bias = context.noise.bias(seen.weights / max(float(np.sum(seen.weights)), 1e-300))
    evidence = symmetric_bets(better - bias)
    context.cover(AUDIT, mean_p_value=evidence.p_value, mean_tolerance=bias)
    if evidence.p_value < P_SYSTEMATIC:
        mean = float(np.mean(better))
        context.find(
            AUDIT,
            "normalisation",
            int(np.argmax(better)) + 1,
            {"p_value": evidence.p_value, "tolerance": bias, **context.size(mean)},
            f"The scores are better than their own distributions by {mean:.4g} nats on average over {len(better)} "
            "positions, more than noise explains.",
        )
