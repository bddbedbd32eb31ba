"""The mixer as its callers see it: normalised, causal, the same for any spans, undone exactly, resumed exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveChain, naive_hedge

from evalkit.mixers import Mixer, MixerConfig, best_config, default_config
from evalkit.mixers.config import DISCOUNTS

SHARED = Path(__file__).resolve().parents[2] / "../shared"


def stream(rng, n, vocab_size):
    """Repetitive documents: token 1 opens each."""
    tokens = [1]
    while len(tokens) < n:
        if rng.random() < 0.03:
            tokens.append(1)
        elif rng.random() < 0.6 and len(tokens) > 12:
            at = int(rng.integers(0, len(tokens) - 8))
            tokens += tokens[at : at + int(rng.integers(2, 9))]
        else:
            tokens.append(int(rng.integers(0, vocab_size)))
    return np.array(tokens[:n], dtype=np.uint16)


class Network:
    """A stand-in network: random rows that depend on the position and lean towards the token two before."""

    def __init__(self, tokens, vocab_size, seed=0):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(len(tokens), vocab_size))
        logits[np.arange(2, len(tokens)), tokens[:-2].astype(int)] += 2.0
        self.rows = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        p = np.exp(self.rows)
        self.entropy = -(p * self.rows).sum(1)
        sharp = self.rows * (1 + 0.1 * self.entropy[:, None])
        self.sharp = sharp - np.log(np.exp(sharp).sum(1, keepdims=True))
        self.tokens = tokens.astype(int)

    def span(self, start, stop):
        i = np.arange(start, stop)
        return self.rows[i, self.tokens[i]], self.sharp[i, self.tokens[i]], self.entropy[i]

    def row_span(self, start, stop):
        return self.rows[start:stop], self.sharp[start:stop], self.entropy[start:stop]


def configs(vocab_size):
    both = ("order", "entropy")
    return {
        "default": default_config(vocab_size),
        "default alone": default_config(vocab_size, network=False),
        "best": best_config(vocab_size),
        "best alone": best_config(vocab_size, network=False),
        "hedge sets": replace(default_config(vocab_size), contexts=both, eta=0.4, share=0.01),
        "gate": MixerConfig(
            vocab_size=vocab_size,
            experts=("unigram", "bigram", "4-gram", "neural"),
            method="gate",
        ),
        "plain": replace(default_config(vocab_size), share=0.0, contexts=()),
        "tree beside n-grams": MixerConfig(
            vocab_size=vocab_size,
            experts=("neural", "bigram", "trigram", "tree"),
            share=0.01,
            contexts=("order",),
            tree_orders=3,
        ),
        "tree by order": replace(best_config(vocab_size, network=False), method="hedge", contexts=("order",)),
        "no documents": best_config(vocab_size, document_token=None),
        "aged": replace(best_config(vocab_size), memory_bytes=2**16),
    }


NAMES = sorted(configs(16))


def inputs(config, network, start, stop):
    return network.span(start, stop) if config.needs_network else (None, None, None)


def run(config, tokens, network, cuts):
    mixer = Mixer(config)
    pieces = []
    for start, stop in zip([1, *cuts], [*cuts, len(tokens)], strict=True):
        pieces.append(mixer.score(tokens, start, stop, *inputs(config, network, start, stop)))
        mixer.commit(stop)
    return np.concatenate(pieces), mixer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vocab_size", [2, 21, 300])
def test_rows_sum_to_one_and_hold_the_score(name, vocab_size):
    config = configs(vocab_size)[name]
    tokens = stream(np.random.default_rng(vocab_size), 900, vocab_size)
    network = Network(tokens, vocab_size)
    scored, _ = run(config, tokens, network, [])
    mixer = Mixer(config)
    rows = mixer.distributions(tokens, 1, 900, *(network.row_span(1, 900) if config.needs_network else ()))
    assert np.abs(np.exp(rows).sum(1) - 1).max() < 1e-9
    np.testing.assert_allclose(-rows[np.arange(899), tokens[1:].astype(int)], scored, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_expert_is_a_distribution(name):
    config = configs(50)[name]
    tokens = stream(np.random.default_rng(3), 700, 50)
    network = Network(tokens, 50)
    mixer = Mixer(config)
    for i in range(1, 700):
        mixer.score(tokens, i, i + 1, *inputs(config, network, i, i + 1))
        mixer.commit(i + 1)
        rows, _ = mixer._experts.rows(network.rows[i], network.sharp[i])
        assert np.abs(np.exp(rows).sum(1) - 1).max() < 1e-9


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(NAMES), data=st.data())
def test_spans_of_any_size_give_the_same_bits(seed, name, data):
    config = configs(21)[name]
    tokens = stream(np.random.default_rng(seed), 600, 21)
    network = Network(tokens, 21)
    whole, _ = run(config, tokens, network, [])
    cuts = sorted(data.draw(st.sets(st.integers(2, 599), max_size=12)))
    pieces, _ = run(config, tokens, network, cuts)
    np.testing.assert_array_equal(whole, pieces)


@pytest.mark.parametrize("name", NAMES)
def test_a_span_scored_in_pieces_gives_the_same_bits(name):
    config = configs(21)[name]
    tokens = stream(np.random.default_rng(2), 700, 21)
    network = Network(tokens, 21)
    whole, _ = run(config, tokens, network, [])
    mixer = Mixer(config)
    for _ in range(2):
        mixer.rollback()
        cuts = zip([1, 90, 91, 400], [90, 91, 400, 700], strict=True)
        pieces = [mixer.extend(tokens, a, b, *inputs(config, network, a, b)) for a, b in cuts]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
    with pytest.raises(ValueError, match="score starts at 650; expected 700"):
        mixer.extend(tokens, 650, 700, *inputs(config, network, 650, 700))


@pytest.mark.parametrize("name", NAMES)
def test_scoring_again_undoes_everything_exactly(name):
    config = configs(21)[name]
    rng = np.random.default_rng(8)
    tokens = stream(rng, 900, 21)
    network = Network(tokens, 21)
    mixer = Mixer(config)
    mixer.score(tokens, 1, 300, *inputs(config, network, 1, 300))
    mixer.commit(300)
    before = mixer.state_dict()
    first = mixer.score(tokens, 300, 800, *inputs(config, network, 300, 800))
    changed = tokens.copy()
    changed[300:] = rng.integers(0, 21, size=600)
    mixer.score(changed, 300, 650, *inputs(config, network, 300, 650))
    mixer.distribution(changed, 300, *(x[0] for x in network.row_span(300, 301)))
    again = mixer.score(tokens, 300, 800, *inputs(config, network, 300, 800))
    np.testing.assert_array_equal(first, again)
    mixer.rollback()
    after = mixer.state_dict()
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_resuming_from_saved_state_gives_the_same_bits(name):
    config = configs(21)[name]
    tokens = stream(np.random.default_rng(4), 1200, 21)
    network = Network(tokens, 21)
    whole, mixer = run(config, tokens, network, [600])
    half = Mixer(config)
    half.score(tokens, 1, 600, *inputs(config, network, 1, 600))
    half.commit(600)
    other = Mixer(config)
    other.load_state_dict(half.state_dict())
    rest = other.score(tokens, 600, 1200, *inputs(config, network, 600, 1200))
    other.commit(1200)
    np.testing.assert_array_equal(rest, whole[599:])
    assert other.report() == mixer.report()


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_look_ahead(name):
    config = configs(21)[name]
    rng = np.random.default_rng(12)
    tokens = stream(rng, 400, 21)
    network = Network(tokens, 21)
    scored, _ = run(config, tokens, network, [])
    for at in (1, 2, 57, 200, 399):
        changed = tokens.copy()
        changed[at:] = rng.integers(0, 21, size=400 - at)
        short = Mixer(config).score(changed, 1, 400, *inputs(config, network, 1, 400))
        np.testing.assert_array_equal(short[: at - 1], scored[: at - 1])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), eta=st.floats(0.02, 1.0), network=st.booleans())
def test_hedge_loses_at_most_log_experts_over_eta(seed, eta, network):
    config = replace(default_config(30, network=network), eta=eta, share=0.0, contexts=())
    config = replace(config, prior=(1.0,) * len(config.experts))
    tokens = stream(np.random.default_rng(seed), 500, 30)
    scored, mixer = run(config, tokens, Network(tokens, 30, seed % 1000), [])
    best = min(expert["nats"] for expert in mixer.report()["experts"].values())
    assert scored.sum() <= best + np.log(len(config.experts)) / eta + 1e-9


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), eta=st.floats(0.05, 2.0), share=st.sampled_from([0.0, 0.01, 0.3]))
def test_mixer_equals_naive_twin(seed, eta, share):
    tokens = stream(np.random.default_rng(seed), 250, 40)
    config = replace(default_config(40, network=False), eta=eta, share=share, contexts=("order",), prior=(1, 2, 3, 4))
    scored, mixer = run(config, tokens, None, [100])
    chain = NaiveChain(4, np.array(DISCOUNTS[:4]), 40, 1)
    logp, sets = [], []
    for y in tokens.astype(int):
        rows, best = chain.rows()
        logp.append(np.log(rows[:, y]))
        sets.append(best)
        chain.learn(y)
    expected = naive_hedge(np.array(logp[1:]), sets[1:], (0.1, 0.2, 0.3, 0.4), eta, share, 5)
    np.testing.assert_allclose(scored, expected, rtol=0, atol=1e-9)
    report = mixer.report()
    for e, expert in enumerate(report["experts"].values()):
        assert expert["nats"] == pytest.approx(-np.array(logp[1:])[:, e].sum())
    assert report["nats"] == pytest.approx(scored.sum())


def test_leave_one_out_gain_is_what_the_others_lose():
    tokens = stream(np.random.default_rng(0), 800, 30)
    config = replace(default_config(30, network=False), eta=0.1, share=0.0, contexts=())
    scored, mixer = run(config, tokens, None, [])
    for left_out, name in enumerate(config.experts):
        rest = tuple(e for e in config.experts if e != name)
        # Dropping an expert leaves the ratios of the other Hedge weights as they are, so a second run is the answer.
        prior = _prior(config)
        fewer = replace(config, experts=rest, prior=tuple(w for i, w in enumerate(prior) if i != left_out))
        if fewer.orders != config.orders:
            continue
        without, _ = run(fewer, tokens, None, [])
        gain = mixer.report()["experts"][name]["leave_one_out_gain"]
        assert gain == pytest.approx(without.sum() - scored.sum(), abs=1e-6)


def _prior(config):
    return tuple(Mixer(config)._weighting.weights[0])


def test_weights_follow_the_better_expert_and_are_sampled():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50, size=40000).astype(np.uint16)
    good = np.full(len(tokens) - 1, np.log(0.5))
    mixer = Mixer(default_config(50))
    mixer.score_stream(tokens, good, np.full(len(good), np.log(0.02)), np.zeros(len(good)), span=8192)
    report = mixer.report()
    assert report["experts"]["neural"]["mean_weight"] > 0.9
    rows = report["weights_over_time"]
    assert [row[0] for row in rows] == [8193, 16385, 24577, 32769, 40000]
    lengths = np.diff([1, *(row[0] for row in rows)])
    mean = sum(n * row[1] for n, row in zip(lengths, rows, strict=True)) / (len(tokens) - 1)
    assert abs(mean - next(iter(report["experts"].values()))["mean_weight"]) < 1e-12
    assert all(abs(sum(row[1:]) - 1) < 1e-9 for row in report["weights_over_time"])
    assert report["nats"] < 1.01 * -good.sum()


def test_misuse_is_named():
    tokens = stream(np.random.default_rng(0), 50, 21)
    mixer = Mixer(default_config(21))
    with pytest.raises(ValueError, match="neural_logp is missing"):
        mixer.score(tokens, 1, 50)
    with pytest.raises(ValueError, match="expected 1, where"):
        mixer.score(tokens, 2, 50)
    alone = Mixer(default_config(21, network=False))
    with pytest.raises(ValueError, match="token 33 lies outside the vocabulary of 21"):
        alone.score(np.array([1, 33]), 1, 2)
    alone.score(tokens, 1, 20)
    with pytest.raises(ValueError, match="commit at 30; expected 20"):
        alone.commit(30)
    with pytest.raises(ValueError, match="commit or roll back"):
        alone.state_dict()
    alone.commit(20)
    with pytest.raises(ValueError, match="another configuration"):
        Mixer(default_config(22, network=False)).load_state_dict(alone.state_dict())
    with pytest.raises(ValueError, match="NaN or values above 0"):
        mixer.score(tokens, 1, 3, np.array([0.1, np.nan]), np.zeros(2))
    for bad in (
        {"experts": ("oracle",)},
        {"experts": ("5-gram",)},
        {"eta": 0.0},
        {"discounts": ((1.5, 1, 1),)},
        {"share": 1.0},
    ):
        with pytest.raises(ValueError, match=r"oracle|5-gram|eta is|discounts|share is"):
            replace(default_config(21), **bad)


def load(path):
    words = np.fromfile(path, dtype="<u2", offset=1024)
    return words


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the shared text data is not here")
def test_real_text_is_compressed():
    tokens = load(SHARED / "data/corpus/sp1024/fineweb_val_000000.bin")[:40000]
    alone = Mixer(default_config(1024, network=False)).score_stream(tokens).sum()
    best = Mixer(best_config(1024, network=False)).score_stream(tokens).sum()
    assert best < 0.97 * alone < 0.7 * len(tokens) * np.log(1024)


@pytest.mark.skipif(not (SHARED / "parity").is_dir(), reason="the parity references are not here")
@pytest.mark.parametrize("preset", [default_config, best_config])
def test_mixture_does_not_hurt_a_real_network(preset):
    reference = np.load(SHARED / "parity/849/small/nll.npz")
    tokens, nll, n_bytes = reference["tokens"], reference["nll"].astype(float), reference["bytes"]
    # Only the realised token's value is at hand: it stands in for the re-tempered network as well.
    mixed = Mixer(preset(1024)).score_stream(tokens, -nll, -nll, np.full(len(nll), 3.0))
    assert (mixed.sum() - nll.sum()) / np.log(2) / n_bytes.sum() < 0.001
