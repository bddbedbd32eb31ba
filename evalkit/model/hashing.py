"""Hash features: which row of the bigram, trigram or pair table a position reads.

The multipliers and the reserved last row are those of the published systems; the larger multiplier meets the current
token. Products are taken in int32, as they are there, so that ids past 59,138 wrap the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CURRENT, _PREVIOUS, _BEFORE_PREVIOUS = 36313, 27191, 51497
_PAIR = 2039


def bigram_rows(ids: Tensor, buckets: int) -> Tensor:
    """Return the bigram table row of every position.

    Args:
        ids: token ids, ``[B, T]``. The first position has no predecessor and reads the last row.
        buckets: rows of the table.

    Returns:
        int64 ``[B, T]`` in ``[0, buckets)``.
    """
    ids = ids.to(torch.int32)
    rows = torch.full_like(ids, buckets - 1)
    hashed = torch.bitwise_xor(_CURRENT * ids[:, 1:], _PREVIOUS * ids[:, :-1])
    rows[:, 1:] = hashed % (buckets - 1)
    return rows.long()


def trigram_rows(ids: Tensor, buckets: int) -> Tensor:
    """Return the trigram table row of every position; the first two positions read the last row.

    Args:
        ids: token ids, ``[B, T]``.
        buckets: rows of the table.

    Returns:
        int64 ``[B, T]`` in ``[0, buckets)``.
    """
    ids = ids.to(torch.int32)
    rows = torch.full_like(ids, buckets - 1)
    hashed = torch.bitwise_xor(_CURRENT * ids[:, 2:], _PREVIOUS * ids[:, 1:-1])
    rows[:, 2:] = torch.bitwise_xor(hashed, _BEFORE_PREVIOUS * ids[:, :-2]) % (buckets - 1)
    return rows.long()


def pair_rows(ids: Tensor, buckets: int) -> Tensor:
    """Return the pair table row of every position: (2039 previous + current) mod buckets (PR1529).

    Args:
        ids: token ids, ``[B, T]``. The first position's predecessor counts as 0.
        buckets: rows of the table.

    Returns:
        int64 ``[B, T]`` in ``[0, buckets)``.
    """
    previous = torch.nn.functional.pad(ids, (1, -1))
    rows: Tensor = (_PAIR * previous + ids) % buckets
    return rows
