"""Online n-gram counts of every order in one sparse table, and their interpolated Kneser-Ney probabilities.

One record per n-gram. The record of ``c y`` is two things: the count of token ``y`` after context ``c``, and, one
token later, the context ``c y`` of the next order with its own totals. So the contexts of all orders at position
``i + 1`` are the records that position ``i`` looked up, every look-up is keyed by (identity of the context's record,
token), and the look-ups of one position do not wait for one another.

Probabilities are those of interpolated Kneser-Ney (Kneser & Ney 1995; Chen & Goodman 1999, three discounts):

    p_k(y) = (max(c(y) - d(c(y)), 0) + (d1 t1 + d2 t2 + d3 t3) p_{k-1}(y)) / n,       p_{-1} = 1 / V,

with ``n`` the sum of the counts after the context and ``t1, t2, t3`` how many tokens have count 1, 2 and more. A
context without counts hands ``p_{k-1}`` through. As ``n`` and ``t`` are exactly the sums over the records that exist,
rows sum to 1 in any state, also after records have been dropped. With update exclusion (a lower order counts an event
only when the next higher order had not seen it) the lower orders hold continuation counts.

Kernels of this module call only functions of this module: numba's file cache checks no other file for changes. Those
that allocate nothing are compiled without reference counting, whose atomic operations took 40% of the time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Table = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

RECORD_WORDS = 8
"""32 bytes a record: parent identity, token, own identity (0 = empty), count, n, t1, t2, t3. Record 0 is the root."""

# Slots of the small integer state; the context's record slots, orders 0.., follow from CONTEXT on.
NEXT_IDENTITY, USED, DEPTH, CONTEXT = 0, 1, 2, 3

CODES_PER_ORDER = 24
"""Context codes: ``24 (1 + highest order with counts, or 0) + 3 (size class of its n) + class of distinct tokens``."""

_EVENT_NEW, _EVENT_AGAIN, _ROOT_RESET = 0, 1, 2


def new_table(slots: int) -> Table:
    """Return an empty table of ``slots`` records with a fresh root."""
    table = np.zeros((slots, RECORD_WORDS), dtype=np.uint32)
    table[0, 2] = 1
    return table


def new_state(max_order: int) -> Ints:
    """Return the small state that goes with an empty table: identities start at 2, the context is the root."""
    state = np.zeros(CONTEXT + max_order + 1, dtype=np.int64)
    state[NEXT_IDENTITY] = 2
    return state


@njit(cache=True, _nrt=False)
def _home(parent: Any, token: Any, slots: Any) -> Any:
    """Return the slot in [1, slots) where probing for a key starts (a Fibonacci hash scaled to the table)."""
    h = (np.uint64(parent) << np.uint64(32)) ^ np.uint64(token)
    h = (h ^ (h >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(1) + np.int64(((h >> np.uint64(32)) * np.uint64(slots - 1)) >> np.uint64(32))


@njit(cache=True, _nrt=False)
def _find(table: Any, parent: Any, token: Any) -> Any:
    """Return the slot of a key, or ``-1 - slot`` of the empty slot where it would go. Both key words are compared."""
    slots = table.shape[0]
    s = _home(parent, token, slots)
    while table[s, 2] != 0:
        if table[s, 0] == parent and table[s, 1] == token:
            return s
        s += 1
        if s == slots:
            s = 1
    return -1 - s


@njit(cache=True, _nrt=False)
def _code(order: Any, n: Any, distinct: Any) -> Any:
    """Return the context code of a position whose highest order with counts is ``order - 1``."""
    size = 0
    if n >= 60:
        size = 6
    elif n >= 20:
        size = 5
    elif n >= 9:
        size = 4
    elif n >= 5:
        size = 3
    elif n >= 3:
        size = 2
    elif n >= 2:
        size = 1
    return order * CODES_PER_ORDER + size * 3 + max(min(distinct, 3) - 1, 0)


@njit(cache=True, _nrt=False)
def ngram_pass(
    tokens: Any,
    start: Any,
    stop: Any,
    table: Any,
    state: Any,
    discounts: Any,
    vocab_size: Any,
    exclusion: Any,
    document_token: Any,
    document_local: Any,
    limit: Any,
    journal: Any,
    journal_used: Any,
    probs: Any,
    codes: Any,
    scratch: Any,
) -> Any:
    """Score and then learn the tokens of ``[start, stop)`` one by one; return (position reached, journal used).

    Args:
        tokens: int64, the stream; only ``[start, stop)`` is read.
        start: first position.
        stop: one past the last.
        table: uint32[slots, 8], changed in place.
        state: int64 small state, changed in place.
        discounts: float64[orders, 3].
        vocab_size: V.
        exclusion: whether lower orders count only what was new to the order above.
        document_token: the token that opens a document, or -1: contexts never reach back beyond it.
        document_local: forget all counts at the document token (the old records are unreachable from the new root).
        limit: stop early, after a token, if the next could bring the table to more than this many records.
        journal: int64[>= used + tokens * (orders + 5), 2], the undo log.
        journal_used: rows of it in use.
        probs: float64[stop - start, orders], out: probability of the token at each order.
        codes: int64[stop - start], out: context codes (see CODES_PER_ORDER).
        scratch: int64[orders].
    """
    orders = discounts.shape[0]
    slots = table.shape[0]
    floor = 1.0 / vocab_size
    j = journal_used
    for i in range(start, stop):
        y = np.uint32(tokens[i])
        depth = state[DEPTH]
        for k in range(depth + 1):
            scratch[k] = _find(table, table[state[CONTEXT + k], 2], y)
        p = floor
        best = 0
        best_n = np.int64(0)
        best_distinct = np.int64(0)
        for k in range(depth + 1):
            s = state[CONTEXT + k]
            n = table[s, 4]
            if n > 0:
                best = k + 1
                best_n = np.int64(n)
                best_distinct = np.int64(table[s, 5]) + np.int64(table[s, 6]) + np.int64(table[s, 7])
                d1 = discounts[k, 0]
                d2 = discounts[k, 1]
                d3 = discounts[k, 2]
                mass = (d1 * table[s, 5] + d2 * table[s, 6] + d3 * table[s, 7]) * p
                if scratch[k] >= 0:
                    c = table[scratch[k], 3]
                    if c == 1:
                        mass += 1.0 - d1
                    elif c == 2:
                        mass += 2.0 - d2
                    else:
                        mass += c - d3
                p = mass / n
            probs[i - start, k] = p
        for k in range(depth + 1, orders):
            probs[i - start, k] = p
        codes[i - start] = _code(best, best_n, best_distinct)

        seen_above = False
        for k in range(depth, -1, -1):
            s = state[CONTEXT + k]
            e = scratch[k]
            if e < 0:
                e = -1 - e
                while table[e, 2] != 0:  # a record that this very token added may have taken the slot
                    e += 1
                    if e == slots:
                        e = 1
                table[e, 0] = table[s, 2]
                table[e, 1] = y
                table[e, 2] = np.uint32(state[NEXT_IDENTITY])
                table[e, 3] = 1
                table[s, 4] += np.uint32(1)
                table[s, 5] += np.uint32(1)
                state[NEXT_IDENTITY] += 1
                state[USED] += 1
                scratch[k] = e
                journal[j, 0] = s * 4 + _EVENT_NEW
                journal[j, 1] = e
                j += 1
            elif not (exclusion and seen_above):
                c = table[e, 3]
                if c < 4294967295 and table[s, 4] < 4294967295:
                    table[e, 3] = c + np.uint32(1)
                    table[s, 4] += np.uint32(1)
                    if c == 1:
                        table[s, 5] -= np.uint32(1)
                        table[s, 6] += np.uint32(1)
                    elif c == 2:
                        table[s, 6] -= np.uint32(1)
                        table[s, 7] += np.uint32(1)
                    journal[j, 0] = s * 4 + _EVENT_AGAIN
                    journal[j, 1] = e
                    j += 1
                seen_above = True
        if tokens[i] == document_token:
            if document_local:
                for w in range(0, RECORD_WORDS, 2):
                    journal[j, 0] = table[0, w]
                    journal[j, 1] = table[0, w + 1]
                    j += 1
                journal[j, 0] = _ROOT_RESET
                j += 1
                for w in range(RECORD_WORDS):
                    table[0, w] = 0
                table[0, 2] = np.uint32(state[NEXT_IDENTITY])
                state[NEXT_IDENTITY] += 1
                state[DEPTH] = 0
            else:
                state[DEPTH] = min(1, orders - 1)
                if orders > 1:
                    state[CONTEXT + 1] = scratch[0]
        else:
            deeper = min(depth + 1, orders - 1)
            for k in range(deeper):
                state[CONTEXT + k + 1] = scratch[k]
            state[DEPTH] = deeper
        if state[USED] + orders > limit:
            return i + 1, j
    return stop, j


@njit(cache=True, _nrt=False)
def ngram_undo(table: Any, journal: Any, journal_used: Any) -> None:
    """Undo the journal's events, the last first. The small state is restored by its owner from a copy."""
    j = journal_used - 1
    while j >= 0:
        kind = journal[j, 0] % 4
        if kind == _ROOT_RESET:
            for w in range(0, RECORD_WORDS, 2):
                row = j - RECORD_WORDS // 2 + w // 2
                table[0, w] = np.uint32(journal[row, 0])
                table[0, w + 1] = np.uint32(journal[row, 1])
            j -= RECORD_WORDS // 2
        else:
            s = journal[j, 0] // 4
            e = journal[j, 1]
            table[s, 4] -= np.uint32(1)
            if kind == _EVENT_NEW:
                table[s, 5] -= np.uint32(1)
                for w in range(RECORD_WORDS):
                    table[e, w] = 0
            else:
                c = table[e, 3] - np.uint32(1)
                table[e, 3] = c
                if c == 1:
                    table[s, 6] -= np.uint32(1)
                    table[s, 5] += np.uint32(1)
                elif c == 2:
                    table[s, 7] -= np.uint32(1)
                    table[s, 6] += np.uint32(1)
        j -= 1


