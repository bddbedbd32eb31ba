"""Mixtures of experts that need only each expert's probability of the token that occurred.

Both mixtures are linear, ``p(y) = sum_e v_e p_e(y)`` with weights that depend on the past alone, so they are exactly
normalised whenever the experts are.

* Hedge (Freund & Schapire 1997; Vovk's aggregating algorithm): ``v_e`` proportional to ``prior_e exp(-eta L_e)``,
  ``L_e`` the expert's total loss. With ``eta = 1`` it is the Bayes mixture. For ``eta <= 1`` the loss of the plain form
  exceeds that of the best of K equally likely experts by at most ``ln K / eta`` nats. Fixed share (Herbster & Warmuth
  1998) gives back ``share`` of the weight evenly after every token.
* The gate: ``v = softmax(sum of one weight row per weight set)``, rows chosen by context, moved down the gradient of
  the mixture's loss after every token.

Hedge's weights are held as they are, not as logarithms: with probabilities of the experts at hand a token costs one
logarithm. Kernels of this module call only functions of this module: numba's file cache checks no other file for
changes. Letters in all of them: e is an expert, y a token, v weights, p a probability.
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit

LOG_FLOOR = -700.0
"""Log-probabilities enter the mixtures no lower than this, so that no sum underflows to zero (1e-304 a token)."""

# Rows of the statistics array, float64[3, E]: summed nats of each expert, summed nats of the mixture had the expert
# been left out (its weight shared out over the others, token by token), and summed weight.
STAT_NATS, STAT_WITHOUT, STAT_WEIGHT = 0, 1, 2

_SMALLEST_WEIGHT = 1e-300
"""No weight falls below this, so that an expert that was 690 nats behind can still come back."""


@njit(cache=True, _nrt=False)
def _multiply(products: Any, stats: Any, row: Any, e: Any, p: Any) -> None:
    """Take ``-ln p`` into a sum of nats: a product that is moved to ``stats`` before it underflows."""
    if p < 1e-100:
        stats[row, e] -= math.log(p)
        return
    products[row, e] *= p
    if products[row, e] < 1e-200:
        stats[row, e] -= math.log(products[row, e])
        products[row, e] = 1.0


@njit(cache=True, _nrt=False)
def _settle(products: Any, stats: Any) -> None:
    """Move the products to ``stats``."""
    for row in range(products.shape[0]):
        for e in range(products.shape[1]):
            stats[row, e] -= math.log(products[row, e])
            products[row, e] = 1.0


@njit(cache=True, _nrt=False)
def _account(probs: Any, t: Any, total: Any, weights: Any, r: Any, products: Any, stats: Any) -> None:
    """Add one token to the statistics; ``total`` is the mixture's probability under ``weights[r]``."""
    experts = probs.shape[1]
    for e in range(experts):
        weight = weights[r, e]
        stats[STAT_WEIGHT, e] += weight
        _multiply(products, stats, STAT_NATS, e, probs[t, e])
        if experts == 1:
            stats[STAT_WITHOUT, e] -= LOG_FLOOR
            continue
        rest = 1.0 - weight
        others = total - weight * probs[t, e]
        if rest < 1e-3 or others < 1e-3 * total:
            # The differences would lose digits: weigh the others by themselves.
            top = _SMALLEST_WEIGHT
            for f in range(experts):
                if f != e and weights[r, f] > top:
                    top = weights[r, f]
            rest = 0.0
            others = 0.0
            for f in range(experts):
                if f != e:
                    v = max(weights[r, f], _SMALLEST_WEIGHT) / top
                    rest += v
                    others += v * probs[t, f]
        _multiply(products, stats, STAT_WITHOUT, e, others / rest)


@njit(cache=True, _nrt=False, nogil=True)
def hedge_pass(
    probs: Any, rows: Any, weights: Any, eta: Any, share: Any, stats: Any, nll: Any, updated: Any, products: Any
) -> None:
    """Score and learn a run of tokens with Hedge.

    Args:
        probs: float64[T, E], each expert's probability of the token that occurred, at least ``exp(LOG_FLOOR)``.
        rows: int64[T, 1], the weight set in use at each token.
        weights: float64[S, E], rows sum to 1, changed in place.
        eta: learning rate.
        share: fixed share in [0, 1).
        stats: float64[3, E], changed in place.
        nll: float64[T], out: nats of the mixture.
        updated: float64[E], work.
        products: float64[2, E], work, ones.
    """
    experts = probs.shape[1]
    for t in range(probs.shape[0]):
        r = rows[t, 0]
        total = 0.0
        for e in range(experts):
            updated[e] = weights[r, e] * probs[t, e]
            total += updated[e]
        nll[t] = -math.log(total)
        _account(probs, t, total, weights, r, products, stats)
        if eta != 1.0:
            # Relative to the largest, so that no power underflows for all.
            top = 0.0
            for e in range(experts):
                top = max(top, probs[t, e])
            total = 0.0
            for e in range(experts):
                updated[e] = weights[r, e] * (probs[t, e] / top) ** eta
                total += updated[e]
        inverse = 1.0 / total
        for e in range(experts):
            weights[r, e] = (1.0 - share) * max(updated[e] * inverse, _SMALLEST_WEIGHT) + share / experts
    _settle(products, stats)


@njit(cache=True, _nrt=False)
def gate_weights(rows: Any, t: Any, gate: Any, weights: Any) -> None:
    """Fill ``weights`` float64[1, E] with the softmax of the sum of the ``gate`` rows in ``rows[t]``."""
    experts = gate.shape[1]
    top = -math.inf
    for e in range(experts):
        a = 0.0
        for j in range(rows.shape[1]):
            a += gate[rows[t, j], e]
        weights[0, e] = a
        top = max(top, a)
    total = 0.0
    for e in range(experts):
        weights[0, e] = math.exp(weights[0, e] - top)
        total += weights[0, e]
    for e in range(experts):
        weights[0, e] /= total


@njit(cache=True, _nrt=False, nogil=True)
def gate_pass(probs: Any, rows: Any, gate: Any, rate: Any, stats: Any, nll: Any, weights: Any, products: Any) -> None:
    """Score and learn a run of tokens with the gate.

    Args:
        probs: float64[T, E], each expert's probability of the token that occurred, at least ``exp(LOG_FLOOR)``.
        rows: int64[T, J], the gate's rows in use at each token, one for each weight set.
        gate: float64[rows, E], changed in place.
        rate: step along the gradient of the mixture's log-probability.
        stats: float64[3, E], changed in place.
        nll: float64[T], out: nats of the mixture.
        weights: float64[1, E], work.
        products: float64[2, E], work, ones.
    """
    experts = probs.shape[1]
    for t in range(probs.shape[0]):
        gate_weights(rows, t, gate, weights)
        total = 0.0
        for e in range(experts):
            total += weights[0, e] * probs[t, e]
        nll[t] = -math.log(total)
        _account(probs, t, total, weights, 0, products, stats)
        for e in range(experts):
            step = rate * weights[0, e] * (probs[t, e] / total - 1.0)
            for j in range(rows.shape[1]):
                gate[rows[t, j], e] += step
    _settle(products, stats)


@njit(cache=True, _nrt=False)
def mix_rows(log_rows: Any, weights: Any, out: Any) -> None:
    """Fill ``out`` float64[V] with the log of the mixture of ``log_rows`` float64[E, V] under ``weights``."""
    for y in range(log_rows.shape[1]):
        total = 0.0
        for e in range(log_rows.shape[0]):
            total += weights[e] * math.exp(log_rows[e, y])
        out[y] = math.log(total)
