"""Work beside a GPU: one piece of work is always under way, and the path that a GPU takes gives a CPU's numbers."""

from functools import partial

import numpy as np
import pytest
import torch

from evalkit.mixers import Mixer, default_config
from evalkit.model.gpt import GPT
from evalkit.prequential.mixed import MixedForecaster
from evalkit.prequential.sliding import SlidingConfig, SlidingForecaster
from evalkit.prequential.transfer import HostCopy, one_ahead
from evalkit.recipes import load_recipe

VOCAB = 64


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_next_item_is_under_way_before_one_is_used(count: int) -> None:
    events = []

    def work() -> object:
        for i in range(count):
            events.append(f"start {i}")
            yield i

    for i in one_ahead(work()):
        events.append(f"use {i}")
    for i in range(count):
        assert events.index(f"use {i}") > events.index(f"start {min(i + 1, count - 1)}")
    assert len(events) == 2 * count


def test_a_copy_from_the_host_is_the_tensor_itself() -> None:
    tensor = torch.arange(3.0)
    assert np.shares_memory(HostCopy(tensor).wait(), tensor.numpy())


def model() -> GPT:
    torch.manual_seed(0)
    config = load_recipe("pr849").model_config(
        vocab_size=VOCAB, num_layers=3, model_dim=32, num_heads=2, num_kv_heads=2, mlp_hidden=48, rope_dims=8,
        bigram_buckets=16, bigram_dim=4, value_embed_dim=4,
    )  # fmt: skip
    return GPT(config).eval().requires_grad_(False)


def test_compiled_batches_give_the_numbers_of_single_windows(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    tokens = rng.integers(0, VOCAB, 300)
    config = SlidingConfig(seq_len=64, stride=16, batch_windows=4)
    expected = SlidingForecaster(model(), config).score(tokens, 1, 300)
    # What a GPU does, on this CPU; the graph is traced in one piece, and run without code generation.
    monkeypatch.setattr(SlidingForecaster, "_on_cpu", False)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    shapes = []
    config = SlidingConfig(seq_len=64, stride=16, batch_windows=4, compile=True)
    forecaster = SlidingForecaster(model(), config)
    compiled = forecaster._compiled.logits
    forecaster._compiled.logits = lambda ids, first_row: shapes.append(ids.shape) or compiled(ids, first_row)
    np.testing.assert_allclose(forecaster.score(tokens, 1, 300), expected, atol=1e-5)
    assert shapes == [(4, 64)] * 3  # of 15 windows after the first; what is left is not compiled


def test_mixing_piece_by_piece_gives_the_numbers_of_whole_spans(rng: np.random.Generator) -> None:
    tokens = rng.integers(0, VOCAB, 300)
    network = SlidingForecaster(model(), SlidingConfig(seq_len=64, stride=16))
    forecaster = MixedForecaster(network, Mixer(default_config(VOCAB)), VOCAB)
    mixer, whole = Mixer(default_config(VOCAB)), []
    for start, stop in ((1, 130), (130, 300)):
        forecaster.score(tokens[:stop], start, stop)  # scored twice: the first time is undone
        whole.append((forecaster.score(tokens[:stop], start, stop), _at_once(forecaster, mixer, tokens, start, stop)))
        forecaster.observe(tokens[:stop], start, stop)
        mixer.commit(stop)
    for pieces, expected in whole:
        np.testing.assert_array_equal(pieces, expected)


def _at_once(forecaster: MixedForecaster, mixer: Mixer, tokens: np.ndarray, start: int, stop: int) -> np.ndarray:
    values = [copy.wait() for _, _, copy in forecaster._network_values(tokens[:stop], start, stop)]
    assert len(values) > 1
    return mixer.score(tokens[:stop], start, stop, *np.concatenate(values, axis=1))
