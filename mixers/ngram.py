"""Online n-gram counts of every order in one sparse table, and their interpolated Kneser-Ney probabilities.

One record per n-gram. The record of ``c y`` is two things: the count of token ``y`` after context ``c``, and, one
token later, the context ``c y`` of the next order with its own totals. So the contexts of all orders at position
``i + 1`` are the records that position ``i`` looked up, every look-up is keyed by (identity of the context's record,
token), both compared, and the look-ups of one position do not wait for one another.

Where a look-up starts is a hash of the n-gram's tokens alone. It is known many tokens ahead, so the record is fetched
from memory long before it is needed: a table of 1 GB costs little more than one that fits a cache. Slots follow the
hash in order, so that moving to a larger table reads and writes both from front to back; and a step of the hash can be
undone, so that a record's hash and token lead to its context's record.

A full table drops n-grams as it takes up new ones: ``_drop`` goes round the slots, on from where it stopped the last
time, and drops what is old, rare and without longer n-grams below it, no more than is needed.

Probabilities are those of interpolated Kneser-Ney (Kneser & Ney 1995; Chen & Goodman 1999, three discounts):

    p_k(y) = (max(c(y) - d(c(y)), 0) + (d1 t1 + d2 t2 + d3 t3) p_{k-1}(y)) / n,       p_{-1} = 1 / V,

with ``n`` the sum of the counts after the context and ``t1, t2, t3`` how many tokens have count 1, 2 and more. A
context without counts hands ``p_{k-1}`` through. As ``n`` and ``t`` are exactly the sums over the records that exist,
rows sum to 1 in any state, also after records have been dropped. Lower orders count an event only when the next higher
order had not seen it (update exclusion), so they hold continuation counts.

Kernels of this module call only functions of this module: numba's file cache checks no other file for changes. Those
that allocate nothing are compiled without reference counting, whose atomic operations took 40% of the time.

Letters in all of them: k is an order (its context has as many tokens); y a token; h the hash of an n-gram; s and e the
slots of two records, a context's and that of one of its tokens; j how many rows of the undo log are in use.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from evalkit.mixers.tree_lists import CODES_PER_ORDER

RECORD_WORDS = 8
"""32 bytes a record, the words below. Record 0 is the root; a token's t are at most V, so 16 bits hold them."""
PARENT, TOKEN, IDENTITY, HASH, COUNT, MORE, TOTAL, SINGLES_DOUBLES = range(8)
"""Parent's identity, token, own identity (0: empty slot), hash of the tokens, count, t3, n, t1 + 2^16 t2."""
_NAME, _COUNTS, _TOTALS = 1, 2, 3
"""Places of the pairs (IDENTITY, HASH), (COUNT, MORE) and (TOTAL, SINGLES_DOUBLES) among a record's 64-bit words."""

# Places in the small integer state; the slots of the current contexts of the orders 0.. follow from CONTEXT on.
NEXT_IDENTITY, USED, DEPTH, HAND, SEVERITY, DROPPED, CANDIDATE, CONTEXT = range(8)
"""``USED`` counts the n-grams; the slot ``HAND`` is where dropping goes on, after the slot ``CANDIDATE`` unless 0."""

AHEAD = 12
"""Tokens between asking for a record and using it: at 0.2 microseconds a token several times a memory access."""
_CACHE_LINE = 64
_PARENTS_AHEAD = 16
"""Slots between asking for the context of a record that may go and dropping it."""

# What is dropped, milder first: counts up to the one, older (in records made since) than capacity >> the other.
_HIGHEST_COUNTS = (1, 1, 1, 2, 4, 2**32 - 1, 2**32 - 1)
_AGES = (1, 2, 4, 2, 3, 4, 63)
SEVERITIES = len(_HIGHEST_COUNTS)

# A step of the hash: two odd factors, the inverses of both modulo 2^32, and a factor that spreads the token.
_SPREAD, _FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35
_FIRST_INVERSE, _SECOND_INVERSE = pow(_FIRST, -1, 1 << 32), pow(_SECOND, -1, 1 << 32)
_MASK = 0xFFFFFFFF


