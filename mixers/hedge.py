"""Mixtures of experts that need only each expert's probability of the token that occurred.

Both mixtures are linear, ``p(y) = sum_e v_e p_e(y)`` with weights that depend on the past alone, so they are exactly
normalised whenever the experts are.

* Hedge (Freund & Schapire 1997; Vovk's aggregating algorithm): ``v_e`` proportional to ``prior_e exp(-eta L_e)``, ``L_e``
  the expert's total loss. With ``eta = 1`` it is the Bayes mixture. For ``eta <= 1`` the loss of the plain form exceeds
  that of the best of K equally likely experts by at most ``ln K / eta`` nats. Fixed share (Herbster & Warmuth 1998)
  gives back ``share`` of the weight evenly after every token.
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


@njit(cache=True)
def _account(logp: Any, logits: Any, weights: Any, probs: Any, stats: Any) -> Any:
    """Add one token to the statistics; return the mixture's probability. ``weights`` is the softmax of ``logits``."""
    experts = weights.shape[0]
    total = 0.0
    for e in range(experts):
        total += weights[e] * probs[e]
    for e in range(experts):
        stats[STAT_NATS, e] -= logp[e]
        stats[STAT_WEIGHT, e] += weights[e]
        rest = 1.0 - weights[e]
        others = total - weights[e] * probs[e]
        if rest < 1e-3 or others < 1e-3 * total:
            # The differences would lose digits: weigh the others by themselves.
            rest = 0.0
            others = 0.0
            top = -math.inf
            for f in range(experts):
                if f != e and logits[f] > top:
                    top = logits[f]
            for f in range(experts):
                if f != e:
                    w = math.exp(logits[f] - top)
                    rest += w
                    others += w * probs[f]
        stats[STAT_WITHOUT, e] -= math.log(others / rest) if experts > 1 else LOG_FLOOR
    return total


@njit(cache=True)
def hedge_weights(log_weights: Any, weights: Any) -> None:
    """Fill ``weights`` float64[E] with the normalised exponentials of ``log_weights`` float64[E]."""
    experts = log_weights.shape[0]
    top = log_weights[0]
    for e in range(1, experts):
        if log_weights[e] > top:
            top = log_weights[e]
    total = 0.0
    for e in range(experts):
        weights[e] = math.exp(log_weights[e] - top)
        total += weights[e]
    for e in range(experts):
        weights[e] /= total


@njit(cache=True)
def hedge_pass(
    logp: Any, sets: Any, log_weights: Any, eta: Any, share: Any, stats: Any, nll: Any, last_weights: Any
) -> None:
    """Score and learn a run of tokens with Hedge.

    Args:
        logp: float64[T, E], each expert's log-probability of the token that occurred.
        sets: int64[T], the weight set in use at each token.
        log_weights: float64[S, E], unnormalised log weights, changed in place.
        eta: learning rate.
        share: fixed share in [0, 1).
        stats: float64[3, E], changed in place.
        nll: float64[T], out: nats of the mixture.
        last_weights: float64[E], out: the weights used at the last token.
    """
    experts = logp.shape[1]
    probs = np.empty(experts)
    for t in range(logp.shape[0]):
        row = log_weights[sets[t]]
        hedge_weights(row, last_weights)
        for e in range(experts):
            probs[e] = math.exp(logp[t, e]) if e == 0 or logp[t, e] != logp[t, e - 1] else probs[e - 1]
        total = _account(logp[t], row, last_weights, probs, stats)
        nll[t] = -math.log(total)
        for e in range(experts):
            row[e] += eta * logp[t, e]
        if share > 0.0:
            hedge_weights(row, probs)
            for e in range(experts):
                row[e] = math.log((1.0 - share) * probs[e] + share / experts)
        else:
            # Keep the largest at zero, so that sums over long streams do not lose digits.
            top = row[0]
            for e in range(1, experts):
                if row[e] > top:
                    top = row[e]
            for e in range(experts):
                row[e] -= top


@njit(cache=True)
def gate_weights(rows: Any, gate: Any, logits: Any, weights: Any) -> None:
    """Fill ``logits`` float64[E] with the sum of the gate's ``rows`` (int64[J] into ``gate``), ``weights`` with its softmax."""
    for e in range(gate.shape[1]):
        a = 0.0
        for j in range(rows.shape[0]):
            a += gate[rows[j], e]
        logits[e] = a
    hedge_weights(logits, weights)


@njit(cache=True)
def gate_pass(
    logp: Any, rows: Any, gate: Any, rate: Any, stats: Any, nll: Any, last_weights: Any
) -> None:
    """Score and learn a run of tokens with the gate.

    Args:
        logp: float64[T, E], each expert's log-probability of the token that occurred.
        rows: int64[T, J], the gate's rows in use at each token, one for each weight set.
        gate: float64[rows, E], changed in place.
        rate: step along the gradient of the mixture's log-probability.
        stats: float64[3, E], changed in place.
        nll: float64[T], out: nats of the mixture.
        last_weights: float64[E], out: the weights used at the last token.
    """
    experts = logp.shape[1]
    probs = np.empty(experts)
    logits = np.empty(experts)
    for t in range(logp.shape[0]):
        gate_weights(rows[t], gate, logits, last_weights)
        for e in range(experts):
            probs[e] = math.exp(logp[t, e]) if e == 0 or logp[t, e] != logp[t, e - 1] else probs[e - 1]
        total = _account(logp[t], logits, last_weights, probs, stats)
        nll[t] = -math.log(total)
        for e in range(experts):
            step = rate * last_weights[e] * (probs[e] / total - 1.0)
            for j in range(rows.shape[1]):
                gate[rows[t, j], e] += step


@njit(cache=True)
def mix_rows(log_rows: Any, weights: Any, out: Any) -> None:
    """Fill ``out`` float64[V] with the log of the mixture of ``log_rows`` float64[E, V] under ``weights`` float64[E]."""
    for y in range(log_rows.shape[1]):
        total = 0.0
        for e in range(log_rows.shape[0]):
            total += weights[e] * math.exp(log_rows[e, y])
        out[y] = math.log(total)
