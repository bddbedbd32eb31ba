"""The e-values, the sources, and the tolerances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.legality.evalue import bounded_bets, restarted, symmetric_bets
from evalkit.legality.noise import NoiseProfile, grid_of, one_sided_gain, step, two_groups
from evalkit.legality.sources import BigramSource, UniformSource


def naive_restarts(ratios: list[float]) -> float:
    """The largest over time of the mean over starts of the products since the start."""
    n = len(ratios)
    best = 0.0
    for end in range(n):
        total = sum(math.exp(sum(ratios[start : end + 1])) for start in range(end + 1)) + (n - 1 - end)
        best = max(best, math.log(total / n))
    return best


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=25))
def test_restarts_equal_their_definition(ratios):
    assert restarted(np.array(ratios)).log_e == pytest.approx(naive_restarts(ratios), abs=1e-9)


def test_a_bad_start_does_not_hide_a_bad_end():
    ratios = np.concatenate([np.full(500, -1.0), np.full(60, 0.5)])
    evidence = restarted(ratios)
    assert evidence.p_value < 1e-9
    assert evidence.start == 500
    assert evidence.nats == pytest.approx(30.0)
    assert ratios.sum() < -400  # the plain e-value sees nothing at all


def test_false_alarms_stay_below_their_level():
    """A legal code on 2,000 streams: p < 0.05 in at most 5 % (and 0.05 + 5 sigma is not reached)."""
    rng = np.random.default_rng(0)
    q, p = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    tokens = rng.choice(3, size=(2000, 60), p=q)
    logs = np.log(p / q)[tokens]
    alarms = np.mean([restarted(row).p_value < 0.05 for row in logs])
    bets = np.mean([bounded_bets(np.exp(row)).p_value < 0.05 for row in logs])
    assert alarms < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 2000)
    assert bets < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize("noise", ["normal", "two values", "heavy tails", "changing size", "shifted down"])
def test_symmetric_noise_is_not_accused(noise):
    rng = np.random.default_rng(3)
    shape = (2000, 150)
    signs = rng.choice([-1.0, 1.0], shape)
    values = {
        "normal": 1e-3 * rng.normal(size=shape),
        "two values": 0.25 * signs,
        "heavy tails": 1e-3 * rng.standard_cauchy(shape),
        "changing size": signs * 10.0 ** rng.uniform(-6, 1, (1, 150)),
        "shifted down": 1e-3 * signs - 1e-3 * rng.random((1, 150)),
    }[noise]
    assert np.mean([symmetric_bets(row).p_value < 0.05 for row in values]) < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 2000)


def test_many_positions_show_what_none_of_them_does():
    rng = np.random.default_rng(4)
    values = 1e-3 + 2e-3 * rng.normal(size=400)
    assert np.mean(values < 0) > 0.25
    assert symmetric_bets(values).p_value < 1e-9
    assert symmetric_bets(-values).p_value > 0.1
    assert symmetric_bets(np.zeros(0)).p_value == 1.0


def test_noise_of_tokens_is_granted_what_it_averages_to():
    spread = NoiseProfile(content=2e-3).bias(np.full(1000, 1e-3))
    one = NoiseProfile(content=2e-3).bias(np.eye(1000)[0])
    assert spread == pytest.approx(3e-4 + 1e-6 + 6 * 2e-3 / math.sqrt(2000))
    assert one == pytest.approx(3e-4 + 1e-6 + 6 * 2e-3 / math.sqrt(2))
    rounded = NoiseProfile(grid="bfloat16").bias(np.full(1000, 1e-3))  # scores of 6.9 nats: steps of 2^-5
    assert rounded == pytest.approx(3e-4 + 6 * 2**-5 / math.sqrt(6000))
    assert NoiseProfile(call=2e-3).bias(np.eye(2)[0]) == pytest.approx(3e-4 + 1e-6)  # it averages out


def test_bets_find_a_sum_above_one_in_noisy_ratios():
    rng = np.random.default_rng(1)
    ratios = 1.5 * rng.exponential(1.0, 800)
    assert bounded_bets(ratios).p_value < 1e-9
    assert bounded_bets(ratios / 1.6).p_value > 0.01


@pytest.mark.parametrize("source", [UniformSource(20), BigramSource.invented(20, 3)])
def test_sources_state_the_log_probabilities_they_draw_from(source):
    rng = np.random.default_rng(2)
    tokens, log_q = source.sample(20_000, 1, rng)
    assert tokens[0] == 1
    assert len(log_q) == len(tokens) - 1
    pairs: dict[tuple[int, int], int] = {}
    heads = np.bincount(tokens[:-1], minlength=20)
    stated = {}
    for a, b, lq in zip(tokens[:-1].tolist(), tokens[1:].tolist(), log_q.tolist(), strict=True):
        pairs[a, b] = pairs.get((a, b), 0) + 1
        stated[a, b] = lq
    for (a, b), count in pairs.items():
        q = math.exp(stated[a, b])
        assert abs(count - heads[a] * q) < 6 * math.sqrt(heads[a] * q) + 6


def test_bigram_probabilities_sum_to_one():
    stream = np.random.default_rng(0).integers(0, 9, 300)
    for source in (BigramSource.invented(12, 0), BigramSource.fitted(stream, 12)):
        for head in range(12):
            assert sum(source.probability(head, t) for t in range(12)) == pytest.approx(1.0, abs=1e-12)


def test_grids_are_recognised():
    values = np.random.default_rng(0).exponential(3.0, 200)
    single = values.astype(np.float32)
    coarse = (single.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert grid_of(values) == "float64"
    assert grid_of(single.astype(np.float64)) == "float32"
    assert grid_of(coarse.astype(np.float64)) == "bfloat16"
    assert grid_of(values.astype(np.float16).astype(np.float64)) == "float16"
    p = np.exp(-np.minimum(values, 8.0))
    cut = (p.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    for name, kept in (("bfloat16", cut), ("float16", p.astype(np.float16))):
        assert grid_of(-np.log(kept.astype(np.float64))) == f"{name} probabilities"
        assert grid_of(-np.log(kept.astype(np.float32)).astype(np.float64)) == f"{name} probabilities"
    assert step(np.array([-np.log(0.75)]), "bfloat16 probabilities")[0] == pytest.approx(np.log1p(2.0**-8 / 0.75))
    assert step(np.array([3.0]), "bfloat16")[0] == 2.0**-6
    assert step(np.array([3.0]), "float32")[0] == np.spacing(np.float32(3.0))


def test_a_few_leaks_do_not_pass_for_noise():
    moves = np.zeros(970)
    moves[::97] = 1e-3
    profile = NoiseProfile.measured("float64", moves)
    assert profile.exact
    assert profile.upper == 0.0
    assert profile.material() < 1e-3


def test_t_tests():
    rng = np.random.default_rng(0)
    assert two_groups(np.zeros(20), np.full(20, 1e-3)) == (pytest.approx(1e-3), 0.0)
    assert two_groups(np.zeros(20), np.zeros(20))[1] == 1.0
    assert two_groups(rng.normal(size=50), rng.normal(size=50))[1] > 1e-4
    assert two_groups(rng.normal(size=50), rng.normal(3.0, size=50))[1] < 1e-9
    assert one_sided_gain(np.full(10, 0.5))[1] == 0.0
    assert one_sided_gain(rng.normal(size=50))[1] > 1e-4
