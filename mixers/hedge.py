"""Mixtures of experts that need only each expert's probability of the token that occurred.

Both mixtures are linear, ``p(y) = sum_e v_e p_e(y)`` with weights that depend on the past alone, so they are exactly
normalised whenever the experts are.

* Hedge (Freund & Schapire 1997; Vovk's aggregating algorithm): ``v_e`` proportional to ``prior_e exp(-eta L_e)``,
  ``L_e`` the expert's total loss. With ``eta = 1`` it is the Bayes mixture. For ``eta <= 1`` the loss of the plain form
  exceeds that of the best of K equally likely experts by at most ``ln K / eta`` nats. Fixed share (Herbster & Warmuth
  1998) gives back ``share`` of the weight evenly after every token.
* The gate: ``v = softmax(sum of one weight row per weight set)``, rows chosen by context, moved down the gradient of
  the mixture's loss after every token.

Kernels of this module call only functions of this module: numba's file cache checks no other file for changes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]

LOG_FLOOR = -700.0
"""Log-probabilities enter the mixtures no lower than this, so that no sum underflows to zero (1e-304 a token)."""

# Rows of the statistics array, float64[3, E]: summed nats of each expert, summed nats of the mixture had the expert
# been left out (its weight shared out over the others, token by token), and summed weight.
STAT_NATS, STAT_WITHOUT, STAT_WEIGHT = 0, 1, 2


@njit(cache=True, _nrt=False)
def _account(logp: Any, t: Any, logits: Any, r: Any, weights: Any, probs: Any, stats: Any) -> Any:
    """Add one token to the statistics; return the mixture's log-probability (``weights``: softmax of ``logits[r]``)."""
    experts = weights.shape[0]
    for e in range(experts):
        # Orders without counts repeat the order below.
        probs[e] = probs[e - 1] if e > 0 and logp[t, e] == logp[t, e - 1] else math.exp(logp[t, e])
    total = 0.0
    for e in range(experts):
        total += weights[e] * probs[e]
    log_total = math.log(total)
    for e in range(experts):
        stats[STAT_NATS, e] -= logp[t, e]
        stats[STAT_WEIGHT, e] += weights[e]
        rest = 1.0 - weights[e]
        others = total - weights[e] * probs[e]
        if weights[e] < 1e-9:
            stats[STAT_WITHOUT, e] -= log_total
            continue
        if rest < 1e-3 or others < 1e-3 * total:
            # The differences would lose digits: weigh the others by themselves.
            rest = 0.0
            others = 0.0
            top = -math.inf
            for f in range(experts):
                if f != e and logits[r, f] > top:
                    top = logits[r, f]
            for f in range(experts):
                if f != e:
                    w = math.exp(logits[r, f] - top)
                    rest += w
                    others += w * probs[f]
        stats[STAT_WITHOUT, e] -= math.log(others / rest) if experts > 1 else LOG_FLOOR
    return log_total


@njit(cache=True, _nrt=False)
def hedge_weights(log_weights: Any, r: Any, weights: Any) -> None:
    """Fill ``weights`` float64[E] with the normalised exponentials of ``log_weights[r]``, float64[S, E]."""
    experts = log_weights.shape[1]
    top = log_weights[r, 0]
    for e in range(1, experts):
        if log_weights[r, e] > top:
            top = log_weights[r, e]
    total = 0.0
    for e in range(experts):
        weights[e] = math.exp(log_weights[r, e] - top)
        total += weights[e]
    for e in range(experts):
        weights[e] /= total


@njit(cache=True, _nrt=False)
def hedge_pass(
    logp: Any, rows: Any, log_weights: Any, eta: Any, share: Any, stats: Any, nll: Any, weights: Any, probs: Any
) -> None:
    """Score and learn a run of tokens with Hedge.

    Args:
        logp: float64[T, E], each expert's log-probability of the token that occurred, at least ``LOG_FLOOR``.
        rows: int64[T, 1], the weight set in use at each token.
        log_weights: float64[S, E], unnormalised log weights, changed in place.
        eta: learning rate.
        share: fixed share in [0, 1).
        stats: float64[3, E], changed in place.
        nll: float64[T], out: nats of the mixture.
        weights: float64[E], work; the weights used at the last token remain.
        probs: float64[E], work.
    """
    experts = logp.shape[1]
    for t in range(logp.shape[0]):
        r = rows[t, 0]
        hedge_weights(log_weights, r, weights)
        nll[t] = -_account(logp, t, log_weights, r, weights, probs, stats)
        top = -math.inf
        for e in range(experts):
            log_weights[r, e] += eta * logp[t, e]
            if log_weights[r, e] > top:
                top = log_weights[r, e]
        if share > 0.0:
            hedge_weights(log_weights, r, probs)
            for e in range(experts):
                log_weights[r, e] = math.log((1.0 - share) * probs[e] + share / experts)
        else:
            # Keep the largest at zero, so that sums over long streams do not lose digits.
            for e in range(experts):
                log_weights[r, e] -= top


@njit(cache=True, _nrt=False)
def gate_weights(rows: Any, t: Any, gate: Any, logits: Any, weights: Any) -> None:
    """Fill ``logits`` float64[1, E] with the sum of the ``gate`` rows in ``rows[t]``, ``weights`` with its softmax."""
    for e in range(gate.shape[1]):
        a = 0.0
        for j in range(rows.shape[1]):
            a += gate[rows[t, j], e]
        logits[0, e] = a
    hedge_weights(logits, 0, weights)


@njit(cache=True, _nrt=False)
def gate_pass(
    logp: Any, rows: Any, gate: Any, rate: Any, stats: Any, nll: Any, weights: Any, probs: Any, logits: Any
) -> None:
    """Score and learn a run of tokens with the gate.

    Args:
        logp: float64[T, E], each expert's log-probability of the token that occurred, at least ``LOG_FLOOR``.
        rows: int64[T, J], the gate's rows in use at each token, one for each weight set.
        gate: float64[rows, E], changed in place.
        rate: step along the gradient of the mixture's log-probability.
        stats: float64[3, E], changed in place.
        nll: float64[T], out: nats of the mixture.
        weights: float64[E], work; the weights used at the last token remain.
        probs: float64[E], work.
        logits: float64[1, E], work.
    """
    for t in range(logp.shape[0]):
        gate_weights(rows, t, gate, logits, weights)
        log_total = _account(logp, t, logits, 0, weights, probs, stats)
        nll[t] = -log_total
        inverse = math.exp(-log_total)
        for e in range(logp.shape[1]):
            step = rate * weights[e] * (probs[e] * inverse - 1.0)
            for j in range(rows.shape[1]):
                gate[rows[t, j], e] += step


@njit(cache=True, _nrt=False)
def mix_rows(log_rows: Any, weights: Any, out: Any) -> None:
    """Fill ``out`` float64[V] with the log of the mixture of ``log_rows`` float64[E, V] under ``weights``."""
    for y in range(log_rows.shape[1]):
        total = 0.0
        for e in range(log_rows.shape[0]):
            total += weights[e] * math.exp(log_rows[e, y])
        out[y] = math.log(total)
