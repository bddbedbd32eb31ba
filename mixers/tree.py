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

Letters in all of them: V is the size of the vocabulary; K the number of orders, the stream's first and then the
document's; k one of them (its context has as many tokens, counted from 0 in each store); y a token; t a position; j how
many rows of the undo log are in use.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from evalkit.mixers.tree_lists import (
    CONTEXT,
    CONTEXT_TOP,
    DEPTH,
    DOCUMENT_STORE,
    LEVELS,
    POOL_TOP,
    PREVIOUS,
    STREAM_STORE,
)

Array = npt.NDArray[Any]

UNIT = 256
"""The tree holds discounted counts in units of 1/256."""
LEVEL_STARTS = (0, 1, 2, 3, 4, 5, 7, 10, 15, 23, 41, 81)
"""The size classes of a raw count, ``LEVELS`` of them, begin at these counts."""
LARGEST_COUNT = 65535
SETS = 5
"""Weight vectors in use at a node."""
WEIGHTED_NODES = 256
"""Nodes (by number, the root is 1) that have a weight vector of their own; deeper ones share one for each bit."""
TOKEN_ROWS = 1024
"""Weight vectors chosen by one earlier token; ids beyond share them."""
SQUASH_SCALE = 4096 / 24.0
"""Cells a nat of the tabled sigmoid, which spans -12 to 12."""
_CLIP = 1e-7


class Shape(NamedTuple):
    """What a store's numbers mean."""

    vocab_size: int
    bits: int  # of a token id
    document_token: int  # opens a document; -1 for none
    orders: int  # of the stream
    document_orders: int
    units: Array  # int64[K, 4], the discount of counts 1, 2 and 3 or more in units; of count 0 it is 0
    levels: Array  # int64[82], the size class of a count; larger ones are like 81


class Learned(NamedTuple):
    """What the tree learns beside its counts."""

    tables: Array  # float64[K * bits * LEVELS ** 2, 2], probability of the right branch and how often learned
    weights: Array  # float64[rows, inputs], the weight vectors
    finals: Array  # float64[(orders + 1) * bits, SETS], weights of the weight vectors' answers


class Curves(NamedTuple):
    """The tree's constants."""

    level_of: Array  # uint8[1 << bits], how many leading bits two tokens share, by their exclusive or
    stretch: Array  # float64[4096], the logit of a probability
    squashed: Array  # float64[4096], the sigmoid over [-12, 12]
    rate: float  # step of the weight vectors
    final_rate: float  # step of the weights of their answers


class Sums(NamedTuple):
    """Work arrays of the tree that hold sums over counts."""

    mass: Array  # int64[K, width], discounted counts in units
    counts: Array  # int64[K, width]
    inverses: Array  # float64[K], 1 / (units of n), 0 without counts
    back_off: Array  # float64[K], the weight of the next lower order
    places: Array  # int64[orders], where the token's entry stands in each order's list, -1 for nowhere
    document_places: Array  # int64[document orders]
    sides: Array  # int64[2, K], mass of a node's left and of its right subtree
    side_counts: Array  # int64[2, K]
    below: Array  # int64[K], mass of the path's node
    below_count: Array


class Nodes(NamedTuple):
    """Work arrays of the tree that hold the inputs and outputs of a number of nodes."""

    x: Array  # float64[nodes, inputs]
    cells: Array  # int64[nodes, K], rows of the tables in use, -1 for none
    rows: Array  # int64[nodes, SETS], weight vectors in use
    dots: Array  # float64[nodes, SETS], their answers
    asked: Array  # int64[nodes], 1 where both branches hold tokens
    right_prob: Array  # float64[nodes]
    ratios: Array  # float64[nodes * K], odds and then their logarithms
    raw: Array  # the same memory as int64
    mantissas: Array  # float64[nodes * K]
    raw_mantissas: Array  # the same memory as int64
    exponents: Array  # float64[nodes * K]


def input_count(orders: int, document_orders: int) -> int:
    """Return the length of a node's input vector, up to the next multiple of 8 (the rest stays zero).

    Every order gives the logit of its odds, and all but the first of each store the logit of its learned table.
    """
    used = orders + document_orders + (orders - 1) + max(document_orders - 1, 0)
    return (used + 7) // 8 * 8


