"""Configuration of test-time training."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from evalkit.plumbing.settings import require, require_choices

Optimizer = Literal["adamw", "sgd"]
Order = Literal["forward", "backward", "shuffled"]
Trainable = Literal["last_blocks_and_scales", "all_but_first_blocks", "scales", "all", "adapters"]
Schedule = Literal["constant", "inverse_sqrt", "cosine"]
MAX_HASH_BUCKETS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class TTTConfig:
    """How the network learns from what has been scored.

    The defaults were chosen by measurement (bench/RESULTS.md); the preset ``published`` is PR849's recipe.

    Attributes:
        chunk_tokens: positions that are scored before the next update.
        epochs: passes over a chunk.
        optimizer: ``adamw`` (betas 0.9, 0.999, no weight decay) or ``sgd`` (with ``momentum``).
        learning_rate: before the schedule.
        momentum: of ``sgd``.
        grad_clip: largest global norm of a gradient; 0 leaves gradients alone.
        batch_sequences: rows of ``seq_len`` tokens in one step.
        order: of the rows in an epoch: ``forward``, ``backward`` or ``shuffled`` (by ``seed``).
        byte_weighted: weigh each token's loss by the bytes that it stands for.
        polyak_decay: scores use P <- decay P + (1 - decay) weights, updated after each step; 0 is the raw weights.
        trainable: what learns. ``last_blocks_and_scales``: the last ``blocks`` blocks and every scale (PR849's code);
            ``all_but_first_blocks``: everything but the first ``blocks`` blocks and the embedding (PR849's README);
            ``scales``: vectors only; ``all``; ``adapters``: low-rank corrections of the query and value matrices that
            start from zero in every document.
        blocks: see ``trainable``.
        match: regular expression over the names of linear layers, which ``adapters`` correct; empty takes the query and
            value matrices of evalkit's own network, in another the layers whose names speak of attention, and where
            there are none, all but the head.
        adapter_rank: rank of the adapters.
        schedule: ``constant``; ``inverse_sqrt`` of the number of chunks seen; ``cosine`` over all chunks, which needs
            their number in advance: side information that a decoder must be sent.
        ramp: the learning rate grows to this multiple over the first 30% of the chunks (``cosine`` only; 1 is off).
        frozen_weight: weight of the frozen network in a mixture with the one that learns, below 1; 0 leaves it out.
            Another forward pass, where something has been learned.
        temperature: logits are divided by clamp(1 - (1 - T)(1 - H / ln V), 0.9, 1.05), H their entropy; 1 is off.
        time_limit: stop learning this many seconds after the start; 0 never stops. A limit makes scores depend on the
            machine's speed, so no decoder can follow.
        hash_buckets: rows of a table, indexed by a hash of the last two tokens and added to their embedding behind the
            norm, that starts at zero and learns with the weights (PR1529); 0 leaves it out. No adapters beside it.
        seed: of ``shuffled`` and of the adapters' first factors.
        compare: score with the frozen network as well, for the report: what each chunk gained, and what all of them
            did, with an interval that takes documents as the unit.
    """

    chunk_tokens: int = 128
    epochs: int = 1
    optimizer: Optimizer = "adamw"
    learning_rate: float = 5e-2
    momentum: float = 0.9
    grad_clip: float = 1.0
    batch_sequences: int = 1
    order: Order = "forward"
    byte_weighted: bool = True
    polyak_decay: float = 0.0
    trainable: Trainable = "adapters"
    blocks: int = 2
    match: str = ""
    adapter_rank: int = 8
    schedule: Schedule = "constant"
    ramp: float = 1.0
    frozen_weight: float = 0.5
    temperature: float = 1.0
    time_limit: float = 0.0
    hash_buckets: int = 0
    seed: int = 0
    compare: bool = False

    def __post_init__(self) -> None:
        require_choices(self, "ttt")
        full = self.trainable in ("all", "all_but_first_blocks")
        no_table = "0 unless ttt.trainable is all or all_but_first_blocks, since nothing else would train the table"
        for name, fine, expected in (
            ("chunk_tokens", self.chunk_tokens >= 1, "at least 1"),
            ("epochs", self.epochs >= 0, "0 or more"),
            ("learning_rate", self.learning_rate >= 0, "0 or more"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1"),
            ("grad_clip", self.grad_clip >= 0, "0 (off) or more"),
            ("batch_sequences", self.batch_sequences >= 1, "at least 1"),
            ("polyak_decay", 0 <= self.polyak_decay < 1, "at least 0 and below 1"),
            ("blocks", self.blocks >= 0, "0 or more"),
            ("match", not self.match or self.trainable == "adapters", "empty unless adapters learn"),
            ("match", _is_pattern(self.match), "a regular expression"),
            ("adapter_rank", self.adapter_rank >= 1, "at least 1"),
            ("ramp", self.ramp == 1 or self.schedule == "cosine", "1 unless the schedule is cosine"),
            ("frozen_weight", 0 <= self.frozen_weight < 1, "at least 0 and below 1"),
            ("temperature", 0.5 <= self.temperature <= 1.5, "0.5 to 1.5; 1 is off"),
            ("hash_buckets", 0 <= self.hash_buckets <= MAX_HASH_BUCKETS, f"0 to {MAX_HASH_BUCKETS:,}"),
            ("hash_buckets", not self.hash_buckets or full, no_table),
            ("time_limit", self.time_limit >= 0, "0 (never) or seconds"),
        ):
            require(fine, f"ttt.{name}", getattr(self, name), expected)


def sgd_config(*, learning_rate: float = 5e-3, hash_buckets: int = 0) -> TTTConfig:
    """Return plain SGD over all weights, chunk by chunk, with momentum that lives across chunks.

    PR1493 and PR1477 run it like this, PR549 at a rate of 0.002, PR1529 at 0.01 and with a table of token pairs.
    """
    return TTTConfig(
        chunk_tokens=32768,
        epochs=3,
        optimizer="sgd",
        learning_rate=learning_rate,
        batch_sequences=32,
        byte_weighted=False,
        trainable="all",
        schedule="cosine",
        frozen_weight=0.0,
        hash_buckets=hash_buckets,
    )


PRESETS: dict[str, Callable[[], TTTConfig]] = {
    "default": TTTConfig,
    # PR849's recipe as its code ran it; its README calls the trained part "freeze first 2 blocks".
    "published": partial(
        TTTConfig,
        chunk_tokens=32768,
        epochs=4,
        learning_rate=5e-4,
        batch_sequences=16,
        polyak_decay=0.998,
        trainable="last_blocks_and_scales",
        schedule="cosine",
        ramp=3.0,
        frozen_weight=0.0,
        temperature=0.98,
    ),
    # Updates of every weight, small and many, smoothed by the Polyak average.
    "full": partial(
        TTTConfig,
        chunk_tokens=1024,
        learning_rate=1e-3,
        batch_sequences=4,
        trainable="all",
        polyak_decay=0.98,
        frozen_weight=0.0,
    ),
    "pr549": partial(sgd_config, learning_rate=2e-3),
    "pr1477": sgd_config,
    "pr1493": sgd_config,
    "pr1529": partial(sgd_config, learning_rate=1e-2, hash_buckets=16384),
}
"""What ``--set ttt.preset=NAME`` starts from."""


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
