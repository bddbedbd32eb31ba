"""Hash features: which row of the bigram, trigram or pair table a position reads.

The multipliers and the reserved last row are those of the published systems; the larger multiplier meets the current
token. Products are taken in int32, as they are there, so that ids past 59,138 wrap the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (36313, 27191, 51497)
"""Of the current token and of those before it."""

_PAIR = 2039


def ngram_rows(ids: Tensor, order: int, buckets: int) -> Tensor:
    """Return the row of every position in the table of bigrams (``order`` 2) or trigrams (3).

    Args:
        ids: token ids, ``[B, T]``. The first ``order - 1`` positions lack a predecessor and read the last row.
        order: tokens that are hashed.
        buckets: rows of the table.

    Returns:
        int64 ``[B, T]`` in ``[0, buckets)``.
    """
    ids = ids.to(torch.int32)
    rows = torch.full_like(ids, buckets - 1)
    first, length = order - 1, ids.shape[1]
    hashed = torch.zeros_like(ids[:, first:])
    for back, multiplier in enumerate(_MULTIPLIERS[:order]):
        hashed = torch.bitwise_xor(hashed, multiplier * ids[:, first - back : length - back])
    rows[:, first:] = hashed % (buckets - 1)
    return rows.long()


def pair_rows(ids: Tensor, buckets: int) -> Tensor:
    """Return the pair table row of every position: (2039 previous + current) mod buckets (PR1529).

    Otherwise as :func:`ngram_rows`; the first position's predecessor counts as 0.
    """
    previous = torch.nn.functional.pad(ids, (1, -1))
    rows: Tensor = (_PAIR * previous + ids) % buckets
    return rows
