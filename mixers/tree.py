"""A token's probability as a path of binary decisions, each mixed from all counts in the logistic domain.

Token ids are leaves of the balanced binary tree over their bits, highest first. At a node every order of the stream's
and of the document's counts states the probability of the right branch (interpolated Kneser-Ney sums over the two
subtrees), and the raw counts of both subtrees state another through a learned table. Their logits are weighed by five
weight vectors chosen by context, their sums weighed once more and squashed (logistic mixing: Mahoney 2005, PAQ; Mattern
2013). The branch probabilities of a node are p and 1 - p, so leaves sum to 1 whatever the state.

Weights and tables learn only after the whole token has been scored, so all nodes of a token see the same state and
the full row is one pass over the nodes.

Counts live in lists (:mod:`evalkit.mixers.tree_lists`), so one walk over a context's block yields the sums along a
path. Sums are integers (discounts in 1/256), hence the same in any order.

Kernels of this module call only functions of this module: numba's file cache checks no other file for changes. Those
that allocate nothing are compiled without reference counting, whose atomic operations took 40% of the time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from evalkit.mixers.tree_lists import CONTEXT, CONTEXT_TOP, DEPTH, DOCUMENT_STORE, POOL_TOP, PREVIOUS, STREAM_STORE
from evalkit.mixers.tree_work import SETS

UNIT = 256
"""Discounted counts are held in units of 1/256."""
LEVEL_STARTS = (0, 1, 2, 3, 4, 5, 7, 10, 15, 23, 41, 81)
"""Size classes of a raw count in the learned tables begin at these counts."""
LEVELS = len(LEVEL_STARTS)
CODES_PER_ORDER = 3 * LEVELS
"""Context codes: ``36 (1 + highest order with counts, or 0) + 3 (size class of its n) + class of distinct tokens``."""
LARGEST_COUNT = 65535
WEIGHTED_NODES = 256
"""Nodes (by number, the root is 1) that have a weight vector of their own; deeper ones share one for each bit."""
TOKEN_ROWS = 1024
"""Weight vectors chosen by one earlier token; ids beyond share them."""
SQUASH_SCALE = 4096 / 24.0
"""Cells a nat of the tabled sigmoid, which spans -12 to 12."""
_CLIP = 1e-7


@njit(cache=True, _nrt=False)
def _code(order: Any, n: Any, distinct: Any, levels: Any) -> Any:
    """Return the context code of a store whose highest order with counts is ``order - 1``."""
    return (order * LEVELS + levels[min(n, 81)]) * 3 + max(min(distinct, 3) - 1, 0)


@njit(cache=True, _nrt=False)
def _leaves(node: Any, depth: Any, bits: Any, vocab_size: Any) -> Any:
    """Return how many tokens lie below a node (1 is the root) at ``depth``."""
    width = 1 << (bits - depth)
    low = (node << (bits - depth)) - (1 << bits)
    return max(0, min(low + width, vocab_size) - low)


@njit(cache=True, _nrt=False)
def _logs(
    ratios: Any, raw: Any, mantissas: Any, mantissas_raw: Any, exponents: Any, rows: Any, columns: Any, x: Any
) -> None:
    """Fill ``x[:rows, :columns]`` with ln of the first ``rows * columns`` positive normal ``ratios``, within 2e-8.

    A series instead of the library's logarithm, as plain loops that compile to vector instructions. ``raw`` and
    ``mantissas_raw`` are int64 views of ``ratios`` and ``mantissas``.
    """
    n = rows * columns
    for i in range(n):
        # Split around sqrt(1/2), so that the mantissa lies in [0.707, 1.414].
        b = raw[i] - 0x3FE6A09E667F3BCD
        exponents[i] = b >> 52
        mantissas_raw[i] = (b & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD
    for i in range(n):
        m = mantissas[i]
        t = (m - 1.0) / (m + 1.0)
        u = t * t
        series = 1.0 + u * (1 / 3 + u * (1 / 5 + u * (1 / 7 + u * (1 / 9 + u / 11))))
        ratios[i] = exponents[i] * 0.6931471805599453 + 2.0 * t * series
    for r in range(rows):
        for k in range(columns):
            x[r, k] = ratios[r * columns + k]


@njit(cache=True, _nrt=False)
def _squash(x: Any) -> Any:
    return 1.0 / (1.0 + math.exp(-x))


@njit(cache=True, _nrt=False)
def _inputs(
    orders: Any,
    document_orders: Any,
    inverses: Any,
    back_off: Any,
    left: Any,
    right: Any,
    left_count: Any,
    right_count: Any,
    left_prior: Any,
    right_prior: Any,
    bit: Any,
    bits: Any,
    node: Any,
    top: Any,
    previous: Any,
    levels: Any,
    tables: Any,
    stretch: Any,
    r: Any,
    ratios: Any,
    x: Any,
    cells: Any,
    at: Any,
) -> None:
    """Fill row ``r`` of a node's odds ``ratios``, table inputs in ``x``, table ``cells`` and weight rows ``at``.

    ``left``, ``right``: int64[K], discounted counts of the subtrees in units; ``left_count``, ``right_count``: raw;
    ``inverses``: float64[K], 1 / (units of n) at each order, 0 without counts; ``back_off``: float64[K], the weight of
    the next lower order.
    The weight rows are chosen by depth and bit, by both depths, by the node itself and by each of the two
    previous tokens.
    """
    every = orders + document_orders
    deep = 0
    document_deep = 0
    place = every
    low = left_prior
    high = right_prior
    for k in range(every):
        if k == orders:
            low = left_prior
            high = right_prior
        if inverses[k] > 0.0:
            low = left[k] * inverses[k] + back_off[k] * low
            high = right[k] * inverses[k] + back_off[k] * high
        ratios[r * every + k] = high / low
        n0 = left_count[k]
        n1 = right_count[k]
        if n0 + n1 > 0:
            if k < orders:
                deep = k + 1
            else:
                document_deep = k - orders + 1
        if k == 0 or k == orders:
            cells[r, k] = -1  # nothing below backs the first order: its raw counts say what its odds say
            continue
        if n0 + n1 == 0:
            cells[r, k] = -1
            x[r, place] = 0.0
        else:
            cell = ((k * bits + bit) * LEVELS + levels[min(n0, 81)]) * LEVELS + levels[min(n1, 81)]
            cells[r, k] = cell
            x[r, place] = stretch[min(int(tables[cell, 0] * 4096.0), 4095)]
        place += 1
    at[r, 0] = deep * bits + bit
    base = (orders + 1) * bits
    at[r, 1] = base + document_deep * (orders + 1) + deep
    base += (orders + 1) * (document_orders + 1)
    at[r, 2] = base + (node if node < top else top + bit)
    base += top + bits
    at[r, 3] = base + (previous & 0xFFFF) % TOKEN_ROWS
    base += TOKEN_ROWS
    at[r, 4] = base + (previous >> 16) % TOKEN_ROWS


@njit(cache=True, _nrt=False)
def _mix(x: Any, r: Any, weights: Any, finals: Any, at: Any, dots: Any) -> Any:
    """Return the probability of the right branch; fill row ``r`` of ``dots`` with each weight vector's logit."""
    inputs = x.shape[1]
    logit = 0.0
    for j in range(SETS):
        row = at[r, j]
        a = 0.0
        b = 0.0
        c = 0.0
        d = 0.0
        for q in range(0, inputs, 4):
            a += weights[row, q] * x[r, q]
            b += weights[row, q + 1] * x[r, q + 1]
            c += weights[row, q + 2] * x[r, q + 2]
            d += weights[row, q + 3] * x[r, q + 3]
        a = (a + c) + (b + d)
        dots[r, j] = a
        logit += finals[at[r, 0], j] * a
    p = _squash(logit)
    return min(max(p, _CLIP), 1.0 - _CLIP)


