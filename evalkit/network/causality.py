"""A quick test, before the first window: rows depend on no later token, no other window, and no earlier call.

It is a test of the module itself: a few forward passes on random ids, with other random ids put behind some row, and
beside the window. What passes here can still leak in rarer ways; ``evalkit check`` looks further.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from evalkit.network.network import Network, require_numbers

POSITIONS = 3
"""Rows behind which the ids are replaced besides the first, the middle one and the last but one; drawn."""

TOLERANCE = 1e-4
"""Nats, of float32 log-probabilities: calls of one shape give nearly the same bits, whatever stands behind a row."""

HALF_TOLERANCE = 1e-2
"""The same of a model that computes in half precision."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Where a model looked at what it must not see.

    Attributes:
        row: the row whose log-probabilities moved; it predicts position ``row + 1`` of its window.
        distance: how many tokens ahead the first changed token lay; 0 where none was changed before the row's target.
        nats: the largest change of a log-probability.
        tolerance: what rounding may change.
        cause: what moved them: ``ahead``, a later token; ``beside``, another window of the batch; ``before``, the
            calls that were made before, with the very same ids.
    """

    row: int
    distance: int
    nats: float
    tolerance: float
    cause: Literal["ahead", "beside", "before"] = "ahead"

    @property
    def message(self) -> str:
        """One sentence."""
        what = {
            "ahead": f"the model is not causal: its log-probabilities moved by {self.nats:.3g} nats when a token "
            f"{self.distance} ahead of row {self.row} was replaced",
            "beside": f"the model is not causal: its log-probabilities moved by {self.nats:.3g} nats when another "
            f"window of the batch was replaced (row {self.row})",
            "before": f"the model does not repeat itself: its log-probabilities moved by {self.nats:.3g} nats (row "
            f"{self.row}) at a second call with the same ids: something drawn at random, or kept from call to call",
        }[self.cause]
        return f"{what} (rounding explains {self.tolerance:g}): no decoder could follow"


def find_leak(
    network: Network, seq_len: int, device: torch.device, *, ids_below: int | None = None, seed: int = 0
) -> Leak | None:
    """Return the first leak that a few forward passes show, or None.

    Ids are drawn below ``ids_below``, where the tokenizer has fewer than the model's logits are wide.

    Raises:
        InputError: the model fails, or returns no logits.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> torch.Tensor:
        return torch.randint(0, ids_below or network.vocab_size, (1, rows), generator=generator)

    def rows_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits = network.logits(ids.to(device))
        require_numbers(logits, network.name)
        return torch.log_softmax(logits[0], dim=-1)

    tolerance = HALF_TOLERANCE if _is_half(network) else TOLERANCE

    def moved(rows: torch.Tensor, base: torch.Tensor) -> tuple[int, float]:
        """Return the first row that moved by more than rounding, or -1, and the largest change."""
        change = (rows - base).nan_to_num().abs().amax(-1)
        first = (change > tolerance).nonzero()
        return (int(first[0]) if len(first) else -1), float(change.max())

    ids = draw(seq_len)
    base = rows_of(ids)
    row, nats = moved(rows_of(ids), base)
    if row >= 0:
        return Leak(row=row, distance=0, nats=nats, tolerance=tolerance, cause="before")
    chosen = {0, seq_len // 2, seq_len - 2} | set(torch.randint(0, seq_len, (POSITIONS,), generator=generator).tolist())
    for cut in sorted(row for row in chosen if 0 <= row < seq_len - 1):
        other = torch.cat([ids[:, : cut + 1], draw(seq_len - cut - 1)], dim=1)
        row, nats = moved(rows_of(other)[: cut + 1], base[: cut + 1])
        if row >= 0:
            return Leak(row=row, distance=cut + 1 - row, nats=nats, tolerance=tolerance)
    beside = [rows_of(torch.cat([ids, draw(seq_len)])) for _ in range(2)]
    row, nats = moved(*beside)
    if row >= 0:
        return Leak(row=row, distance=0, nats=nats, tolerance=tolerance, cause="beside")
    return None


def _is_half(network: Network) -> bool:
    module = network.module
    return module is not None and any(p.dtype in (torch.bfloat16, torch.float16) for p in module.parameters())
