import math

import pytest
import torch

from evalkit.recipes import load_recipe
from evalkit.train.init import initial_weights, overtone, phase_mix
from evalkit.train.resolve import resolve


def weights(recipe: str, scale: str = "64x3", **overrides: str) -> dict[str, torch.Tensor]:
    keys = {k.replace("__", "."): v for k, v in overrides.items()}
    config = resolve(load_recipe(recipe), keys, scale=scale)
    return initial_weights(config.model, config.init, seed=1)


def test_matrices_are_semi_orthogonal_and_outputs_zero() -> None:
    w = weights("pr849")
    assert not w["blocks.1.attn.proj.weight"].any()
    assert not w["blocks.1.mlp.proj.weight"].any()
    for name in ("blocks.0.attn.c_q.weight", "blocks.2.mlp.fc.weight"):
        assert torch.linalg.svdvals(w[name]).sub(1).abs().max() < 1e-5
    # 1 / sqrt(2 layers) reaches the hash and value projections alone.
    for name in ("bigram.proj.weight", "ve_shared.proj.weight"):
        assert torch.linalg.svdvals(w[name]).sub(1 / math.sqrt(6)).abs().max() < 1e-5
    assert not w["bigram.embed.weight"].any()
    assert w["ve_shared.embed.weight"].std().item() == pytest.approx(0.01, rel=0.1)
    assert w["tok_emb.weight"].std().item() == pytest.approx(0.005, rel=0.05)


def test_pr344_projections_are_not_scaled_and_the_gate_opens_at_sigmoid_4() -> None:
    w = weights("pr344")
    assert torch.linalg.svdvals(w["trigram.proj.weight"]).sub(1).abs().max() < 1e-5
    assert not w["blocks.0.attn.attn_gate.weight"].any()
    assert torch.equal(w["blocks.0.attn.attn_gate.bias"], torch.full((4,), 4.0))
    gate = weights("pr344", init__attention_gate="orthogonal")["blocks.0.attn.attn_gate.weight"]
    assert torch.linalg.svdvals(gate).sub(1).abs().max() < 1e-5


def test_overtone_has_the_published_spectrum() -> None:
    table = torch.randn(1024, 512, generator=torch.Generator().manual_seed(0)) * 0.005
    shaped = overtone(table)
    s = torch.linalg.svdvals(shaped)
    expected = torch.linalg.svdvals(table)[0] * torch.arange(1, 513) ** -0.5
    assert torch.allclose(s, expected, rtol=1e-3)
    # The fact sheet's figures: Frobenius norm 3.62 -> 0.717, element rms 0.00099.
    assert shaped.norm().item() == pytest.approx(0.717, rel=0.02)
    assert shaped.square().mean().sqrt().item() == pytest.approx(0.00099, rel=0.02)


def test_phase_mix_has_the_published_values() -> None:
    published = [0.182, 0.232, 0.289, 0.354, 0.426, 0.5, 0.574, 0.646, 0.711, 0.769, 0.818]
    assert [phase_mix(i, 11) for i in range(11)] == pytest.approx(published, abs=6e-4)
    mix = weights("pr333", scale="64x11")["blocks.0.resid_mix"]
    assert mix[0].unique().item() == pytest.approx(0.182, abs=1e-3)
    assert torch.allclose(mix.sum(0), torch.ones(64))


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, second = weights("tiny"), weights("tiny")
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
