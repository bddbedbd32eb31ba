"""Online n-gram counts of every order in one sparse table, and their interpolated Kneser-Ney probabilities.

One record per n-gram. The record of ``c y`` is two things: the count of token ``y`` after context ``c``, and, one
token later, the context ``c y`` of the next order with its own totals. So the contexts of all orders at position
``i + 1`` are the records that position ``i`` looked up, every look-up is keyed by (identity of the context's record,
token), both compared, and the look-ups of one position do not wait for one another.

Where a look-up starts is a hash of the n-gram's tokens alone. It can be told many tokens ahead, so the cache line is
asked for long before it is needed: a table of 1 GB costs little more than one that fits a cache. Slots follow the hash
in order, so that moving to a larger table reads and writes both from front to back; and a step of the hash can be
undone, so that a record's hash and token lead to its context's record.

A full table drops n-grams as it takes up new ones: a hand goes round the hashes and drops what is old, rare and without
longer n-grams below it, no more than is needed. The log of changes names records by hash and identity, never by slot.

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
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Table = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

RECORD_WORDS = 8
"""32 bytes a record, the words below. Record 0 is the root; a token's t are at most V, so 16 bits hold them."""
PARENT, TOKEN, IDENTITY, COUNT, TOTAL, SINGLES_DOUBLES, MORE, HASH = range(8)
"""Parent's identity, token, own identity (0: empty slot), count, n, t1 + 2^16 t2, t3, and the hash of the tokens."""

# Slots of the small integer state; the context's record slots, orders 0.., follow from CONTEXT on.
NEXT_IDENTITY, USED, OCCUPIED, DEPTH, HAND, SEVERITY, DROPPED, CONTEXT = range(8)
"""``USED`` counts the n-grams, ``OCCUPIED`` also the records that a reset of the root has put out of reach."""

CODES_PER_ORDER = 24
"""Context codes: ``24 (1 + highest order with counts, or 0) + 3 (size class of its n) + class of distinct tokens``."""

AHEAD = 12
"""Tokens between asking for a cache line and using it: at 0.2 microseconds a token several times a memory access."""

_NEW, _AGAIN, _RESET, _DROP, _PURGE = range(5)
"""Events of the log, int64[., 2]: the kind stands first in an event's last row."""
DROP_ROWS = 3
"""Rows of the log that a record takes when it goes."""
_CACHE_LINE = 64
_HELD = np.uint32(1 << 31)
"""Mark in the token's word of a record that must not be dropped; set only while dropping goes on."""
_HAND_SLOTS = 16
"""Slots that the hand passes at a time."""
MOST_DROPS = 1024
"""n-grams that go at a time, at most; so much room in the log is kept for them."""

# What the hand drops, milder first: counts up to the one, older (in records made since) than capacity >> the other.
_COUNTS = (1, 1, 1, 2, 4, 2**32 - 1, 2**32 - 1)
_AGES = (1, 2, 4, 2, 3, 4, 63)
SEVERITIES = len(_COUNTS)

# A step of the hash: two odd factors, the inverses of both modulo 2^32, and a factor that spreads the token.
_SPREAD, _FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35
_FIRST_INVERSE, _SECOND_INVERSE = pow(_FIRST, -1, 1 << 32), pow(_SECOND, -1, 1 << 32)
_MASK = 0xFFFFFFFF