@njit(cache=True, _nrt=False)
def ngram_rows(table: Any, state: Any, discounts: Any, vocab_size: Any, rows: Any) -> Any:
    """Fill ``rows`` float64[orders, V] with every order's whole distribution; return the context code."""
    orders = discounts.shape[0]
    depth = state[DEPTH]
    code = np.int64(0)
    for k in range(orders):
        s = state[CONTEXT + k] if k <= depth else np.int64(0)
        n = table[s, 4] if k <= depth else np.uint32(0)
        if n > 0:
            distinct = np.int64(table[s, 5]) + np.int64(table[s, 6]) + np.int64(table[s, 7])
            code = np.int64(_code(k + 1, np.int64(n), distinct))
            d1 = discounts[k, 0]
            d2 = discounts[k, 1]
            d3 = discounts[k, 2]
        for y in range(vocab_size):
            p = rows[k - 1, y] if k > 0 else 1.0 / vocab_size
            if n > 0:
                mass = (d1 * table[s, 5] + d2 * table[s, 6] + d3 * table[s, 7]) * p
                e = _find(table, table[s, 2], np.uint32(y))
                if e >= 0:
                    c = table[e, 3]
                    if c == 1:
                        mass += 1.0 - d1
                    elif c == 2:
                        mass += 2.0 - d2
                    else:
                        mass += c - d3
                p = mass / n
            rows[k, y] = p
    return code