@njit(cache=True, _nrt=False)
def _walk(pool: Any, contexts: Any, c: Any, y: Any, level_of: Any, units: Any, k: Any, mass: Any, count: Any) -> Any:
    """Sum a context's successors by how many leading bits they share with ``y``.

    Fills row ``k`` of ``mass`` and ``count`` int64[K, bits + 1] (zero before); returns the place of y's entry or -1.
    """
    word = contexts[c]
    offset = np.int64(word & np.uint64(0xFFFFFFFF))
    length = np.int64((word >> np.uint64(32)) & np.uint64(0xFFFF))
    place = -1
    for i in range(offset, offset + length):
        entry = np.int64(pool[i] & np.uint64(0xFFFFFFFF))
        token = entry & 0xFFFF
        n = entry >> 16
        shared = level_of[token ^ y]
        mass[k, shared] += n * UNIT - units[k, min(n, 3)]
        count[k, shared] += n
        if token == y:
            place = i
    return place


@njit(cache=True, _nrt=False)
def _write(array: Any, which: Any, index: Any, value: Any, journal: Any, j: Any) -> Any:
    """Set one word and log what it was; return the journal's new length."""
    journal[j, 0] = index * 4 + which
    journal[j, 1] = np.int64(array[index])
    array[index] = value
    return j + 1