def new_sums(orders: int, document_orders: int, width: int) -> Sums:
    """Return work arrays with ``width`` sums an order: 1 + bits for a path, 2 << bits for every node."""
    total = orders + document_orders
    paths = (np.zeros((total, width), dtype=np.int64) for _ in range(2))
    floats = (np.zeros(total) for _ in range(2))
    places = (np.zeros(max(count, 1), dtype=np.int64) for count in (orders, document_orders))
    sides = (np.zeros((2, total), dtype=np.int64) for _ in range(2))
    return Sums(*paths, *floats, *places, *sides, *(np.zeros(total, dtype=np.int64) for _ in range(2)))


def new_nodes(nodes: int, orders: int, document_orders: int) -> Nodes:
    """Return work arrays for so many nodes."""
    total = orders + document_orders
    ratios, mantissas = np.ones(nodes * total), np.ones(nodes * total)
    return Nodes(
        x=np.zeros((nodes, input_count(orders, document_orders))),
        cells=np.zeros((nodes, total), dtype=np.int64),
        rows=np.zeros((nodes, SETS), dtype=np.int64),
        dots=np.zeros((nodes, SETS)),
        asked=np.zeros(nodes, dtype=np.int64),
        right_prob=np.zeros(nodes),
        ratios=ratios,
        raw=ratios.view(np.int64),
        mantissas=mantissas,
        raw_mantissas=mantissas.view(np.int64),
        exponents=np.zeros(nodes * total),
    )


@njit(cache=True, _nrt=False)
def _write(array: Any, mark: Any, index: Any, value: Any, log: Any, j: Any) -> Any:
    """Set one word and log what it was; ``mark`` says of which array. Return the log's length."""
    log[j, 0] = index * 4 + mark
    log[j, 1] = np.int64(array[index])
    array[index] = value
    return j + 1


@njit(cache=True, _nrt=False)
def _append(lists: Any, store: Any, c: Any, token: Any, log: Any, j: Any) -> Any:
    """Add a successor with count 1 to a context; return (its place in the pool, the log's length)."""
    pool = lists.pool
    word = np.int64(lists.contexts[c])
    offset = word & 0xFFFFFFFF
    length = (word >> 32) & 0xFFFF
    room = (word >> 48) & 0x1F  # capacity is 2 ** (room - 1), 0 for none
    if room == 0 or length == (1 << (room - 1)):
        new = lists.state[POOL_TOP]
        room += 1
        lists.state[POOL_TOP] = new + (1 << (room - 1))
        for i in range(1 << (room - 1)):
            value = np.uint64(0)
            if i < length:
                value = pool[offset + i]
            elif i == length:
                value = np.uint64(token | (1 << 16))
            if store == DOCUMENT_STORE:
                j = _write(pool, store, new + i, value, log, j)  # an earlier document may have stood here
            else:
                pool[new + i] = value
        offset = new
    else:
        j = _write(pool, store, offset + length, np.uint64(token | (1 << 16)), log, j)
    j = _write(lists.contexts, store + 1, c, np.uint64(offset | ((length + 1) << 32) | (room << 48)), log, j)
    return offset + length, j


@njit(cache=True, _nrt=False)
def _learn(lists: Any, store: Any, shape: Any, first: Any, orders: Any, y: Any, places: Any, log: Any, j: Any) -> Any:
    """Count ``y`` after the current contexts of one store, then move the contexts on by ``y``; return the log's length.

    ``first`` is the place of the store's order 0 among all orders, ``places`` where y's entry stands in each order's
    list.
    """
    pool, contexts, state, heap, heap_count = lists
    depth = state[DEPTH]
    known = False
    for k in range(depth, -1, -1):
        c = state[CONTEXT + k]
        if k == 0:
            places[0] = y
            node = (1 << shape.bits) + y
            seen = heap_count[node]
            if seen == 0 or not known:
                gain = UNIT + shape.units[first, min(seen, 3)] - shape.units[first, min(seen + 1, 3)]
                while node > 0:
                    heap[node] += gain
                    heap_count[node] += 1
                    node >>= 1
        elif places[k] < 0:
            places[k], j = _append(lists, store, c, y, log, j)
        else:
            if not known:
                entry = pool[places[k]]
                seen = (np.int64(entry) >> 16) & 0xFFFF
                if seen < LARGEST_COUNT:
                    j = _write(pool, store, places[k], entry + np.uint64(1 << 16), log, j)
            known = True
    deeper = min(depth + 1, orders - 1)
    for k in range(deeper, 0, -1):
        entry = pool[places[k - 1]]
        child = np.int64(entry >> np.uint64(32))
        if child == 0:
            child = state[CONTEXT_TOP]
            state[CONTEXT_TOP] += 1
            if store == DOCUMENT_STORE:
                j = _write(contexts, store + 1, child, np.uint64(0), log, j)
            else:
                contexts[child] = np.uint64(0)
            j = _write(pool, store, places[k - 1], entry | (np.uint64(child) << np.uint64(32)), log, j)
        state[CONTEXT + k] = child
    state[DEPTH] = deeper
    state[PREVIOUS] = y | ((state[PREVIOUS] & 0xFFFF) << 16)
    return j


