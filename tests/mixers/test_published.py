"""PR849's mixer against the reference run of its own code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evalkit.mixers.published import PublishedMixer, fourgram_row, trigram_row

REFERENCE = Path(__file__).resolve().parents[2] / "../shared/parity/849/small/ttt"
CHUNK, LENGTH, STRIDE, BATCH = 2048, 256, 64, 2


def test_hash_rows_are_the_published_ones():
    assert [int(trigram_row(b, c)) for b, c in ((1, 2), (1000, 5))] == [22967, 1211]
    assert [int(fourgram_row(*x)) for x in ((1, 2, 3), (1000, 5, 77))] == [6552, 14638]


def test_network_scores_alone_until_ten_thousand_tokens():
    rng = np.random.default_rng(0)
    mixer = PublishedMixer(64)
    tokens = rng.integers(0, 64, size=5001)
    nll = rng.random(10).astype(np.float32)
    call = (np.zeros((10, 3), int), tokens[:10], nll, nll, np.arange(10) % 2 == 0)
    np.testing.assert_array_equal(mixer.score_batch(*call), nll[::2])
    mixer.observe_chunk(tokens)
    np.testing.assert_array_equal(mixer.score_batch(*call), nll[::2])
    np.testing.assert_array_equal(mixer.log_weights, [2, 0, 0, 0, 0, 0])
    mixer.observe_chunk(tokens)
    assert not np.array_equal(mixer.score_batch(*call), nll[::2])
    assert mixer.log_weights[0] < 2


def test_entropy_expert_claims_the_same_for_every_token():
    mixer = PublishedMixer(16)
    mixer.observe_chunk(np.arange(12000) % 16)
    targets = np.arange(16)
    nll = mixer.expert_nll(np.ones((16, 3), int), targets, np.full(16, np.log(16)), np.full(16, 0.5))
    mass = np.exp(-nll.astype(float)).sum(0)
    assert mass[1] == pytest.approx(1, abs=1e-5)
    assert mass[2] == pytest.approx(1, abs=1e-5)
    assert mass[5] > 9  # which is why the mixture is not a probability


def windows(n_targets):
    """Windows of each chunk in the order in which they were scored: (start, length, first scored)."""
    chunks = [[] for _ in range(n_targets // CHUNK)]
    for start in range(0, n_targets, STRIDE):
        length = min(LENGTH, n_targets - start)
        if length >= STRIDE:
            scored = start + (0 if start == 0 else max(length - STRIDE, 0))
            chunks[min(scored // CHUNK, len(chunks) - 1)].append((start, length, scored))
    return chunks


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the parity references are not here")
def test_count_experts_and_scores_follow_the_reference():
    with_mixer, plain = (np.load(REFERENCE / name / "nll.npz") for name in ("mixer_only", "plain"))
    tokens = with_mixer["tokens"].astype(np.int64)
    weights = with_mixer["expert_log_weights_after_chunk"]
    mixer = PublishedMixer(int(tokens.max()) + 1)
    for chunk, spans in enumerate(windows(len(tokens) - 1)):
        for at in range(0, len(spans), BATCH):
            contexts, targets, positions, scored = [], [], [], []
            for start, length, first in spans[at : at + BATCH]:
                window = tokens[start : start + length]
                padded = np.concatenate([[0, 0], window])
                contexts.append(np.stack([padded[:-2], padded[1:-1], window], axis=1))
                targets.append(tokens[start + 1 : start + length + 1])
                positions.append(np.arange(start, start + length))
                scored.append(positions[-1] >= first)
            i, keep = np.concatenate(positions), np.concatenate(scored)
            nll = plain["nll"][i]  # the network's own only where it was scored; no matter for the count experts
            contexts, targets = np.concatenate(contexts), np.concatenate(targets)
            if mixer.mixing and chunk == 5 and at == 0:
                # Weights are still the prior. What the entropy term must have been follows from the reference.
                experts = mixer.expert_nll(contexts[keep], targets[keep], nll[keep], np.zeros(keep.sum()))
                known = (np.exp(-experts[:, :5].astype(float)) * mixer.weights[:5]).sum(1)
                claimed = (np.exp(-with_mixer["nll"][i[keep]].astype(float)) - known) / mixer.weights[5]
                assert np.all((claimed > 1 / 1024) & (claimed < 1))
                entropy = np.zeros(len(nll))
                entropy[keep] = -np.log(claimed)
                got = PublishedMixer.score_batch(mixer, contexts, targets, nll, entropy, keep)
                np.testing.assert_allclose(got, with_mixer["nll"][i[keep]], atol=1e-5)
            else:
                got = mixer.score_batch(contexts, targets, nll, nll, keep)
                if not mixer.mixing:
                    np.testing.assert_array_equal(got, with_mixer["nll"][i[keep]])
        mixer.observe_chunk(tokens[CHUNK * chunk : CHUNK * (chunk + 1) + 1])
        np.testing.assert_allclose(mixer.log_weights[1:5], weights[chunk, 1:5], atol=1e-4)
