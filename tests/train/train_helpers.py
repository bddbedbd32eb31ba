"""Shards of a small Markov source, and small settings, for the training tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from evalkit.train.quantization.rows import round_to_step, row_clips, row_step

SHARED = Path(__file__).resolve().parents[2] / "../shared"
VOCAB = 64
SMALL = {
    "model.vocab_size": str(VOCAB),
    "train.batch_tokens": "256",
    "train.spans": "4",
    "train.seq_len": "32",
    "train.precision": "float32",
    "optimizer.ns_precision": "float32",
    "train.checkpoint_seconds": "0",
    "train.device": "cpu",
    "train.log_every": "1",
}


def write_shard(path: Path, tokens: np.ndarray) -> Path:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())
    return path


def markov_tokens(count: int, seed: int) -> np.ndarray:
    """Tokens of a first-order source: each token is followed by one of four."""
    rng = np.random.default_rng(seed)
    tokens = np.empty(count, dtype=np.int64)
    tokens[0] = 1
    steps = rng.integers(0, 4, count)
    for i in range(1, count):
        tokens[i] = (5 * tokens[i - 1] + 7 + 11 * steps[i]) % VOCAB
    return tokens


def quantize_rows(
    weight: torch.Tensor, bits: int, *, quantile: float = 1.0, min_step: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to nearest with one clip; returns integers int8 and steps float16 ``[rows]``."""
    step = row_step(row_clips(weight, (quantile,))[0], bits, min_step)
    return round_to_step(weight, step, bits), step
