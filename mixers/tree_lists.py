"""The count lists of the tree expert: their layout, and dropping what is rare.

A store is a pool of words and an array of contexts. A context is a block of the pool: one word for each successor,
with its token (16 bits), its count (16 bits) and the number of its own context (32 bits, 0 for none); the context's
word holds the block's offset, length and capacity. Order 0 lives in the block of one word for each token at the pool's
beginning.

Kernels of this module call only functions of this module: numba's file cache checks no other file for changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from evalkit.mixers.undo import Array

LEVELS = 12
"""Size classes of a raw count."""
CODES_PER_ORDER = 3 * LEVELS
"""Context codes: ``36 (1 + highest order with counts, or 0) + 3 (size class of its n) + class of distinct tokens``."""

# Places in a store's small state; the numbers of the current contexts of the orders 0.. follow from CONTEXT on.
POOL_TOP, CONTEXT_TOP, DEPTH, PREVIOUS, CONTEXT = 0, 1, 2, 3, 4

STREAM_STORE, DOCUMENT_STORE = 0, 2
"""Numbers of the two stores' pools in the undo log; the contexts of a store have its pool's number plus one."""


class Lists(NamedTuple):
    """The counts of the stream, or of the current document."""

    pool: Array  # uint64[words]
    contexts: Array  # uint64[contexts]
    state: Array  # int64[4 + orders]
    heap: Array  # int64[2 << bits], order 0 summed below every node of the tree, units of 1/256
    heap_count: Array  # int64[2 << bits]


@njit(cache=True)
def tree_prune(lists: Any, bits: Any, highest_count: Any, newest: Any, new: Any) -> None:
    """Copy a store without its rare successors: counts up to ``highest_count`` in contexts numbered below ``newest``.

    Contexts are numbered by age, parents before children, so one pass decides what can still be reached. The ``new``
    lists are filled from scratch but for the heap; the current contexts survive as far as their chain does.
    """
    pool, contexts, state = lists.pool, lists.contexts, lists.state
    new_pool, new_contexts, new_state = new.pool, new.contexts, new.state
    renamed = np.zeros(state[CONTEXT_TOP], dtype=np.uint32)
    size = 1 << bits
    pool_top = np.int64(size)
    context_top = np.int64(1)
    for y in range(size):
        child = np.int64(pool[y] >> np.uint64(32))
        new_pool[y] = pool[y] & np.uint64(0xFFFFFFFF)
        if child != 0:
            renamed[child] = 1  # reachable; numbered below
    for c in range(1, state[CONTEXT_TOP]):
        if renamed[c] == 0:
            continue
        renamed[c] = np.uint32(context_top)
        context_top += 1
        word = np.int64(contexts[c])
        offset = word & 0xFFFFFFFF
        length = np.int64(0)
        for i in range(offset, offset + ((word >> 32) & 0xFFFF)):
            entry = pool[i]
            if (np.int64(entry) >> 16) & 0xFFFF > highest_count or c >= newest:
                new_pool[pool_top + length] = entry
                length += 1
                if entry >> np.uint64(32) != 0:
                    renamed[np.int64(entry >> np.uint64(32))] = 1
        room = 0
        if length > 0:
            room = 1
            while (1 << (room - 1)) < length:
                room += 1
            for i in range(length, 1 << (room - 1)):
                new_pool[pool_top + i] = np.uint64(0)
        new_contexts[np.int64(renamed[c])] = np.uint64(pool_top | (length << 32) | (room << 48))
        pool_top += (1 << (room - 1)) if room > 0 else 0
    for i in range(size, pool_top):
        child = np.int64(new_pool[i] >> np.uint64(32))
        if child != 0:
            new_pool[i] = (new_pool[i] & np.uint64(0xFFFFFFFF)) | (np.uint64(renamed[child]) << np.uint64(32))
    for y in range(size):
        child = np.int64(pool[y] >> np.uint64(32))
        if child != 0:
            new_pool[y] |= np.uint64(renamed[child]) << np.uint64(32)
    new_state[:] = 0
    new_state[POOL_TOP] = pool_top
    new_state[CONTEXT_TOP] = context_top
    new_state[PREVIOUS] = state[PREVIOUS]
    for k in range(1, state[DEPTH] + 1):
        if renamed[state[CONTEXT + k]] == 0:
            break
        new_state[CONTEXT + k] = np.int64(renamed[state[CONTEXT + k]])
        new_state[DEPTH] = k