@njit(cache=True, _nrt=False)
def _append(pool: Any, contexts: Any, state: Any, which: Any, c: Any, token: Any, journal: Any, j: Any) -> Any:
    """Add a successor with count 1 to a context; return (its place in the pool, the journal's new length)."""
    word = np.int64(contexts[c])
    offset = word & 0xFFFFFFFF
    length = (word >> 32) & 0xFFFF
    room = (word >> 48) & 0x1F  # capacity is 2 ** (room - 1), 0 for none
    if room == 0 or length == (1 << (room - 1)):
        new = state[POOL_TOP]
        room += 1
        state[POOL_TOP] = new + (1 << (room - 1))
        for i in range(1 << (room - 1)):
            value = np.uint64(0)
            if i < length:
                value = pool[offset + i]
            elif i == length:
                value = np.uint64(token | (1 << 16))
            if which == DOCUMENT_STORE:
                j = _write(pool, which, new + i, value, journal, j)  # an earlier document may have stood here
            else:
                pool[new + i] = value
        offset = new
    else:
        j = _write(pool, which, offset + length, np.uint64(token | (1 << 16)), journal, j)
    j = _write(contexts, which + 1, c, np.uint64(offset | ((length + 1) << 32) | (room << 48)), journal, j)
    return offset + length, j


@njit(cache=True, _nrt=False)
def _learn(
    pool: Any,
    contexts: Any,
    state: Any,
    which: Any,
    orders: Any,
    y: Any,
    bits: Any,
    units: Any,
    first: Any,
    heap: Any,
    heap_count: Any,
    places: Any,
    journal: Any,
    j: Any,
) -> Any:
    """Count ``y`` after the current contexts of one store (with update exclusion) and move on; return the journal.

    Order 0 lives in the dense ``heap`` (units below each node) and ``heap_count``; its list, block 0 with one entry for
    each token, only points to the contexts of order 1. ``places``: where y's entry stands in each order's list.
    """
    depth = state[DEPTH]
    seen = False
    for k in range(depth, -1, -1):
        if k == 0:
            n = heap_count[(1 << bits) + y]
            if n == 0 or not seen:
                gain = UNIT
                if n == 0:
                    gain = UNIT - units[first, 1]
                elif n < 3:
                    gain = UNIT + units[first, n] - units[first, n + 1]
                node = (1 << bits) + y
                while node > 0:
                    heap[node] += gain
                    heap_count[node] += 1
                    node >>= 1
            places[0] = y
        elif places[k] < 0:
            places[k], j = _append(pool, contexts, state, which, state[CONTEXT + k], y, journal, j)
        else:
            if not seen:
                entry = pool[places[k]]
                if (np.int64(entry) >> 16) & 0xFFFF < LARGEST_COUNT:
                    j = _write(pool, which, places[k], entry + np.uint64(1 << 16), journal, j)
            seen = True
    deeper = min(depth + 1, orders - 1)
    for k in range(deeper, 0, -1):
        entry = pool[places[k - 1]]
        child = np.int64(entry >> np.uint64(32))
        if child == 0:
            child = state[CONTEXT_TOP]
            state[CONTEXT_TOP] += 1
            if which == DOCUMENT_STORE:
                j = _write(contexts, which + 1, child, np.uint64(0), journal, j)
            else:
                contexts[child] = np.uint64(0)
            j = _write(pool, which, places[k - 1], entry | (np.uint64(child) << np.uint64(32)), journal, j)
        state[CONTEXT + k] = child
    state[DEPTH] = deeper
    return j