class Table(NamedTuple):
    """The n-grams of a stream."""

    records: npt.NDArray[np.uint32]  # [slots, 8]
    words: npt.NDArray[np.uint64]  # [slots, 4], the same memory
    state: npt.NDArray[np.int64]  # [8 + orders]


def new_records(slots: int) -> npt.NDArray[np.uint32]:
    """Return so many empty slots, uint32[slots, 8], with a fresh root, records inside cache lines."""
    words = slots * RECORD_WORDS
    raw = np.zeros(words + _CACHE_LINE // 4, dtype=np.uint32)
    first = -raw.ctypes.data % _CACHE_LINE // 4
    records = raw[first : first + words].reshape(slots, RECORD_WORDS)
    records[0, IDENTITY] = 1
    return records


def new_state(orders: int) -> npt.NDArray[np.int64]:
    """Return the small state that goes with an empty table: identities start at 2, the context is the root."""
    state = np.zeros(CONTEXT + orders, dtype=np.int64)
    state[NEXT_IDENTITY], state[HAND] = 2, 1
    return state


@intrinsic
def _prefetch(typingctx: Any, records: Any, slot: Any) -> Any:
    """Have the record in a slot fetched from memory, to be written; nothing waits for it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte = builder.bitcast(data, cgutils.voidptr_t)
        offset = builder.mul(arguments[1], ir.Constant(ir.IntType(64), 4 * RECORD_WORDS))
        address = builder.gep(byte, [offset])
        i32 = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32]),
            "llvm.prefetch.p0",
        )
        builder.call(function, [address, i32(1), i32(3), i32(1)])  # to write, keep in all caches, data
        return context.get_dummy_value()

    return types.void(records, types.int64), codegen


@njit(cache=True, _nrt=False)
def _step(h: Any, token: Any) -> Any:
    """Return the hash of an n-gram one token longer, int64 in [0, 2^32)."""
    h = ((h ^ ((token + 1) * _SPREAD)) * _FIRST) & _MASK
    return ((h ^ (h >> 16)) * _SECOND) & _MASK


@njit(cache=True, _nrt=False)
def _step_back(h: Any, token: Any) -> Any:
    """Return the hash that ``_step`` made into ``h``."""
    h = (h * _SECOND_INVERSE) & _MASK
    h = ((h ^ (h >> 16)) * _FIRST_INVERSE) & _MASK
    return (h ^ ((token + 1) * _SPREAD)) & _MASK


@njit(cache=True, _nrt=False)
def _home(h: Any, slots: Any) -> Any:
    """Return the slot in [1, slots) where probing for a hash starts; it grows with the hash."""
    return 1 + ((h * (slots - 1)) >> 32)


@njit(cache=True, _nrt=False)
def _next(s: Any, slots: Any) -> Any:
    """Return the slot where probing goes on after ``s``."""
    return s + 1 if s + 1 < slots else 1


@njit(cache=True, _nrt=False)
def _find(records: Any, parent: Any, token: Any, h: Any) -> Any:
    """Return the slot of a key, or ``-1 - slot`` of the empty slot where it would go. Both key words are compared."""
    slots = records.shape[0]
    s = _home(h, slots)
    while records[s, IDENTITY] != 0:
        if records[s, PARENT] == parent and records[s, TOKEN] == token:
            return s
        s = _next(s, slots)
    return -1 - s


@njit(cache=True, _nrt=False)
def _slot_of_parent(records: Any, e: Any) -> Any:
    """Return the slot of the context of the record at ``e``, 0 (the root) also where a damaged table lacks it."""
    s = _home(_step_back(np.int64(records[e, HASH]), np.int64(records[e, TOKEN])), records.shape[0])
    if records[e, PARENT] == records[0, IDENTITY]:
        return np.int64(0)
    while records[s, IDENTITY] != records[e, PARENT]:
        if records[s, IDENTITY] == 0:
            return np.int64(0)
        s = _next(s, records.shape[0])
    return s


@njit(cache=True, _nrt=False)
def _keep(words: Any, s: Any, word: Any, log: Any, j: Any) -> Any:
    """Log a word of a record before it changes; return the log's length."""
    log[j, 0] = (s * (RECORD_WORDS // 2) + word) * 4
    log[j, 1] = np.int64(words[s, word])
    return j + 1


@njit(cache=True, _nrt=False)
def _remove(table: Any, e: Any, log: Any, j: Any) -> Any:
    """Empty a slot; records behind it that probing would no longer reach move up. Return the log's length.

    The state's slots, from ``CANDIDATE`` on, follow their records.
    """
    records, words, state = table
    slots = records.shape[0]
    hole = e
    s = _next(e, slots)
    while records[s, IDENTITY] != 0:
        home = _home(np.int64(records[s, HASH]), slots)
        # Distances go round the end of the table.
        if s - home + (slots - 1 if home > s else 0) >= s - hole + (slots - 1 if hole > s else 0):
            for w in range(RECORD_WORDS // 2):
                j = _keep(words, hole, w, log, j)
                words[hole, w] = words[s, w]
            for k in range(CANDIDATE, CONTEXT + 1 + state[DEPTH]):
                if state[k] == s:
                    state[k] = hole
            hole = s
        s = _next(s, slots)
    for w in range(RECORD_WORDS // 2):  # all of them: a new record may take the slot
        j = _keep(words, hole, w, log, j)
    words[hole, _NAME] = 0
    return j


@njit(cache=True, _nrt=False)
def _is_rare(records: Any, s: Any, severity: Any, newest: Any) -> Any:
    """Return whether the n-gram in a slot has no longer ones below it, and is rare and older than ``newest``."""
    return (
        s > 0
        and records[s, IDENTITY] != 0
        and records[s, TOTAL] == 0
        and records[s, COUNT] <= _HIGHEST_COUNTS[severity]
        and records[s, IDENTITY] < newest
    )


@njit(cache=True, _nrt=False)
def ngram_drop(table: Any, limit: Any, more: Any, log: Any, logged: Any) -> Any:
    """Drop n-grams until ``more`` new ones stay within the limit; return (whether they do, rows of the log in use).

    An n-gram goes if nothing hangs below it and it is old and rare enough; its context loses it from its totals, and is
    the next candidate. The current contexts stay. After each round of the table it becomes severer if the round dropped
    little. Stops early when the log has too few rows; called again, it goes on as if it had not stopped.
    """
    records, words, state = table
    slots = records.shape[0]
    j = logged
    while state[USED] + more > limit:
        severity = state[SEVERITY]
        newest = state[NEXT_IDENTITY] - (limit >> _AGES[severity])
        s = state[CANDIDATE] if state[CANDIDATE] > 0 else state[HAND]
        goes = _is_rare(records, s, severity, newest)
        for k in range(1, state[DEPTH] + 1):
            goes = goes and state[CONTEXT + k] != s
        if goes:
            behind = _next(s, slots)
            rows = 8
            while records[behind, IDENTITY] != 0:
                behind = _next(behind, slots)
                rows += RECORD_WORDS // 2
            if j + rows > log.shape[0]:
                return False, j
            c = records[s, COUNT]
            parent = _slot_of_parent(records, s)
            j = _keep(words, parent, _TOTALS, log, j)
            records[parent, TOTAL] -= c
            if c <= 2:
                records[parent, SINGLES_DOUBLES] -= np.uint32(1) if c == 1 else np.uint32(0x10000)
            else:
                j = _keep(words, parent, _COUNTS, log, j)
                records[parent, MORE] -= np.uint32(1)
            state[CANDIDATE] = parent
            j = _remove(table, s, log, j)
            state[USED] -= 1
            state[DROPPED] += 1
        elif state[CANDIDATE] > 0:
            state[CANDIDATE] = 0
        else:
            state[HAND] = _next(s, slots)
            ahead = s + _PARENTS_AHEAD
            if ahead < slots and _is_rare(records, ahead, severity, newest):
                parent_hash = _step_back(np.int64(records[ahead, HASH]), np.int64(records[ahead, TOKEN]))
                _prefetch(records, _home(parent_hash, slots))
            if state[HAND] == 1:
                if state[DROPPED] < limit >> 4:
                    state[SEVERITY] = min(severity + 1, SEVERITIES - 1)
                elif state[DROPPED] > limit >> 1:
                    state[SEVERITY] = max(severity - 1, 0)
                state[DROPPED] = 0
    return True, j


@njit(cache=True, _nrt=False)
def _look_ahead(records: Any, hashes: Any, token: Any) -> None:
    """Move ``hashes`` (of the n-grams of each order that end before ``token``) on to ``token``; fetch their records."""
    slots = records.shape[0]
    for k in range(hashes.shape[0] - 1, 0, -1):
        hashes[k] = _step(hashes[k - 1], token)
        _prefetch(records, _home(hashes[k], slots))
    hashes[0] = _step(0, token)


@njit(cache=True, _nrt=False, nogil=True)
def ngram_pass(
    tokens: Any,
    start: Any,
    table: Any,
    discounts: Any,
    vocab_size: Any,
    document_token: Any,
    limit: Any,
    room: Any,
    log: Any,
    logged: Any,
    places: Any,
    hashes: Any,
    probs: Any,
    codes: Any,
) -> Any:
    """Score and then learn the tokens from ``start`` on; return (position reached, rows of the log in use).

    Tokens ahead of the one being scored are read to fetch records from memory, which changes no value.

    Args:
        tokens: int64[T].
        start: first position.
        table: the n-grams, changed in place.
        discounts: float64[orders, 3].
        vocab_size: V.
        document_token: the token that opens a document, or -1: contexts never reach back beyond it.
        limit: n-grams there may be; some are dropped when the next token could exceed it.
        room: n-grams that the table holds; stop early, after a token, if the next could exceed it.
        log: int64[>= logged + 3 * orders * T, 2], the undo log; stop early if dropping needs more of it.
        logged: rows of it in use.
        places: int64[orders], work.
        hashes: int64[orders], work.
        probs: float64[T, orders], out: probability of the token at each order.
        codes: int64[T], out: context codes, here only by the highest order with counts.
    """
    records, words, state = table
    orders = discounts.shape[0]
    slots = records.shape[0]
    stop = tokens.shape[0]
    floor = 1.0 / vocab_size
    j = logged
    for k in range(orders):
        # Beyond the depth any hash will do: it only fetches a record that nobody needs.
        hashes[k] = records[state[CONTEXT + k + 1], HASH] if k < min(state[DEPTH], orders - 1) else 0
    for i in range(start, min(start + AHEAD, stop)):
        _look_ahead(records, hashes, tokens[i])
    for i in range(start, stop):
        if i + AHEAD < stop:
            _look_ahead(records, hashes, tokens[i + AHEAD])
        y = np.uint32(tokens[i])
        depth = state[DEPTH]
        p = floor
        best = 0
        for k in range(depth + 1):
            s = state[CONTEXT + k]
            e = _find(records, records[s, IDENTITY], y, _step(np.int64(records[s, HASH]), np.int64(y)))
            places[k] = e
            n = records[s, TOTAL]
            if n > 0:
                best = k + 1
                t1 = np.int64(records[s, SINGLES_DOUBLES] & np.uint32(0xFFFF))
                t2 = np.int64(records[s, SINGLES_DOUBLES] >> np.uint32(16))
                t3 = np.int64(records[s, MORE])
                mass = (discounts[k, 0] * t1 + discounts[k, 1] * t2 + discounts[k, 2] * t3) * p
                if e >= 0:
                    c = records[e, COUNT]
                    mass += c - discounts[k, min(c, 3) - 1]
                p = mass / n
            probs[i, k] = p
        for k in range(depth + 1, orders):
            probs[i, k] = p
        codes[i] = best * CODES_PER_ORDER

        seen_above = False
        for k in range(depth, -1, -1):
            s = state[CONTEXT + k]
            e = places[k]
            if e < 0:
                e = -1 - e
                while records[e, IDENTITY] != 0:  # a record that this very token added may have taken the slot
                    e = _next(e, slots)
                j = _keep(words, e, _NAME, log, j)
                j = _keep(words, s, _TOTALS, log, j)
                records[e, PARENT] = records[s, IDENTITY]
                records[e, TOKEN] = y
                records[e, IDENTITY] = np.uint32(state[NEXT_IDENTITY])
                records[e, HASH] = np.uint32(_step(np.int64(records[s, HASH]), np.int64(y)))
                records[e, COUNT] = 1
                records[e, MORE] = 0
                words[e, _TOTALS] = 0
                records[s, TOTAL] += np.uint32(1)
                records[s, SINGLES_DOUBLES] += np.uint32(1)
                state[NEXT_IDENTITY] += 1
                state[USED] += 1
                places[k] = e
            elif not seen_above:
                seen_above = True
                c = records[e, COUNT]
                if c < 4294967295 and records[s, TOTAL] < 4294967295:
                    j = _keep(words, e, _COUNTS, log, j)
                    j = _keep(words, s, _TOTALS, log, j)
                    records[e, COUNT] = c + np.uint32(1)
                    records[s, TOTAL] += np.uint32(1)
                    if c == 1:
                        records[s, SINGLES_DOUBLES] += np.uint32(0xFFFF)  # t1 - 1, t2 + 1
                    elif c == 2:
                        j = _keep(words, s, _COUNTS, log, j)
                        records[s, SINGLES_DOUBLES] -= np.uint32(0x10000)
                        records[s, MORE] += np.uint32(1)
        deeper = min(1 if tokens[i] == document_token else depth + 1, orders - 1)
        for k in range(deeper):
            state[CONTEXT + k + 1] = places[k]
        state[DEPTH] = deeper
        if state[USED] + orders > limit:
            done, j = ngram_drop(table, limit, orders, log, j)
            if not done or j + 3 * orders * (stop - i) > log.shape[0]:
                return i + 1, j
        if state[USED] + orders > room:
            return i + 1, j
    return stop, j


@njit(cache=True, _nrt=False)
def ngram_rows(table: Any, discounts: Any, vocab_size: Any, rows: Any) -> Any:
    """Fill ``rows`` float64[orders, V] with every order's whole distribution; return the context code."""
    records, _, state = table
    best = 0
    for k in range(discounts.shape[0]):
        s = state[CONTEXT + k] if k <= state[DEPTH] else np.int64(0)
        n = records[s, TOTAL] if k <= state[DEPTH] else np.uint32(0)
        if n > 0:
            best = k + 1
        t1 = np.int64(records[s, SINGLES_DOUBLES] & np.uint32(0xFFFF))
        t2 = np.int64(records[s, SINGLES_DOUBLES] >> np.uint32(16))
        t3 = np.int64(records[s, MORE])
        held = discounts[k, 0] * t1 + discounts[k, 1] * t2 + discounts[k, 2] * t3
        for y in range(vocab_size):
            p = rows[k - 1, y] if k > 0 else 1.0 / vocab_size
            if n > 0:
                mass = held * p
                e = _find(records, records[s, IDENTITY], np.uint32(y), _step(np.int64(records[s, HASH]), y))
                if e >= 0:
                    c = records[e, COUNT]
                    mass += c - discounts[k, min(c, 3) - 1]
                p = mass / n
            rows[k, y] = p
    return best * CODES_PER_ORDER


@njit(cache=True, _nrt=False)
def ngram_move(records: Any, table: Any) -> None:
    """Put ``records`` uint32[n, 8], empty ones left out, into an empty table; the current contexts follow."""
    for w in range(RECORD_WORDS):
        table.records[0, w] = records[0, w]
    depth = table.state[DEPTH]
    for k in range(1, depth + 1):
        table.state[CONTEXT + k] = -table.state[CONTEXT + k]  # not yet moved
    for s in range(1, records.shape[0]):
        if records[s, IDENTITY] != 0:
            e = _home(np.int64(records[s, HASH]), table.records.shape[0])
            while table.records[e, IDENTITY] != 0:
                e = _next(e, table.records.shape[0])
            for w in range(RECORD_WORDS):
                table.records[e, w] = records[s, w]
            for k in range(1, depth + 1):
                if table.state[CONTEXT + k] == -s:
                    table.state[CONTEXT + k] = e


def renumber(table: Table) -> None:
    """Number the identities anew from 1 on, in their order, so that 32 bits never run out."""
    used = table.records[:, IDENTITY] != 0
    living = np.sort(table.records[used, IDENTITY])
    root_parent = table.records[0, PARENT]
    for word in (PARENT, IDENTITY):
        table.records[used, word] = np.searchsorted(living, table.records[used, word]) + 1
    table.records[0, PARENT] = root_parent
    table.state[NEXT_IDENTITY] = len(living) + 1