def new_table(slots: int) -> Table:
    """Return an empty table of ``slots`` records with a fresh root, its records inside cache lines."""
    words = slots * RECORD_WORDS
    raw = np.zeros(words + _CACHE_LINE // 4, dtype=np.uint32)
    first = -raw.ctypes.data % _CACHE_LINE // 4
    table = raw[first : first + words].reshape(slots, RECORD_WORDS)
    table[0, IDENTITY] = 1
    return table


def new_state(max_order: int) -> Ints:
    """Return the small state that goes with an empty table: identities start at 2, the context is the root."""
    state = np.zeros(CONTEXT + max_order + 1, dtype=np.int64)
    state[NEXT_IDENTITY] = 2
    return state


@intrinsic
def _prefetch(typingctx: Any, table: Any, slot: Any) -> Any:
    """Ask for the cache line of a table's slot, to be written; nothing is read."""

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

    return types.void(table, types.int64), codegen


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
def _find(table: Any, parent: Any, token: Any, h: Any) -> Any:
    """Return the slot of a key, or ``-1 - slot`` of the empty slot where it would go. Both key words are compared."""
    slots = table.shape[0]
    s = _home(h, slots)
    while table[s, IDENTITY] != 0:
        if table[s, PARENT] == parent and table[s, TOKEN] == token:
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
def _key(table: Any, e: Any) -> Any:
    """Return a record's hash and identity in one int64, by which the log names it."""
    return (np.int64(table[e, HASH]) << 32) | np.int64(table[e, IDENTITY])


@njit(cache=True, _nrt=False)
def _slot(table: Any, identity: Any, h: Any) -> Any:
    """Return the slot of the record with this identity and hash; there is one."""
    if identity == table[0, IDENTITY]:
        return np.int64(0)
    slots = table.shape[0]
    e = _home(h, slots)
    while table[e, IDENTITY] != identity:
        e += 1
        if e == slots:
            e = 1
    return e


@njit(cache=True, _nrt=False)
def _slot_of_parent(table: Any, e: Any) -> Any:
    """Return the slot of the context of the record at ``e``; there is one."""
    return _slot(table, table[e, PARENT], _step_back(np.int64(table[e, HASH]), np.int64(table[e, TOKEN] & ~_HELD)))


@njit(cache=True, _nrt=False)
def _free(table: Any, h: Any) -> Any:
    """Return the empty slot where a new record with this hash goes."""
    slots = table.shape[0]
    e = _home(h, slots)
    while table[e, IDENTITY] != 0:
        e += 1
        if e == slots:
            e = 1
    return e


@njit(cache=True, _nrt=False)
def _count_out(table: Any, s: Any, c: Any, sign: Any) -> None:
    """Take a token with count ``c`` out of a context's totals, or (``sign`` -1) put it in."""
    table[s, TOTAL] -= np.uint32(sign * np.int64(c))
    if c == 1:
        table[s, SINGLES_DOUBLES] -= np.uint32(sign)
    elif c == 2:
        table[s, SINGLES_DOUBLES] -= np.uint32(sign * 0x10000)
    elif c > 2:
        table[s, MORE] -= np.uint32(sign)


@njit(cache=True, _nrt=False)
def _remove(table: Any, e: Any, followed: Any) -> None:
    """Empty a slot; records behind it that probing would no longer reach move up, and ``followed`` slots with them."""
    slots = table.shape[0]
    hole = e
    s = e
    while True:
        s += 1
        if s == slots:
            s = 1
        if table[s, IDENTITY] == 0:
            break
        home = _home(np.int64(table[s, HASH]), slots)
        # Distances go round the end of the table.
        if s - home + (slots - 1 if home > s else 0) >= s - hole + (slots - 1 if hole > s else 0):
            for w in range(RECORD_WORDS):
                table[hole, w] = table[s, w]
            for k in range(followed.shape[0]):
                if followed[k] == s:
                    followed[k] = hole
            hole = s
    for w in range(RECORD_WORDS):
        table[hole, w] = 0


@njit(cache=True, _nrt=False)
def _log(table: Any, s: Any, kind: Any, journal: Any, j: Any) -> Any:
    """Log a record that goes, and mark it with a count of 0; return the log's length."""
    for row in range(DROP_ROWS - 1):
        for half in range(2):
            word = 4 * row + 2 * half
            journal[j + row, half] = (np.int64(table[s, word]) << 32) | np.int64(table[s, word + 1])
    journal[j + 2, 0] = kind
    journal[j + 2, 1] = _key(table, s)
    table[s, COUNT] = 0
    return j + DROP_ROWS


@njit(cache=True, _nrt=False)
def _remove_logged(table: Any, journal: Any, begin: Any, end: Any, followed: Any) -> None:
    """Empty the slots of the records that rows ``[begin, end)`` of the log say are gone."""
    for row in range(begin + 2, end, DROP_ROWS):
        e = _slot(table, np.uint32(journal[row, 1] & _MASK), (journal[row, 1] >> 32) & _MASK)
        _remove(table, e, followed)


@njit(cache=True, _nrt=False)
def _drop(table: Any, state: Any, limit: Any, journal: Any, j: Any) -> Any:
    """Move the hand a few slots on and drop what it meets that is old and rare enough; return the log's length.

    An n-gram goes if nothing hangs below it, its context loses it from its totals, and goes too if that leaves it
    without a token and it is old and rare enough itself. The current contexts stay. Which n-grams go depends on their
    hashes, counts and ages, not on the slots they have. Once round, the hand becomes severer if it dropped little.
    """
    slots = table.shape[0]
    severity = state[SEVERITY]
    highest = _COUNTS[severity]
    oldest = table[0, IDENTITY]
    newest = state[NEXT_IDENTITY] - (limit >> _AGES[severity])
    begin = j
    contexts = state[CONTEXT + 1 : CONTEXT + 1 + state[DEPTH]]
    for k in range(contexts.shape[0]):
        table[contexts[k], TOKEN] |= _HELD
    low = state[HAND]
    high = min(low + max((_HAND_SLOTS << 32) // slots, 1), 1 << 32)
    last = _home(high - 1, slots)
    step = _home(low, slots)
    dropped = 0
    while True:
        s = step if step < slots else step - (slots - 1)
        step += 1
        if table[s, IDENTITY] == 0:
            if step > last + 1:
                break
            continue
        if not low <= table[s, HASH] < high:
            continue
        while (
            s > 0
            and table[s, TOTAL] == 0
            and 0 < table[s, COUNT] <= highest
            and oldest < table[s, IDENTITY] < newest
            and table[s, TOKEN] < _HELD
            and dropped < MOST_DROPS
        ):
            c = table[s, COUNT]
            parent = _slot_of_parent(table, s)
            _count_out(table, parent, c, 1)
            j = _log(table, s, _DROP, journal, j)
            dropped += 1
            s = parent
    # What the hand will meet after the next time, and the contexts of what it will meet next.
    for s in range(last + 1 + _HAND_SLOTS, min(last + 1 + 2 * _HAND_SLOTS, slots), 2):
        _prefetch(table, s)
    for s in range(last + 1, min(last + 1 + _HAND_SLOTS, slots)):
        if 0 < table[s, COUNT] <= highest and table[s, IDENTITY] < newest:
            _prefetch(table, _home(_step_back(np.int64(table[s, HASH]), np.int64(table[s, TOKEN] & ~_HELD)), slots))
    _remove_logged(table, journal, begin, j, contexts)
    for k in range(contexts.shape[0]):
        table[contexts[k], TOKEN] &= ~_HELD
    state[USED] -= dropped
    state[OCCUPIED] -= dropped
    state[DROPPED] += dropped
    state[HAND] = high & _MASK
    if state[HAND] == 0:
        if state[DROPPED] < limit >> 4:
            state[SEVERITY] = min(severity + 1, SEVERITIES - 1)
        elif state[DROPPED] > limit >> 1:
            state[SEVERITY] = max(severity - 1, 0)
        state[DROPPED] = 0
    return j


@njit(cache=True, _nrt=False)
def _look_ahead(table: Any, hashes: Any, token: Any) -> None:
    """Move ``hashes`` (of the n-grams of each order that end before ``token``) on to ``token``; ask for their slots."""
    slots = table.shape[0]
    for k in range(hashes.shape[0] - 1, 0, -1):
        hashes[k] = _step(hashes[k - 1], token)
        _prefetch(table, _home(hashes[k], slots))
    hashes[0] = _step(0, token)


@njit(cache=True, _nrt=False, nogil=True)
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
    room: Any,
    journal: Any,
    journal_used: Any,
    probs: Any,
    codes: Any,
    places: Any,
    hashes: Any,
) -> Any:
    """Score and then learn the tokens of ``[start, stop)`` one by one; return (position reached, journal used).

    Tokens ahead of the one being scored are read to ask for cache lines, which changes no value.

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
        limit: n-grams there may be; some are dropped when the next token could exceed it.
        room: records the table may hold; stop early, after a token, if the next could exceed it.
        journal: int64[>= used + tokens * (orders + 5), 2], the undo log; stop early if dropping needs more of it.
        journal_used: rows of it in use.
        probs: float64[stop - start, orders], out: probability of the token at each order.
        codes: int64[stop - start], out: context codes (see CODES_PER_ORDER).
        places: int64[orders], work.
        hashes: int64[orders], work.
    """
    orders = discounts.shape[0]
    slots = table.shape[0]
    floor = 1.0 / vocab_size
    j = journal_used
    for k in range(orders):
        # Beyond the depth any hash will do: it only asks for a line that nobody needs.
        hashes[k] = table[state[CONTEXT + k + 1], HASH] if k < min(state[DEPTH], orders - 1) else 0
    for i in range(start, min(start + AHEAD, stop)):
        _look_ahead(table, hashes, tokens[i])
    for i in range(start, stop):
        if i + AHEAD < stop:
            _look_ahead(table, hashes, tokens[i + AHEAD])
        y = np.uint32(tokens[i])
        depth = state[DEPTH]
        p = floor
        best = 0
        best_n = np.int64(0)
        best_distinct = np.int64(0)
        for k in range(depth + 1):
            s = state[CONTEXT + k]
            e = _find(table, table[s, IDENTITY], y, _step(np.int64(table[s, HASH]), np.int64(y)))
            places[k] = e
            n = table[s, TOTAL]
            if n > 0:
                t1 = np.int64(table[s, SINGLES_DOUBLES] & np.uint32(0xFFFF))
                t2 = np.int64(table[s, SINGLES_DOUBLES] >> np.uint32(16))
                t3 = np.int64(table[s, MORE])
                best = k + 1
                best_n = np.int64(n)
                best_distinct = t1 + t2 + t3
                d1 = discounts[k, 0]
                d2 = discounts[k, 1]
                d3 = discounts[k, 2]
                mass = (d1 * t1 + d2 * t2 + d3 * t3) * p
                if e >= 0:
                    c = table[e, COUNT]
                    mass += c - discounts[k, min(c, 3) - 1]
                p = mass / n
            probs[i - start, k] = p
        for k in range(depth + 1, orders):
            probs[i - start, k] = p
        codes[i - start] = _code(best, best_n, best_distinct)

        seen_above = False
        for k in range(depth, -1, -1):
            s = state[CONTEXT + k]
            e = places[k]
            if e < 0:
                e = -1 - e
                while table[e, IDENTITY] != 0:  # a record that this very token added may have taken the slot
                    e += 1
                    if e == slots:
                        e = 1
                table[e, PARENT] = table[s, IDENTITY]
                table[e, TOKEN] = y
                table[e, IDENTITY] = np.uint32(state[NEXT_IDENTITY])
                table[e, COUNT] = 1
                table[e, HASH] = np.uint32(_step(np.int64(table[s, HASH]), np.int64(y)))
                table[s, TOTAL] += np.uint32(1)
                table[s, SINGLES_DOUBLES] += np.uint32(1)
                state[NEXT_IDENTITY] += 1
                state[USED] += 1
                state[OCCUPIED] += 1
                places[k] = e
                journal[j, 0] = _NEW
                journal[j, 1] = _key(table, e)
                j += 1
            elif not (exclusion and seen_above):
                c = table[e, COUNT]
                if c < 4294967295 and table[s, TOTAL] < 4294967295:
                    table[e, COUNT] = c + np.uint32(1)
                    table[s, TOTAL] += np.uint32(1)
                    if c == 1:
                        table[s, SINGLES_DOUBLES] += np.uint32(0xFFFF)  # t1 - 1, t2 + 1
                    elif c == 2:
                        table[s, SINGLES_DOUBLES] -= np.uint32(0x10000)
                        table[s, MORE] += np.uint32(1)
                    journal[j, 0] = _AGAIN
                    journal[j, 1] = _key(table, e)
                    j += 1
                seen_above = True
        if tokens[i] == document_token:
            if document_local:
                for w in range(0, RECORD_WORDS, 2):
                    journal[j, 0] = table[0, w]
                    journal[j, 1] = table[0, w + 1]
                    j += 1
                journal[j, 0] = _RESET
                j += 1
                for w in range(RECORD_WORDS):
                    table[0, w] = 0
                table[0, IDENTITY] = np.uint32(state[NEXT_IDENTITY])
                state[NEXT_IDENTITY] += 1
                state[USED] = 0
                state[DEPTH] = 0
            else:
                state[DEPTH] = min(1, orders - 1)
                if orders > 1:
                    state[CONTEXT + 1] = places[0]
        else:
            deeper = min(depth + 1, orders - 1)
            for k in range(deeper):
                state[CONTEXT + k + 1] = places[k]
            state[DEPTH] = deeper
        while state[USED] + orders > limit:
            rest = (stop - i) * (orders + RECORD_WORDS // 2 + 1)
            if j + rest + MOST_DROPS * DROP_ROWS > journal.shape[0]:
                return i + 1, j
            j = _drop(table, state, limit, journal, j)
        if state[OCCUPIED] + orders > room:
            return i + 1, j
    return stop, j


@njit(cache=True, _nrt=False)
def ngram_undo(table: Any, journal: Any, journal_used: Any) -> None:
    """Undo the log's events, the last first. The small state is restored by its owner."""
    j = journal_used - 1
    while j >= 0:
        kind = journal[j, 0]
        if kind == _RESET:
            for w in range(0, RECORD_WORDS, 2):
                row = j - RECORD_WORDS // 2 + w // 2
                table[0, w] = np.uint32(journal[row, 0])
                table[0, w + 1] = np.uint32(journal[row, 1])
            j -= RECORD_WORDS // 2
        elif kind in (_DROP, _PURGE):
            e = _free(table, (journal[j, 1] >> 32) & _MASK)
            for row in range(DROP_ROWS - 1):
                for half in range(2):
                    pair = journal[j - 2 + row, half]
                    table[e, 4 * row + 2 * half] = np.uint32((pair >> 32) & _MASK)
                    table[e, 4 * row + 2 * half + 1] = np.uint32(pair & _MASK)
            if kind == _DROP:
                _count_out(table, _slot_of_parent(table, e), table[e, COUNT], -1)
            j -= 2
        else:
            e = _slot(table, np.uint32(journal[j, 1] & _MASK), (journal[j, 1] >> 32) & _MASK)
            s = _slot_of_parent(table, e)
            c = table[e, COUNT]
            _count_out(table, s, c, 1)
            if kind == _NEW:
                _remove(table, e, journal[:0, 0])
            else:
                table[e, COUNT] = c - np.uint32(1)
                _count_out(table, s, c - np.uint32(1), -1)
        j -= 1


@njit(cache=True, _nrt=False)
def ngram_rows(table: Any, state: Any, discounts: Any, vocab_size: Any, rows: Any) -> Any:
    """Fill ``rows`` float64[orders, V] with every order's whole distribution; return the context code."""
    orders = discounts.shape[0]
    depth = state[DEPTH]
    code = np.int64(0)
    for k in range(orders):
        s = state[CONTEXT + k] if k <= depth else np.int64(0)
        n = table[s, TOTAL] if k <= depth else np.uint32(0)
        t1 = np.int64(table[s, SINGLES_DOUBLES] & np.uint32(0xFFFF))
        t2 = np.int64(table[s, SINGLES_DOUBLES] >> np.uint32(16))
        t3 = np.int64(table[s, MORE])
        if n > 0:
            code = np.int64(_code(k + 1, np.int64(n), t1 + t2 + t3))
        held = discounts[k, 0] * t1 + discounts[k, 1] * t2 + discounts[k, 2] * t3
        for y in range(vocab_size):
            p = rows[k - 1, y] if k > 0 else 1.0 / vocab_size
            if n > 0:
                mass = held * p
                e = _find(table, table[s, IDENTITY], np.uint32(y), _step(np.int64(table[s, HASH]), y))
                if e >= 0:
                    c = table[e, COUNT]
                    mass += c - discounts[k, min(c, 3) - 1]
                p = mass / n
            rows[k, y] = p
    return code


@njit(cache=True, _nrt=False)
def ngram_move(records: Any, table: Any) -> None:
    """Put the records of ``records`` uint32[n, 8], empty ones left out, into an empty table; the first is the root."""
    for w in range(RECORD_WORDS):
        table[0, w] = records[0, w]
    for s in range(1, records.shape[0]):
        if records[s, IDENTITY] != 0:
            e = _free(table, np.int64(records[s, HASH]))
            for w in range(RECORD_WORDS):
                table[e, w] = records[s, w]


@njit(cache=True, _nrt=False)
def ngram_slots(table: Any, identities: Any, hashes: Any, slots: Any) -> None:
    """Fill ``slots`` int64[n] with where the records of these identities and hashes stand."""
    for i in range(slots.shape[0]):
        slots[i] = _slot(table, identities[i], np.int64(hashes[i]))


@njit(cache=True, _nrt=False)
def ngram_drop(table: Any, state: Any, limit: Any, more: Any, journal: Any, journal_used: Any) -> Any:
    """Drop n-grams until ``more`` new ones stay within the limit; return (whether they do, rows of the log in use)."""
    j = journal_used
    while state[USED] + more > limit:
        if j + MOST_DROPS * DROP_ROWS > journal.shape[0]:
            return False, j
        j = _drop(table, state, limit, journal, j)
    return True, j


@njit(cache=True, _nrt=False)
def ngram_purge(table: Any, state: Any, journal: Any, journal_used: Any) -> Any:
    """Remove the records that are out of reach; return the log's length, ``DROP_ROWS`` more for each."""
    j = journal_used
    for s in range(1, table.shape[0]):
        if 0 < table[s, IDENTITY] < table[0, IDENTITY]:
            j = _log(table, s, _PURGE, journal, j)
    _remove_logged(table, journal, journal_used, j, state[CONTEXT + 1 : CONTEXT + 1 + state[DEPTH]])
    state[OCCUPIED] = state[USED]
    return j


@njit(cache=True)
def hash_steps(hashes: npt.NDArray[np.uint32], tokens: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Return the hashes of n-grams that are one token longer, int64[n]."""
    steps = np.empty(len(hashes), dtype=np.int64)
    for i in range(len(hashes)):
        steps[i] = _step(np.int64(hashes[i]), np.int64(tokens[i]))
    return steps


def renumber(table: Table, state: Ints) -> None:
    """Number the identities anew from 1 on, in their order, so that 32 bits never run out."""
    used = table[:, IDENTITY] != 0
    living = np.sort(table[used, IDENTITY])
    root_parent = table[0, PARENT]
    for word in (PARENT, IDENTITY):
        table[used, word] = np.searchsorted(living, table[used, word]) + 1
    table[0, PARENT] = root_parent
    state[NEXT_IDENTITY] = len(living) + 1
