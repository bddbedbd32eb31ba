"""E-values: evidence against a code that beats the source of its data.

For a stream drawn from q and any legal code p, exp(sum(ln p - ln q)) has mean at most 1 given any prefix, so it is a
test martingale: by Ville's inequality (1939) it ever exceeds 1/a with probability at most a.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evalkit.legality.hosts import Floats


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The largest value that a test martingale took.

    Attributes:
        log_e: Its natural logarithm, at least 0.
        at: Index at which it was reached.
        start: Index of the restart that explains most of it.
        nats: Nats by which the code beat the source from ``start`` to ``at``.
    """

    log_e: float = 0.0
    at: int = 0
    start: int = 0
    nats: float = 0.0

    @property
    def p_value(self) -> float:
        """``exp(-log_e)``, valid although the best moment was picked (Ville)."""
        return math.exp(-self.log_e)


def restarted(log_ratios: Floats) -> Evidence:
    """Weigh the evidence of ``ln p(x_i) - ln q(x_i)`` over every start and every end.

    The martingale is the mean of the n processes that start at each position (each is worth 1 until it starts), so
    a bad start cannot hide a bad end, and the choice of the start has been paid for: ln n nats at most.
    """
    n = len(log_ratios)
    if n == 0:
        return Evidence()
    log_weight = -math.log(n)
    started = -math.inf
    best, at = 0.0, 0
    for index, ratio in enumerate(log_ratios.tolist()):
        started = float(np.logaddexp(started, log_weight)) + ratio
        waiting = math.log((n - 1 - index) / n) if index < n - 1 else -math.inf
        value = float(np.logaddexp(started, waiting))
        if value > best:
            best, at = value, index
    sums = np.cumsum(log_ratios[: at + 1][::-1])[::-1] if best > 0 else np.zeros(1)
    start = int(np.argmax(sums)) if best > 0 else 0
    return Evidence(log_e=best, at=at, start=start, nats=float(sums[start]))


def symmetric_bets(values: Floats) -> Evidence:
    """Test that ``values`` are noise around means of at most 0, symmetric given the past, of any size at each.

    For such x and every bet b, ``exp(b x - b^2 x^2 / 2)`` has mean at most 1 (de la Pena 1999): the mean over x = u and
    x = -w with w >= abs(u) is at most ``cosh(b u) exp(-b^2 u^2 / 2) <= 1``. The martingale averages over bets from 1
    to 2^20. No spread has to be estimated; n values that are all alike are worth n / 2 nats less ln 21.
    """
    bets = 2.0 ** np.arange(21)[:, None]
    if len(values) == 0:
        return Evidence()
    wealth = np.cumsum(bets * values - 0.5 * (bets * values) ** 2, axis=1)
    return _averaged(wealth, float(np.mean(values)))


def bounded_bets(ratios: Floats) -> Evidence:
    """Test that the mean of non-negative ``ratios`` is at most 1, whatever came before each.

    The martingale bets a fraction of its wealth on every ratio, averaged over a grid of fractions: single draws
    ``p(v)/q(v)`` are often near 0, and a product of bare ratios would be ruined by the first.
    """
    fractions = np.array([0.01, 0.03, 0.1, 0.3, 0.6, 0.9])
    wealth = np.cumsum(np.log1p(fractions[:, None] * (ratios[None, :] - 1.0)), axis=1)
    if wealth.size == 0:
        return Evidence()
    mean = float(np.mean(ratios))
    return _averaged(wealth, math.log(mean) if mean > 0 else -math.inf)


def _averaged(wealth: Floats, nats: float) -> Evidence:
    """Return the evidence of the mean of several bets, whose log wealth after each value is ``[bets, values]``."""
    mixture = np.logaddexp.reduce(wealth, axis=0) - math.log(len(wealth))
    at = int(np.argmax(mixture))
    return Evidence(log_e=max(0.0, float(mixture[at])), at=at, nats=nats)