@njit(cache=True)
def ngram_rebuild(old: Any, state: Any, slot_of: Any, new: Any, keep: Any) -> None:
    """Move the records that ``keep`` (uint8 by identity) marks into the empty table ``new``, renumbered by age.

    ``slot_of`` maps identities to slots of ``old``. Totals of every context are counted anew from the surviving
    events, so that a context's ``n`` and ``t`` stay the sums over what exists. The state's context is carried over
    as far as its records survive.

    Args:
        old: the table that is left behind, unchanged.
        state: small state, changed in place.
        slot_of: int32[next identity]; -1 for identities without a record.
        new: an empty table.
        keep: uint8[next identity]; a kept record's parent must be kept, and parents are older than children.
    """
    root = old[0, 2]
    renamed = np.zeros(slot_of.shape[0], dtype=np.uint32)
    placed = np.zeros(slot_of.shape[0], dtype=np.uint32)
    renamed[root] = 1
    new[0, 2] = 1
    next_identity = np.uint32(2)
    for identity in range(slot_of.shape[0]):
        s = slot_of[identity]
        if s <= 0 or keep[identity] == 0:
            continue
        parent = old[s, 0]
        e = -1 - _find(new, renamed[parent], old[s, 1])
        new[e, 0] = renamed[parent]
        new[e, 1] = old[s, 1]
        new[e, 2] = next_identity
        new[e, 3] = old[s, 3]
        renamed[identity] = next_identity
        placed[identity] = e
        next_identity += np.uint32(1)
        home = placed[parent]  # 0, the root's slot, for the root
        new[home, 4] += old[s, 3]
        if old[s, 3] == 1:
            new[home, 5] += np.uint32(1)
        elif old[s, 3] == 2:
            new[home, 6] += np.uint32(1)
        else:
            new[home, 7] += np.uint32(1)
    depth = 0
    for k in range(1, state[DEPTH] + 1):
        identity = old[state[CONTEXT + k], 2]
        if keep[identity] == 0:
            break
        state[CONTEXT + k] = np.int64(placed[identity])
        depth = k
    state[DEPTH] = depth
    state[NEXT_IDENTITY] = next_identity
    state[USED] = np.int64(next_identity) - 2


@njit(cache=True, _nrt=False)
def ngram_identities(table: Any, slot_of: Any) -> None:
    """Fill ``slot_of`` int32[next identity] with the slot of each identity, -1 where there is none, 0 for the root."""
    slot_of[:] = -1
    for s in range(table.shape[0]):
        if table[s, 2] != 0:
            slot_of[table[s, 2]] = s


@njit(cache=True)
def ngram_choose(table: Any, slot_of: Any, state: Any, highest_count: Any, newest: Any, keep: Any) -> Any:
    """Mark in ``keep`` the records to keep; return how many. Children are newer than parents, so one pass decides.

    Dropped are records that cannot be reached (an ancestor is gone) and, where nothing kept hangs below them, records
    with a count of at most ``highest_count`` and an identity below ``newest``. The current context is always kept.
    """
    total = slot_of.shape[0]
    keep[:] = 0
    root = table[0, 2]
    keep[root] = 1
    for identity in range(total):
        s = slot_of[identity]
        if s > 0 and slot_of[table[s, 0]] >= 0 and keep[table[s, 0]] != 0:
            keep[identity] = 1
    held = np.zeros(total, dtype=np.uint8)
    for k in range(1, state[DEPTH] + 1):
        held[table[state[CONTEXT + k], 2]] = 1
    kept = 0
    for identity in range(total - 1, -1, -1):
        s = slot_of[identity]
        if s <= 0 or keep[identity] == 0:
            continue
        if held[identity] == 0 and table[s, 3] <= highest_count and identity < newest:
            keep[identity] = 0
        else:
            held[table[s, 0]] = 1
            kept += 1
    return kept
