"""Checks of what callers hand to the mixer: tokens, and a network's values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.mixers.config import MixerConfig
from evalkit.mixers.hedge import LOG_FLOOR

Floats = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.integer[Any]]

Network = tuple[Floats, Floats, Floats]
"""A network's log-probabilities, those re-tempered, and its entropies, float64[T] each."""


def check_tokens(tokens: Tokens, start: int, stop: int, *, first: int, vocab_size: int) -> Tokens:
    """Return the stream as an array in which ``[start, stop)`` can be learned.

    Args:
        tokens: the stream, one-dimensional integers.
        start: first position to learn.
        stop: one past the last.
        first: first position whose token must lie in the vocabulary: 0 where token 0 has not been learned yet.
        vocab_size: V.

    Raises:
        ValueError: the array has another shape or type, is too short, or holds a token outside the vocabulary.
    """
    array = np.asarray(tokens)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"tokens of type {array.dtype} and shape {array.shape}; expected one row of integers")
    if not start < stop <= len(array):
        raise ValueError(f"span [{start}, {stop}) of {len(array)} tokens; expected one token or more inside them")
    piece = array[first:stop]
    low, high = int(piece.min()), int(piece.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"token {low if low < 0 else high} lies outside the vocabulary of {vocab_size}")
    return array


def check_network(config: MixerConfig, count: int, *inputs: Floats | None) -> Network:
    """Return (neural, re-tempered, entropy) as float64[count] each, zeros where the configuration has no use.

    Raises:
        ValueError: something that the configuration needs is missing or malformed.
    """
    needed = ("neural" in config.experts, "entropy" in config.experts, "entropy" in config.contexts)
    checked = []
    for name, need, value in zip(("neural_logp", "entropy_logp", "entropy"), needed, inputs, strict=True):
        if not need:
            checked.append(np.zeros(count))
            continue
        if value is None:
            raise ValueError(f"{name} is missing; the configuration needs it")
        array = np.asarray(value, dtype=np.float64)
        if array.shape != (count,):
            raise ValueError(f"{name} has shape {array.shape}; expected ({count},)")
        _check_values(name, array, logarithm=name != "entropy")
        checked.append(array if name == "entropy" else np.maximum(array, LOG_FLOOR))
    return checked[0], checked[1], checked[2]


def check_row(config: MixerConfig, name: str, row: Floats | None) -> Floats | None:
    """Return one row of log-probabilities checked and floored, or None where the configuration needs none.

    Raises:
        ValueError: the row is needed and missing, or malformed.
    """
    if name not in config.experts:
        return None
    if row is None:
        raise ValueError(f"the {name} expert's log-probabilities are missing; the configuration needs them")
    array = np.asarray(row, dtype=np.float64)
    if array.shape != (config.vocab_size,):
        raise ValueError(f"the {name} expert's row has shape {array.shape}; expected ({config.vocab_size},)")
    _check_values(name, array, logarithm=True)
    return np.maximum(array, LOG_FLOOR)


def _check_values(name: str, values: Floats, *, logarithm: bool) -> None:
    """Raise ValueError if log-probabilities are NaN or positive, or entropies NaN or infinite."""
    # Rounding may leave the log of a near-certain token a hair above 0.
    if logarithm and not bool(np.all(values <= 1e-6)):
        raise ValueError(f"{name} holds NaN or values above 0; expected log-probabilities in nats")
    if not logarithm and not bool(np.all(np.isfinite(values))):
        raise ValueError(f"{name} holds NaN or infinite values; expected entropies in nats")
