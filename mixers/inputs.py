"""Checks of what callers hand to the mixer: tokens, and a network's values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.mixers.config import MixerConfig
from evalkit.mixers.hedge import LOG_FLOOR
from evalkit.mixers.undo import Floats

Tokens = npt.NDArray[np.integer[Any]]

Network = tuple[Floats, Floats, Floats]
"""A network's log-probabilities, those re-tempered, and its entropies: float64[T], or [V], [V], [] at one position."""

_NAMES = ("neural_logp", "entropy_logp", "entropy")


def check_tokens(tokens: Tokens, start: int, stop: int, *, first: int, vocab_size: int) -> Tokens:
    """Return the stream as an array in which ``[start, stop)`` can be learned.

    Tokens from ``first`` on must lie in the vocabulary: from 0 on where token 0 has not been learned yet.

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


def check_network(
    config: MixerConfig, shapes: tuple[tuple[int, ...], ...], inputs: Sequence[Floats | float | None]
) -> Network:
    """Return (neural, re-tempered, entropy), float64 of three shapes, zeros where the configuration has no use.

    Raises:
        ValueError: something that the configuration needs is missing or malformed.
    """
    needed = ("neural" in config.experts, "entropy" in config.experts, "entropy" in config.contexts)
    given = (*inputs, *(None,) * (3 - len(inputs)))
    checked = []
    for name, need, value, shape in zip(_NAMES, needed, given, shapes, strict=True):
        if not need:
            checked.append(np.zeros(shape))
            continue
        if value is None:
            raise ValueError(f"{name} is missing; the configuration needs it")
        array = np.asarray(value, dtype=np.float64)
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; expected {shape}")
        if name == "entropy":
            if not bool(np.all(np.isfinite(array))):
                raise ValueError(f"{name} holds NaN or infinite values; expected entropies in nats")
        # Rounding may leave the log of a near-certain token a hair above 0.
        elif not bool(np.all(array <= 1e-6)):
            raise ValueError(f"{name} holds NaN or values above 0; expected log-probabilities in nats")
        else:
            array = np.maximum(array, LOG_FLOOR)
        checked.append(array)
    return checked[0], checked[1], checked[2]
