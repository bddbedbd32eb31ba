"""The n-gram table against a dictionary of counts; normalisation, roll-back and ageing of the table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveChain

import evalkit.mixers.chain as chain_module
from evalkit.mixers.chain import BYTES_PER_SLOT, NgramChain
from evalkit.mixers.ngram import (
    CONTEXT,
    COUNT,
    IDENTITY,
    MORE,
    NEXT_IDENTITY,
    PARENT,
    SINGLES_DOUBLES,
    TOTAL,
)
from evalkit.mixers.tree_lists import CODES_PER_ORDER

TRIPLES = np.array(
    [(0.5, 0.8, 1.0), (0.7, 1.0, 1.3), (0.8, 1.1, 1.4), (0.9, 1.3, 1.7), (0.6, 1.2, 1.6), (1.0, 2.0, 3.0)]
)


def make(orders, vocab_size, *, document_token=1, slots=1 << 20):
    return NgramChain(
        orders=orders,
        discounts=TRIPLES[:orders],
        vocab_size=vocab_size,
        document_token=document_token,
        memory_bytes=slots * BYTES_PER_SLOT,
    )


def advance(chain, tokens):
    probs, codes = chain.advance(np.asarray(tokens, dtype=np.int64))
    return probs, codes[:, 0]


def markov(rng, n, vocab_size):
    """Tokens that repeat themselves, so that high orders get counts above one."""
    tokens = list(rng.integers(0, vocab_size, size=8))
    while len(tokens) < n:
        if rng.random() < 0.7:
            at = int(rng.integers(0, len(tokens) - 4))
            tokens += tokens[at : at + int(rng.integers(2, 9))]
        else:
            tokens.append(int(rng.integers(0, vocab_size)))
    return np.array(tokens[:n], dtype=np.int64)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocab_size=st.sampled_from([2, 3, 5, 17, 300, 8192]),
    orders=st.integers(1, 4),
    documents=st.booleans(),
)
def test_chain_equals_dictionary_of_counts(seed, vocab_size, orders, documents):
    rng = np.random.default_rng(seed)
    tokens = markov(rng, 150, vocab_size)
    token = 1 if documents else None
    saved, chain_module.FIRST_SLOTS = chain_module.FIRST_SLOTS, 256  # collisions and several rebuilds
    try:
        chain = make(orders, vocab_size, document_token=token)
    finally:
        chain_module.FIRST_SLOTS = saved
    naive = NaiveChain(orders, TRIPLES, vocab_size, token)
    for i, y in enumerate(tokens):
        rows, best = naive.rows()
        if i % 37 == 0:
            fast, code = chain.row()
            np.testing.assert_allclose(fast, rows, rtol=1e-12, atol=0)
            assert code // CODES_PER_ORDER == best
        probs, codes = advance(chain, [y])
        np.testing.assert_allclose(probs[0], rows[:, y], rtol=1e-12, atol=0)
        assert codes[0] // CODES_PER_ORDER == best
        naive.learn(int(y))


def test_colliding_keys_are_told_apart():
    # 255 usable slots and 190 records: probe runs overlap everywhere, yet every probability stays exact.
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50, size=60)
    chain = make(3, 50, slots=256)
    naive = NaiveChain(3, TRIPLES, 50, 1)
    for y in tokens:
        rows, _ = naive.rows()
        probs, _ = advance(chain, [y])
        np.testing.assert_allclose(probs[0], rows[:, y], rtol=1e-12)
        naive.learn(int(y))
    assert chain.records > 120


@pytest.mark.parametrize("vocab_size", [2, 40, 1024])
def test_rows_sum_to_one_in_every_state_also_after_ageing(vocab_size):
    rng = np.random.default_rng(vocab_size)
    chain = make(4, vocab_size, slots=2000)
    worst = 0.0
    for _ in range(400):
        span = markov(rng, 60, vocab_size)
        probs, _ = advance(chain, span[:-1])
        rows, code = chain.row()
        worst = max(worst, float(np.abs(rows.sum(axis=1) - 1).max()))
        assert rows.min() > 0
        probs, codes = advance(chain, span[-1:])
        np.testing.assert_allclose(probs[0], rows[:, span[-1]], rtol=1e-12)
        assert codes[0] == code
        chain.commit()
    assert worst < 1e-9
    assert chain.table_bytes <= 2000 * BYTES_PER_SLOT
    if vocab_size > 2:
        assert born(chain) > 5 * 2000  # most n-grams have been dropped


def born(chain):
    """Return how many n-grams there have been."""
    return int(chain.arrays["state"][NEXT_IDENTITY])


def recount(chain):
    """Check that the totals of every context are the sums over the records below it."""
    table = chain.arrays["records"].astype(np.int64)
    used = table[table[:, IDENTITY] != 0]
    by_identity = {int(r[IDENTITY]): r for r in used}
    sums = {i: np.zeros(4, dtype=np.int64) for i in by_identity}
    for r in used[used[:, IDENTITY] != table[0, IDENTITY]]:
        if int(r[PARENT]) in sums:
            c = r[COUNT]
            sums[int(r[PARENT])] += [c, c == 1, c == 2, c > 2]
    for identity, r in by_identity.items():
        held = r[TOTAL], r[SINGLES_DOUBLES] & 0xFFFF, r[SINGLES_DOUBLES] >> 16, r[MORE]
        np.testing.assert_array_equal(sums[identity], held)


def test_totals_stay_the_sums_over_records():
    rng = np.random.default_rng(5)
    chain = make(4, 200, slots=1500)
    for _ in range(30):
        advance(chain, markov(rng, 150, 200))
        recount(chain)
        chain.commit()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), slots=st.sampled_from([300, 1000, 1 << 16]))
def test_rollback_is_exact_to_the_bit(seed, slots):
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain_module, "FIRST_SLOTS", 256)  # the largest bound grows on the way
        chain = make(4, 30, slots=slots)
    for _ in range(4):
        advance(chain, markov(rng, int(rng.integers(1, 300)), 30))
        chain.commit()
    before = chain.state_dict()
    for _ in range(3):
        advance(chain, markov(rng, int(rng.integers(1, 400)), 30))
    chain.rollback()
    after = chain.state_dict()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key])


def test_spans_of_any_size_give_the_same_bits():
    rng = np.random.default_rng(9)
    tokens = markov(rng, 4000, 60)
    whole, _ = advance(make(4, 60, slots=1200), tokens)
    chain = make(4, 60, slots=1200)
    pieces, at = [], 0
    while at < len(tokens):
        step = int(rng.integers(1, 400))
        pieces.append(advance(chain, tokens[at : at + step])[0])
        chain.commit()
        at += step
    np.testing.assert_array_equal(whole, np.concatenate(pieces))


def test_numbering_identities_anew_changes_nothing(monkeypatch):
    tokens = markov(np.random.default_rng(6), 3000, 60)
    expected, _ = advance(make(4, 60), tokens)
    monkeypatch.setattr(chain_module, "RENUMBER_FROM", 300)
    chain, pieces = make(4, 60), []
    for start in range(0, 3000, 250):
        pieces.append(advance(chain, tokens[start : start + 250])[0])
        advance(chain, tokens[:40])
        chain.rollback()
        pieces[-1] = advance(chain, tokens[start : start + 250])[0]
        chain.commit()
    np.testing.assert_array_equal(np.concatenate(pieces), expected)
    assert born(chain) == chain.records + 2  # no identity lies between two


def test_frequent_contexts_outlive_rare_ones():
    rng = np.random.default_rng(2)
    chain = make(3, 500, slots=4000)
    phrase = np.array([7, 8, 9, 10], dtype=np.int64)
    for _ in range(200):
        advance(chain, np.concatenate([phrase, rng.integers(20, 500, size=40)]))
        chain.commit()
    advance(chain, phrase[:2])
    rows, _ = chain.row()
    assert rows[2, 9] > 0.9


def test_state_round_trip_and_damage():
    rng = np.random.default_rng(1)
    chain, twin = make(4, 50), make(4, 50)
    advance(chain, markov(rng, 500, 50))
    with pytest.raises(ValueError, match="uncommitted"):
        chain.state_dict()
    chain.commit()
    twin.load_state_dict(chain.state_dict())
    more = markov(rng, 500, 50)
    np.testing.assert_array_equal(advance(chain, more)[0], advance(twin, more)[0])
    twin.commit()
    state = twin.state_dict()
    with pytest.raises(ValueError, match="expected uint32"):
        chain.load_state_dict({**state, "records": state["records"].astype(np.int64)})
    for key, place, value in (
        ("state", CONTEXT + 1, 10**9),
        ("records", (7, IDENTITY), 10**6),
        ("slots", 7, 10**6),
        ("slots", -1, 10**6),
        ("size", 0, 10**9),
    ):
        damaged = {name: array.copy() for name, array in state.items()}
        damaged[key][place] = value
        with pytest.raises(ValueError, match="outside their tables"):
            chain.load_state_dict(damaged)
