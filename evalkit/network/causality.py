"""A quick test, before the first window, that a model's rows do not depend on later tokens or on other windows.

It is a test of the module itself: a few forward passes on random ids, with other random ids put behind some row, and
beside the window. What passes here can still leak in rarer ways; ``evalkit check`` looks further.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        distance: how many tokens ahead the first changed token lay; 0 where another window of the batch was changed.
        nats: the largest change of a log-probability.
        tolerance: what rounding may change.
    """

    row: int
    distance: int
    nats: float
    tolerance: float

    @property
    def message(self) -> str:
        """One sentence."""
        what = (
            f"a token {self.distance} ahead of row {self.row} was replaced"
            if self.distance
            else f"another window of the batch was replaced (row {self.row})"
        )
        return (
            f"the model is not causal: its log-probabilities moved by {self.nats:.3g} nats when {what} (rounding "
            f"explains {self.tolerance:g}): no decoder could follow"
        )


def find_leak(network: Network, seq_len: int, device: torch.device, *, seed: int = 0) -> Leak | None:
    """Return the first leak that a few forward passes show, or None.

    Args:
        network: the model.
        seq_len: window in tokens.
        device: of the model.
        seed: of ids and rows.

    Raises:
        InputError: the model fails, or returns no logits.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> torch.Tensor:
        return torch.randint(0, network.vocab_size, (1, rows), generator=generator)

    def rows_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits = network.logits(ids.to(device))
        require_numbers(logits, network.name)
        return torch.log_softmax(logits[0], dim=-1)

    tolerance = HALF_TOLERANCE if _is_half(network) else TOLERANCE
    ids = draw(seq_len)
    base = rows_of(ids)
    chosen = {0, seq_len // 2, seq_len - 2} | set(torch.randint(0, seq_len, (POSITIONS,), generator=generator).tolist())
    for row in sorted(row for row in chosen if 0 <= row < seq_len - 1):
        other = torch.cat([ids[:, : row + 1], draw(seq_len - row - 1)], dim=1)
        moved = (rows_of(other)[: row + 1] - base[: row + 1]).nan_to_num().abs().amax(-1)
        if float(moved.max()) > tolerance:
            leaking = int((moved > tolerance).nonzero()[0])
            return Leak(row=leaking, distance=row + 1 - leaking, nats=float(moved.max()), tolerance=tolerance)
    beside = [rows_of(torch.cat([ids, draw(seq_len)])) for _ in range(2)]
    moved = (beside[1] - beside[0]).nan_to_num().abs().amax(-1)
    if float(moved.max()) > tolerance:
        return Leak(row=int(moved.argmax()), distance=0, nats=float(moved.max()), tolerance=tolerance)
    return None


def _is_half(network: Network) -> bool:
    module = network.module
    return module is not None and any(p.dtype in (torch.bfloat16, torch.float16) for p in module.parameters())