@njit(cache=True, _nrt=False)
def _is_full(lists: Any, shape: Any) -> Any:
    """Return whether a store may have too little room for the next token."""
    total = shape.orders + shape.document_orders
    margin = total * 2 * (1 << shape.bits)
    return (
        lists.state[POOL_TOP] + margin > lists.pool.shape[0]
        or lists.state[CONTEXT_TOP] + total > lists.contexts.shape[0]
    )


@njit(cache=True, _nrt=False)
def _leaves(node: Any, depth: Any, bits: Any, vocab_size: Any) -> Any:
    """Return how many tokens lie below a node (1 is the root) at ``depth``."""
    width = 1 << (bits - depth)
    low = (node << (bits - depth)) - (1 << bits)
    return max(0, min(low + width, vocab_size) - low)


@njit(cache=True, _nrt=False)
def _logs(nodes: Any, count: Any) -> None:
    """Put ln of the ``ratios`` of the first ``count`` nodes, positive and normal, into ``x``, within 2e-8.

    A series instead of the library's logarithm, as plain loops that compile to vector instructions.
    """
    ratios, raw, exponents = nodes.ratios, nodes.raw, nodes.exponents
    mantissas, raw_mantissas = nodes.mantissas, nodes.raw_mantissas
    columns = nodes.cells.shape[1]
    size = count * columns
    for i in range(size):
        # Split around sqrt(1/2), so that the mantissa lies in [0.707, 1.414].
        b = raw[i] - 0x3FE6A09E667F3BCD
        exponents[i] = b >> 52
        raw_mantissas[i] = (b & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD
    for i in range(size):
        m = mantissas[i]
        t = (m - 1.0) / (m + 1.0)
        u = t * t
        series = 1.0 + u * (1 / 3 + u * (1 / 5 + u * (1 / 7 + u * (1 / 9 + u / 11))))
        ratios[i] = exponents[i] * 0.6931471805599453 + 2.0 * t * series
    for r in range(count):
        for k in range(columns):
            nodes.x[r, k] = ratios[r * columns + k]


@njit(cache=True, _nrt=False)
def _inputs(
    shape: Any,
    curves: Any,
    tables: Any,
    sums: Any,
    nodes: Any,
    r: Any,
    bit: Any,
    node: Any,
    left_leaves: Any,
    right_leaves: Any,
    previous: Any,
) -> None:
    """Fill row ``r`` of ``nodes`` (odds, table inputs, table cells and weight rows) for a node at depth ``bit``.

    The subtrees' counts stand in ``sums``; ``left_leaves`` and ``right_leaves`` tell how many tokens lie below them.
    The weight rows are chosen by depth and bit, by both depths, by the node itself and by each of the two ``previous``
    tokens.
    """
    orders, document_orders, bits = shape.orders, shape.document_orders, shape.bits
    total = orders + document_orders
    inverse = 1.0 / shape.vocab_size
    deep = 0
    document_deep = 0
    place = total
    low = left_leaves * inverse
    high = right_leaves * inverse
    for k in range(total):
        if k == orders:
            low = left_leaves * inverse
            high = right_leaves * inverse
        if sums.inverses[k] > 0.0:
            low = sums.sides[0, k] * sums.inverses[k] + sums.back_off[k] * low
            high = sums.sides[1, k] * sums.inverses[k] + sums.back_off[k] * high
        nodes.ratios[r * total + k] = high / low
        left_count = sums.side_counts[0, k]
        right_count = sums.side_counts[1, k]
        if left_count + right_count > 0:
            if k < orders:
                deep = k + 1
            else:
                document_deep = k - orders + 1
        nodes.cells[r, k] = -1
        if k == 0 or k == orders:
            continue  # nothing below backs the first order: its raw counts say what its odds say
        nodes.x[r, place] = 0.0
        if left_count + right_count > 0:
            size = shape.levels[min(left_count, 81)] * LEVELS + shape.levels[min(right_count, 81)]
            cell = (k * bits + bit) * LEVELS * LEVELS + size
            nodes.cells[r, k] = cell
            nodes.x[r, place] = curves.stretch[min(int(tables[cell, 0] * 4096.0), 4095)]
        place += 1
    nodes.rows[r, 0] = deep * bits + bit
    base = (orders + 1) * bits
    nodes.rows[r, 1] = base + document_deep * (orders + 1) + deep
    base += (orders + 1) * (document_orders + 1)
    top = min(WEIGHTED_NODES, 1 << bits)
    nodes.rows[r, 2] = base + (node if node < top else top + bit)
    base += top + bits
    nodes.rows[r, 3] = base + (previous & 0xFFFF) % TOKEN_ROWS
    base += TOKEN_ROWS
    nodes.rows[r, 4] = base + (previous >> 16) % TOKEN_ROWS


@njit(cache=True, _nrt=False)
def _mix(nodes: Any, r: Any, learned: Any) -> Any:
    """Return the probability of the right branch; fill row ``r`` of ``dots`` with each weight vector's logit."""
    weights = learned.weights
    x = nodes.x
    logit = 0.0
    for s in range(SETS):
        row = nodes.rows[r, s]
        a = 0.0
        b = 0.0
        c = 0.0
        d = 0.0
        for q in range(0, x.shape[1], 4):
            a += weights[row, q] * x[r, q]
            b += weights[row, q + 1] * x[r, q + 1]
            c += weights[row, q + 2] * x[r, q + 2]
            d += weights[row, q + 3] * x[r, q + 3]
        a = (a + c) + (b + d)
        nodes.dots[r, s] = a
        logit += learned.finals[nodes.rows[r, 0], s] * a
    p = 1.0 / (1.0 + math.exp(-logit))
    return min(max(p, _CLIP), 1.0 - _CLIP)


@njit(cache=True, _nrt=False)
def _gather(lists: Any, shape: Any, first: Any, y: Any, level_of: Any, mass: Any, count: Any, places: Any) -> None:
    """Sum the successors of a store's current contexts by how many leading bits they share with ``y``.

    Fills the rows of ``mass`` and ``count`` int64[K, bits + 1] (zero before) from ``first`` on, and where y's entry
    stands in each order's list into ``places``.
    """
    bits = shape.bits
    leaf = (1 << bits) + y
    mass[first, bits] = lists.heap[leaf]
    count[first, bits] = lists.heap_count[leaf]
    for b in range(bits):
        side = (leaf >> (bits - 1 - b)) ^ 1
        mass[first, b] = lists.heap[side]
        count[first, b] = lists.heap_count[side]
    for o in range(1, lists.state[DEPTH] + 1):
        k = first + o
        word = np.int64(lists.contexts[lists.state[CONTEXT + o]])
        begin = word & 0xFFFFFFFF
        places[o] = -1
        for i in range(begin, begin + ((word >> 32) & 0xFFFF)):
            entry = np.int64(lists.pool[i] & np.uint64(0xFFFFFFFF))
            seen = entry >> 16
            shared = level_of[(entry & 0xFFFF) ^ y]
            mass[k, shared] += seen * UNIT - shape.units[k, min(seen, 3)]
            count[k, shared] += seen
            if entry & 0xFFFF == y:
                places[o] = i


@njit(cache=True, _nrt=False)
def _weigh(lists: Any, shape: Any, sums: Any, first: Any, k: Any, units: Any, total: Any, codes: Any, t: Any) -> None:
    """Fill in what order k's discounted counts (their sum in ``units``) and counts (sum ``total``) weigh.

    ``first`` is the place of the store's order 0 among all orders. Each order with counts replaces the context code.
    """
    sums.inverses[k] = 0.0
    if total > 0:
        sums.inverses[k] = 1.0 / (total * UNIT)
        sums.back_off[k] = (total * UNIT - units) * sums.inverses[k]
        distinct: Any = np.int64(3)
        if k > first:
            distinct = np.int64(lists.contexts[lists.state[CONTEXT + k - first]] >> np.uint64(32)) & 0xFFFF
        size_class = (k - first + 1) * LEVELS + shape.levels[min(total, 81)]
        codes[t, 1 if first > 0 else 0] = size_class * 3 + max(min(distinct, 3) - 1, 0)


@njit(cache=True, _nrt=False)
def _forget_document(document: Any, bits: Any, log: Any, j: Any) -> Any:
    """Empty the document's store; return the log's length."""
    document.heap[:] = 0
    document.heap_count[:] = 0
    for i in range(1 << bits):
        # Only the words that hold something are logged: undoing restores them.
        if document.pool[i] != 0:
            j = _write(document.pool, DOCUMENT_STORE, i, np.uint64(0), log, j)
    document.state[POOL_TOP] = 1 << bits
    document.state[CONTEXT_TOP] = 1
    document.state[DEPTH] = 0
    return j


@njit(cache=True, _nrt=False, nogil=True)
def tree_pass(
    tokens: Any,
    start: Any,
    shape: Any,
    stream: Any,
    document: Any,
    learned: Any,
    curves: Any,
    sums: Any,
    nodes: Any,
    log: Any,
    logged: Any,
    logp: Any,
    codes: Any,
) -> Any:
    """Score then learn the tokens from ``start`` on; return (position reached, rows of the undo log in use).

    Fills ``logp`` float64[T] and the context ``codes`` int64[T, 2] (zero before) of the stream's and the document's
    counts. Stops early, after a token, when a store has too little room left for the next.
    """
    vocab_size, bits, orders, document_orders = shape.vocab_size, shape.bits, shape.orders, shape.document_orders
    total = orders + document_orders
    tables, weights, finals = learned
    mass, count = sums.mass, sums.counts
    j = logged
    for t in range(start, tokens.shape[0]):
        y = tokens[t]
        # The counts along y's path: mass[k, b] sums the successors that part from y at bit b.
        for k in range(total):
            for b in range(bits + 1):
                mass[k, b] = 0
                count[k, b] = 0
        _gather(stream, shape, 0, y, curves.level_of, mass, count, sums.places)
        if document_orders > 0:
            _gather(document, shape, orders, y, curves.level_of, mass, count, sums.document_places)
        for k in range(total):
            m = np.int64(0)
            n = np.int64(0)
            for b in range(bits + 1):
                m += mass[k, b]
                n += count[k, b]
            if k < orders:
                _weigh(stream, shape, sums, 0, k, m, n, codes, t)
            else:
                _weigh(document, shape, sums, orders, k, m, n, codes, t)
            sums.below[k] = mass[k, bits]
            sums.below_count[k] = count[k, bits]
        # From the leaf up, so that what lies below is at hand.
        for bit in range(bits - 1, -1, -1):
            node = ((1 << bits) + y) >> (bits - bit)
            branch = (y >> (bits - 1 - bit)) & 1
            left_leaves = _leaves(2 * node, bit + 1, bits, vocab_size)
            right_leaves = _leaves(2 * node + 1, bit + 1, bits, vocab_size)
            nodes.asked[bit] = 1 if left_leaves > 0 and right_leaves > 0 else 0
            if nodes.asked[bit]:
                for k in range(total):
                    sums.sides[branch, k] = sums.below[k]
                    sums.side_counts[branch, k] = sums.below_count[k]
                    sums.sides[1 - branch, k] = mass[k, bit]
                    sums.side_counts[1 - branch, k] = count[k, bit]
                previous = stream.state[PREVIOUS]
                _inputs(shape, curves, tables, sums, nodes, bit, bit, node, left_leaves, right_leaves, previous)
            for k in range(total):
                sums.below[k] += mass[k, bit]
                sums.below_count[k] += count[k, bit]
        _logs(nodes, bits)
        p = 1.0
        for bit in range(bits):
            if nodes.asked[bit]:
                q = _mix(nodes, bit, learned)
                p *= q if (y >> (bits - 1 - bit)) & 1 else 1.0 - q
                nodes.right_prob[bit] = q
        logp[t] = math.log(p)

        for bit in range(bits):
            if nodes.asked[bit] == 0:
                continue
            branch = (y >> (bits - 1 - bit)) & 1
            error = branch - nodes.right_prob[bit]
            for s in range(SETS):
                row = nodes.rows[bit, s]
                answer = nodes.dots[bit, s]
                # How far this vector alone was off; a coarse sigmoid will do for a step.
                place = int((min(max(answer, -11.99), 11.99) + 12.0) * SQUASH_SCALE)
                step = curves.rate * (branch - curves.squashed[place])
                finals[nodes.rows[bit, 0], s] += curves.final_rate * error * answer
                for i in range(weights.shape[1]):
                    weights[row, i] += step * nodes.x[bit, i]
            for k in range(total):
                cell = nodes.cells[bit, k]
                if cell >= 0:
                    seen = tables[cell, 1]
                    tables[cell, 0] += (branch - tables[cell, 0]) / (seen + 1.5)
                    if seen < 255.0:
                        tables[cell, 1] = seen + 1.0
        j = _learn(stream, STREAM_STORE, shape, 0, orders, y, sums.places, log, j)
        if y == shape.document_token:
            stream.state[DEPTH] = min(1, orders - 1)
        if document_orders > 0:
            if y == shape.document_token or _is_full(document, shape):
                j = _forget_document(document, bits, log, j)
            else:
                j = _learn(document, DOCUMENT_STORE, shape, orders, document_orders, y, sums.document_places, log, j)
        if _is_full(stream, shape):
            return t + 1, j
    return tokens.shape[0], j


@njit(cache=True, _nrt=False)
def _spread(lists: Any, shape: Any, first: Any, k: Any, mass: Any, count: Any) -> None:
    """Fill order k's rows of ``mass`` and ``count`` int64[K, 2 << bits] with the sums below every node of the tree."""
    size = 1 << shape.bits
    mass[k] = 0
    count[k] = 0
    if k - first > lists.state[DEPTH]:
        return
    if k == first:
        for node in range(2 * size):
            mass[k, node] = lists.heap[node]
            count[k, node] = lists.heap_count[node]
        return
    word = np.int64(lists.contexts[lists.state[CONTEXT + k - first]])
    begin = word & 0xFFFFFFFF
    for i in range(begin, begin + ((word >> 32) & 0xFFFF)):
        entry = np.int64(lists.pool[i] & np.uint64(0xFFFFFFFF))
        seen = entry >> 16
        mass[k, size + (entry & 0xFFFF)] = seen * UNIT - shape.units[k, min(seen, 3)]
        count[k, size + (entry & 0xFFFF)] = seen
    for node in range(size - 1, 0, -1):
        mass[k, node] = mass[k, 2 * node] + mass[k, 2 * node + 1]
        count[k, node] = count[k, 2 * node] + count[k, 2 * node + 1]


@njit(cache=True)
def tree_row(
    shape: Any, stream: Any, document: Any, learned: Any, curves: Any, sums: Any, nodes: Any, logp: Any, codes: Any
) -> None:
    """Fill ``logp`` float64[V] with every token's log-probability at the current position, ``codes`` int64[1, 2].

    ``sums`` has a column for every node of the tree, ``nodes`` one row.
    """
    orders, bits = shape.orders, shape.bits
    size = 1 << bits
    mass, count = sums.mass, sums.counts
    for k in range(orders + shape.document_orders):
        first = orders if k >= orders else 0
        lists = document if k >= orders else stream
        _spread(lists, shape, first, k, mass, count)
        _weigh(lists, shape, sums, first, k, mass[k, 1], count[k, 1], codes, 0)
    probs = np.zeros(2 * size)
    probs[1] = 1.0
    for bit in range(bits):
        for node in range(1 << bit, 2 << bit):
            left_leaves = _leaves(2 * node, bit + 1, bits, shape.vocab_size)
            right_leaves = _leaves(2 * node + 1, bit + 1, bits, shape.vocab_size)
            if left_leaves == 0:
                continue
            if right_leaves == 0:
                probs[2 * node] = probs[node]
                continue
            for k in range(orders + shape.document_orders):
                for side in range(2):
                    sums.sides[side, k] = mass[k, 2 * node + side]
                    sums.side_counts[side, k] = count[k, 2 * node + side]
            previous = stream.state[PREVIOUS]
            _inputs(shape, curves, learned.tables, sums, nodes, 0, bit, node, left_leaves, right_leaves, previous)
            _logs(nodes, 1)
            q = _mix(nodes, 0, learned)
            probs[2 * node] = probs[node] * (1.0 - q)
            probs[2 * node + 1] = probs[node] * q
    for y in range(shape.vocab_size):
        logp[y] = math.log(probs[size + y])