@njit(cache=True, _nrt=False, nogil=True)
def tree_pass(
    tokens: Any,
    start: Any,
    vocab_size: Any,
    bits: Any,
    document_token: Any,
    orders: Any,
    document_orders: Any,
    pool: Any,
    contexts: Any,
    state: Any,
    heap: Any,
    heap_count: Any,
    document_pool: Any,
    document_contexts: Any,
    document_state: Any,
    document_heap: Any,
    document_heap_count: Any,
    units: Any,
    level_of: Any,
    levels: Any,
    tables: Any,
    stretch: Any,
    weights: Any,
    finals: Any,
    squashed: Any,
    rate: Any,
    final_rate: Any,
    journal: Any,
    journal_used: Any,
    sums: Any,
    nodes: Any,
    logp: Any,
    codes: Any,
    probs: Any,
) -> Any:
    """Score then learn the tokens from ``start`` on; return (position reached, journal used).

    Fills ``logp`` float64[T], the context ``codes`` int64[T, 2] of the stream's and the document's counts, and
    ``probs`` float64[T, K], what each order alone (Kneser-Ney) gave the token.
    Stops early, after a token, when a store has too little room left for the next.
    """
    every = orders + document_orders
    inputs = weights.shape[1]
    top = min(WEIGHTED_NODES, 1 << bits)
    (
        mass,
        count,
        inverses,
        back_off,
        places,
        document_places,
        left,
        right,
        left_count,
        right_count,
        below,
        below_count,
    ) = sums
    x, cells, at, dots, asked, right_prob, ratios, raw, mantissas, mantissas_raw, exponents = nodes
    inverse = 1.0 / vocab_size
    j = journal_used
    margin = (orders + document_orders) * 2 * (1 << bits)
    for t in range(start, tokens.shape[0]):
        y = tokens[t]
        previous = state[PREVIOUS]
        # The counts along y's path: mass[k, b] sums the successors that part from y at bit b.
        for k in range(every):
            for b in range(bits + 1):
                mass[k, b] = 0
                count[k, b] = 0
        leaf = (1 << bits) + y
        mass[0, bits] = heap[leaf]
        count[0, bits] = heap_count[leaf]
        for b in range(bits):
            side = (leaf >> (bits - 1 - b)) ^ 1
            mass[0, b] = heap[side]
            count[0, b] = heap_count[side]
        for k in range(1, state[DEPTH] + 1):
            places[k] = _walk(pool, contexts, state[CONTEXT + k], y, level_of, units, k, mass, count)
        if document_orders > 0:
            mass[orders, bits] = document_heap[leaf]
            count[orders, bits] = document_heap_count[leaf]
            for b in range(bits):
                side = (leaf >> (bits - 1 - b)) ^ 1
                mass[orders, b] = document_heap[side]
                count[orders, b] = document_heap_count[side]
            for o in range(1, document_state[DEPTH] + 1):
                document_places[o] = _walk(
                    document_pool,
                    document_contexts,
                    document_state[CONTEXT + o],
                    y,
                    level_of,
                    units,
                    orders + o,
                    mass,
                    count,
                )
        for k in range(every):
            m = np.int64(0)
            n = np.int64(0)
            for b in range(bits + 1):
                m += mass[k, b]
                n += count[k, b]
            inverses[k] = 0.0
            if k == 0 or k == orders:
                codes[t, min(k, 1)] = 0
            if n > 0:
                inverses[k] = 1.0 / (n * UNIT)
                back_off[k] = (n * UNIT - m) * inverses[k]
                if k < orders:
                    distinct = np.int64(contexts[state[CONTEXT + k]] >> np.uint64(32)) & 0xFFFF if k > 0 else 3
                    codes[t, 0] = _code(k + 1, n, distinct, levels)
                else:
                    o = k - orders
                    distinct = 3
                    if o > 0:
                        distinct = np.int64(document_contexts[document_state[CONTEXT + o]] >> np.uint64(32)) & 0xFFFF
                    codes[t, 1] = _code(o + 1, n, distinct, levels)
        share = inverse
        for k in range(every):
            if k == orders:
                share = inverse
            if inverses[k] > 0.0:
                share = mass[k, bits] * inverses[k] + back_off[k] * share
            probs[t, k] = share
        for k in range(every):
            below[k] = mass[k, bits]
            below_count[k] = count[k, bits]
        # From the leaf up, so that what lies below is at hand.
        for bit in range(bits - 1, -1, -1):
            node = ((1 << bits) + y) >> (bits - bit)
            branch = (y >> (bits - 1 - bit)) & 1
            left_leaves = _leaves(2 * node, bit + 1, bits, vocab_size)
            right_leaves = _leaves(2 * node + 1, bit + 1, bits, vocab_size)
            asked[bit] = 1 if left_leaves > 0 and right_leaves > 0 else 0
            if asked[bit]:
                for k in range(every):
                    if branch:
                        left[k] = mass[k, bit]
                        left_count[k] = count[k, bit]
                        right[k] = below[k]
                        right_count[k] = below_count[k]
                    else:
                        right[k] = mass[k, bit]
                        right_count[k] = count[k, bit]
                        left[k] = below[k]
                        left_count[k] = below_count[k]
                _inputs(
                    orders,
                    document_orders,
                    inverses,
                    back_off,
                    left,
                    right,
                    left_count,
                    right_count,
                    left_leaves * inverse,
                    right_leaves * inverse,
                    bit,
                    bits,
                    node,
                    top,
                    previous,
                    levels,
                    tables,
                    stretch,
                    bit,
                    ratios,
                    x,
                    cells,
                    at,
                )
            for k in range(every):
                below[k] += mass[k, bit]
                below_count[k] += count[k, bit]
        _logs(ratios, raw, mantissas, mantissas_raw, exponents, bits, every, x)
        p = 1.0
        for bit in range(bits):
            if asked[bit]:
                q = _mix(x, bit, weights, finals, at, dots)
                p *= q if (y >> (bits - 1 - bit)) & 1 else 1.0 - q
                right_prob[bit] = q
        logp[t] = math.log(p)

        for bit in range(bits):
            if asked[bit] == 0:
                continue
            branch = (y >> (bits - 1 - bit)) & 1
            error = branch - right_prob[bit]
            for w in range(SETS):
                row = at[bit, w]
                # How far this vector alone was off; a coarse sigmoid will do for a step.
                place = int((min(max(dots[bit, w], -11.99), 11.99) + 12.0) * SQUASH_SCALE)
                step = rate * (branch - squashed[place])
                finals[at[bit, 0], w] += final_rate * error * dots[bit, w]
                for i in range(inputs):
                    weights[row, i] += step * x[bit, i]
            for k in range(every):
                cell = cells[bit, k]
                if cell >= 0:
                    seen = tables[cell, 1]
                    tables[cell, 0] += (branch - tables[cell, 0]) / (seen + 1.5)
                    if seen < 255.0:
                        tables[cell, 1] = seen + 1.0
        j = _learn(pool, contexts, state, STREAM_STORE, orders, y, bits, units, 0, heap, heap_count, places, journal, j)
        state[PREVIOUS] = y | ((state[PREVIOUS] & 0xFFFF) << 16)
        if y == document_token:
            state[DEPTH] = min(1, orders - 1)
        if document_orders > 0:
            full = (
                document_state[POOL_TOP] + margin > document_pool.shape[0]
                or document_state[CONTEXT_TOP] + every > document_contexts.shape[0]
            )
            if y == document_token or full:
                document_heap[:] = 0
                document_heap_count[:] = 0
                for i in range(1 << bits):
                    # Only the words that hold something are logged: undoing restores them.
                    if document_pool[i] != 0:
                        j = _write(document_pool, DOCUMENT_STORE, i, np.uint64(0), journal, j)
                document_state[POOL_TOP] = 1 << bits
                document_state[CONTEXT_TOP] = 1
                document_state[DEPTH] = 0
            else:
                j = _learn(
                    document_pool,
                    document_contexts,
                    document_state,
                    DOCUMENT_STORE,
                    document_orders,
                    y,
                    bits,
                    units,
                    orders,
                    document_heap,
                    document_heap_count,
                    document_places,
                    journal,
                    j,
                )
        if state[POOL_TOP] + margin > pool.shape[0] or state[CONTEXT_TOP] + every > contexts.shape[0]:
            return t + 1, j
    return tokens.shape[0], j


