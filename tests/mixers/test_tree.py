"""The tree expert against dictionaries; normalisation, roll-back and ageing of its lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveTree
from test_chain import TRIPLES, markov

from evalkit.mixers.tree_expert import TreeExpert
from evalkit.mixers.tree_lists import DEPTH


def make(vocab_size, orders=4, document_orders=3, *, document_token=1, rate=0.02, memory_bytes=1 << 26):
    return TreeExpert(
        vocab_size=vocab_size,
        orders=orders,
        document_orders=document_orders,
        discounts=TRIPLES,
        document_discounts=TRIPLES[2:],
        document_token=document_token,
        rate=rate,
        memory_bytes=memory_bytes,
    )


def advance(tree, tokens):
    return tree.advance(np.asarray(tokens, dtype=np.int64))[0]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocab_size=st.sampled_from([2, 3, 7, 16, 37]),
    orders=st.integers(1, 5),
    document_orders=st.integers(0, 3),
)
def test_tree_equals_dictionary_twin(seed, vocab_size, orders, document_orders):
    tokens = markov(np.random.default_rng(seed), 80, vocab_size)
    tree = make(vocab_size, orders, document_orders)
    naive = NaiveTree(orders, document_orders, TRIPLES, TRIPLES[2:], vocab_size, 1, 0.02)
    fast = advance(tree, tokens)
    # The kernel's logarithm is a series that is good to 2e-8.
    np.testing.assert_allclose(fast, [naive.score(int(y)) for y in tokens], rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [700, 8192])
def test_large_vocabularies_equal_the_twin(vocab_size):
    tokens = markov(np.random.default_rng(1), 12, vocab_size)
    tree = make(vocab_size, 3, 2)
    naive = NaiveTree(3, 2, TRIPLES, TRIPLES[2:], vocab_size, 1, 0.02)
    np.testing.assert_allclose(advance(tree, tokens), [naive.score(int(y)) for y in tokens], rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [2, 37, 1000])
def test_rows_sum_to_one_also_after_pruning(vocab_size):
    rng = np.random.default_rng(vocab_size)
    tree = make(vocab_size, memory_bytes=1 << 16)
    shrunk, before = 0, 0
    for _ in range(300):
        advance(tree, markov(rng, 60, vocab_size))
        logp, _ = tree.row()
        assert abs(np.exp(logp).sum() - 1) < 1e-9
        shrunk += tree.records < before
        before = tree.records
        y = int(rng.integers(0, vocab_size))
        assert advance(tree, [y])[0] == pytest.approx(logp[y], abs=1e-12)
        tree.commit()
    if vocab_size == 37:
        assert shrunk > 3


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), memory=st.sampled_from([1 << 16, 1 << 20]))
def test_rollback_is_exact_to_the_bit(seed, memory):
    rng = np.random.default_rng(seed)
    tree = make(30, memory_bytes=memory)
    for _ in range(3):
        advance(tree, markov(rng, int(rng.integers(1, 500)), 30))
        tree.commit()
    before = tree.state_dict()
    for _ in range(3):
        advance(tree, markov(rng, int(rng.integers(1, 800)), 30))
    tree.rollback()
    after = tree.state_dict()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)


def test_damaged_state_is_refused():
    tree = make(30)
    advance(tree, markov(np.random.default_rng(0), 300, 30))
    tree.commit()
    good = tree.state_dict()
    make(30).load_state_dict(good)
    for name, index in (("pool", -1), ("contexts", 1), ("state", DEPTH)):
        bad = {key: value.copy() for key, value in good.items()}
        bad[name][index] = 10**9 if name == "state" else 2**63 + 2**31
        with pytest.raises(ValueError, match="outside their tables"):
            make(30).load_state_dict(bad)
