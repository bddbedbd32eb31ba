"""The device of the GPU tests, and the size of what they train."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEVICE = os.environ.get("EVALKIT_TEST_DEVICE", "cuda")
SIZE = {
    "model.vocab_size": "384",
    "model.num_layers": "3",
    "model.model_dim": "64",
    "model.mlp_hidden": "128",
    "train.seq_len": "128",
    "train.batch_tokens": "2048",
    "train.precision": "float32",
    "train.compile": "off",
    "train.threads": "1",
    "train.warmup_steps": "0",
    "train.val_tokens": "2048",
    "train.device": DEVICE,
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A trained run and its artifact, and what it was trained on."""

    run: Path
    artifact: Path
    data: Path
    tokenizer: Path
    text: Path
