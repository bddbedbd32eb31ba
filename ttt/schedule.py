"""Learning rate of each chunk."""

from __future__ import annotations

import math

from evalkit.ttt.config import TTTConfig


def learning_rate(config: TTTConfig, chunk: int, num_chunks: int | None) -> float:
    """Return the learning rate after chunk ``chunk`` (counted from 0) has been scored.

    ``cosine`` is lr (1 + cos(pi c / (n - 1))) / 2, times PR849's "adaptive multiplier" 1 + (ramp - 1) min(c / 0.3n, 1),
    with c the chunk and n = ``num_chunks`` those of the stream.

    Raises:
        ValueError: ``cosine`` without the number of chunks.
    """
    rate = config.learning_rate
    if config.schedule == "constant":
        return rate
    if config.schedule == "inverse_sqrt":
        return rate / math.sqrt(chunk + 1)
    if num_chunks is None:
        raise ValueError("the cosine schedule needs the number of chunks")
    cosine = 0.5 * (1.0 + math.cos(math.pi * chunk / max(num_chunks - 1, 1)))
    return rate * cosine * (1.0 + (config.ramp - 1.0) * min(chunk / (0.3 * num_chunks), 1.0))
