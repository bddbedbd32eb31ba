"""Where a forecaster states whole distributions: rows sum to 1, agree with the scores, and do not see the answer."""

from __future__ import annotations

import time

import numpy as np

from evalkit.legality.context import Context
from evalkit.legality.driver import advance, spans
from evalkit.legality.hosts import Fault, Host
from evalkit.legality.noise import FLOAT32, difference, step
from evalkit.legality.suffix import replacement

AUDIT = "distribution"


def audit(context: Context, host: Host, seconds: float, rng: np.random.Generator) -> int:
    """Compare ``distribution`` with ``score`` at every position that the time allows; return how many.

    In each span: rows sum to at most 1; ``-row[token]`` is the score, on the real tokens and on others; and a row
    stays what it is when its own token and all later ones are others.
    """
    deadline = time.monotonic() + seconds
    excess = gap = shift = 0.0
    count = 0
    wide = 20.0 * max(context.noise.upper, context.drift, context.call_noise)
    coarse = float(np.max(step(context.base.nats, context.noise.grid)))
    allowed = FLOAT32 + 2 * coarse + wide
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
            scores = host.score(pair)
            rows = host.distribution(pair)
            places = np.arange(stop - start)
            totals = np.exp(np.logaddexp.reduce(rows, axis=2)) - 1.0
            for which, tokens in enumerate(pair):
                stated = -rows[which, places, tokens]
                apart = np.abs(difference(scores[which], stated))
                apart = np.where(np.isfinite(apart), apart, np.inf)
                worst = int(np.argmax(apart))
                gap = max(gap, float(apart[worst]))
                if apart[worst] > allowed:
                    better = float(stated[worst] - scores[which, worst])
                    context.find(
                        AUDIT,
                        "normalisation",
                        start + worst,
                        {**context.size(better), "stated": float(stated[worst]), "tolerance": allowed},
                        f"The score is {scores[which, worst]:.6g} nats, its own distribution says {stated[worst]:.6g}.",
                    )
                worst = int(np.argmax(np.where(np.isnan(totals[which]), np.inf, totals[which])))
                excess = max(excess, float(totals[which, worst]))
                if not totals[which, worst] <= allowed:
                    context.find(
                        AUDIT,
                        "normalisation",
                        start + worst,
                        {
                            "sum": float(totals[which, worst]) + 1.0,
                            "tolerance": allowed,
                            **context.size(float(np.log1p(max(totals[which, worst], 0.0)))),
                        },
                        f"The row of the distribution sums to {totals[which, worst] + 1.0:.6g}.",
                    )
            changed = np.abs(np.exp(rows[0, : offset + 1]) - np.exp(rows[1, : offset + 1])).sum(axis=1)
            worst = int(np.argmax(changed))
            shift = max(shift, float(changed[worst]))
            if changed[worst] > allowed:
                context.find(
                    AUDIT,
                    "causality",
                    start + worst,
                    {"total_variation": float(changed[worst]) / 2, "tolerance": allowed, **context.size(0.0)},
                    "The row of this position changes with the tokens from "
                    f"{start + offset} on, which it must not see.",
                )
            count = stop - 1
            advance(host, real)
    except Fault as fault:
        context.failed(AUDIT, fault, real=False)
    context.cover(
        AUDIT,
        positions=count,
        largest_excess=excess,
        largest_gap_nats=gap,
        largest_shift=shift,
        tolerance=allowed,
    )
    return count
