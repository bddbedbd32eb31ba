"""Parts compiled once for all blocks that are alike: few compilations however deep the network, and the same scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evalkit.model.gpt import GPT
from evalkit.model.regions import Compiled
from evalkit.recipes import load_recipe

VOCAB = 64


def model(recipe: str, **changes: object) -> GPT:
    torch.manual_seed(0)
    size = {"vocab_size": VOCAB, "model_dim": 32, "num_heads": 2, "num_kv_heads": 2, "mlp_hidden": 48, "rope_dims": 8}
    config = load_recipe(recipe).model_config(**{**size, **changes})
    network = GPT(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)  # scales that differ from block to block
    return network


@pytest.fixture
def how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """Traced in one piece each, and run without code generation."""
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return Compiled("eager")


@torch.inference_mode()
def graphs_of(network: GPT, how: Compiled) -> int:
    """Score compiled and as written; return how many graphs that took."""
    ids = torch.randint(0, VOCAB, (2, 32))
    counters = torch._dynamo.utils.counters  # dynamo is imported by what needs it: it takes 4 s
    before = counters["stats"]["unique_graphs"]
    torch.testing.assert_close(network.logits_from(ids, 24, how), network.logits_from(ids, 24), atol=1e-5, rtol=0)
    return int(counters["stats"]["unique_graphs"]) - before


def test_blocks_of_a_kind_share_their_compilation(how: Compiled) -> None:
    tables = {"bigram_buckets": 16, "bigram_dim": 4, "value_embed_dim": 4}
    # Embedding, value embedding, a skip, the head; a block as most are, one with value embeddings, the last.
    assert graphs_of(model("pr849", num_layers=4, **tables), how) == 7
    assert graphs_of(model("pr849", num_layers=11, **tables), how) == 1  # the embedding


def test_the_first_blocks_values_reach_the_later_ones(how: Compiled) -> None:
    config = {"num_layers": 4, "bigram_buckets": 16, "bigram_dim": 4, "trigram_buckets": 16, "trigram_dim": 4}
    assert graphs_of(model("pr344", **config), how) <= 8