@njit(cache=True)
def tree_row(
    vocab_size: Any,
    bits: Any,
    orders: Any,
    document_orders: Any,
    pool: Any,
    contexts: Any,
    state: Any,
    heap: Any,
    heap_count: Any,
    document_pool: Any,
    document_contexts: Any,
    document_state: Any,
    document_heap: Any,
    document_heap_count: Any,
    units: Any,
    levels: Any,
    tables: Any,
    stretch: Any,
    weights: Any,
    finals: Any,
    logp: Any,
    codes: Any,
    rows: Any,
) -> None:
    """State every token's log-probability at the current position.

    Fills ``logp`` float64[V], ``codes`` int64[2] as above, and ``rows`` float64[K, V], each order's distribution.
    """
    every = orders + document_orders
    inputs = weights.shape[1]
    top = min(WEIGHTED_NODES, 1 << bits)
    size = 1 << bits
    mass = np.zeros((every, 2 * size), dtype=np.int64)
    count = np.zeros((every, 2 * size), dtype=np.int64)
    inverses = np.zeros(every)
    back_off = np.zeros(every)
    for k in range(every):
        document = k >= orders
        o = k - orders if document else k
        small = document_state if document else state
        if o > small[DEPTH]:
            continue
        if o == 0:
            mass[k] = document_heap if document else heap
            count[k] = document_heap_count if document else heap_count
        else:
            head = np.int64((document_contexts if document else contexts)[small[CONTEXT + o]])
            entries = document_pool if document else pool
            offset = head & 0xFFFFFFFF
            for i in range(offset, offset + ((head >> 32) & 0xFFFF)):
                entry = np.int64(entries[i] & np.uint64(0xFFFFFFFF))
                leaf = size + (entry & 0xFFFF)
                n = entry >> 16
                mass[k, leaf] += n * UNIT - units[k, min(n, 3)]
                count[k, leaf] += n
            for node in range(size - 1, 0, -1):
                mass[k, node] = mass[k, 2 * node] + mass[k, 2 * node + 1]
                count[k, node] = count[k, 2 * node] + count[k, 2 * node + 1]
        if count[k, 1] > 0:
            distinct = np.int64(3)
            if o > 0:
                word = (document_contexts if document else contexts)[small[CONTEXT + o]]
                distinct = np.int64(word >> np.uint64(32)) & 0xFFFF
            codes[1 if document else 0] = _code(o + 1, count[k, 1], distinct, levels)
            inverses[k] = 1.0 / (count[k, 1] * UNIT)
            back_off[k] = (count[k, 1] * UNIT - mass[k, 1]) * inverses[k]
    probs = np.zeros(2 * size)
    probs[1] = 1.0
    left = np.zeros(every, dtype=np.int64)
    right = np.zeros(every, dtype=np.int64)
    left_count = np.zeros(every, dtype=np.int64)
    right_count = np.zeros(every, dtype=np.int64)
    x = np.zeros((1, inputs))
    cells = np.zeros((1, every), dtype=np.int64)
    at = np.zeros((1, SETS), dtype=np.int64)
    dots = np.zeros((1, SETS))
    ratios = np.ones(every)
    raw = ratios.view(np.int64)
    mantissas = np.ones(every)
    mantissas_raw = mantissas.view(np.int64)
    exponents = np.zeros(every)
    inverse = 1.0 / vocab_size
    previous = state[PREVIOUS]
    for bit in range(bits):
        for node in range(1 << bit, 2 << bit):
            left_leaves = _leaves(2 * node, bit + 1, bits, vocab_size)
            right_leaves = _leaves(2 * node + 1, bit + 1, bits, vocab_size)
            if left_leaves == 0:
                continue
            if right_leaves == 0:
                probs[2 * node] = probs[node]
                continue
            for k in range(every):
                left[k] = mass[k, 2 * node]
                right[k] = mass[k, 2 * node + 1]
                left_count[k] = count[k, 2 * node]
                right_count[k] = count[k, 2 * node + 1]
            _inputs(
                orders,
                document_orders,
                inverses,
                back_off,
                left,
                right,
                left_count,
                right_count,
                left_leaves * inverse,
                right_leaves * inverse,
                bit,
                bits,
                node,
                top,
                previous,
                levels,
                tables,
                stretch,
                0,
                ratios,
                x,
                cells,
                at,
            )
            _logs(ratios, raw, mantissas, mantissas_raw, exponents, 1, every, x)
            q = _mix(x, 0, weights, finals, at, dots)
            probs[2 * node] = probs[node] * (1.0 - q)
            probs[2 * node + 1] = probs[node] * q
    for y in range(vocab_size):
        logp[y] = math.log(probs[size + y])
        share = inverse
        for k in range(every):
            if k == orders:
                share = inverse
            if inverses[k] > 0.0:
                share = mass[k, size + y] * inverses[k] + back_off[k] * share
            rows[k, y] = share
