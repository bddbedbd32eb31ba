"""Work beside a GPU: one piece of work is always under way, and the path that a GPU takes gives a CPU's numbers."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend

from evalkit.mixers import Mixer, default_config
from evalkit.model.attention import attend, has_flash
from evalkit.model.gpt import GPT
from evalkit.model.kernels import CANDIDATES, choose, measure
from evalkit.model.regions import Compiled
from evalkit.network import network
from evalkit.prequential.mixed import MixedForecaster
from evalkit.prequential.sliding import (
    HeldTokens,
    SlidingConfig,
    SlidingForecaster,
    compiled_meanwhile,
    gather_windows,
    windows_that_fit,
)
from evalkit.prequential.transfer import HostCopy, one_ahead
from evalkit.prequential.windows import plan_windows
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
    # What a GPU does, on this CPU; the parts are traced in one piece each, and run without code generation.
    monkeypatch.setattr(SlidingForecaster, "_on_cpu", False)
    monkeypatch.setattr(network, "Compiled", partial(Compiled, backend="eager"))
    shapes = []
    forecaster = SlidingForecaster(model(), replace(config, compile=True))
    compiled = forecaster._compiled.logits
    forecaster._compiled.logits = lambda ids, first_row: shapes.append(ids.shape) or compiled(ids, first_row)
    np.testing.assert_allclose(forecaster.score(tokens, 1, 300), expected, atol=1e-5)
    assert shapes == [(4, 64)] * 4  # of 15 windows after the first; the last three are filled up
    assert len(forecaster.score(tokens[:98], 81, 98)) == 17
    assert len(shapes) == 5  # two windows are half a batch
    assert len(forecaster.score(tokens[:289], 273, 289)) == 16
    assert len(shapes) == 5  # one is less, and not worth it


def test_compiling_meanwhile_leaves_nothing_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlidingForecaster, "_on_cpu", False)
    monkeypatch.setattr(network, "Compiled", partial(Compiled, backend="eager"))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    config = SlidingConfig(seq_len=64, stride=16, batch_windows=2, compile=True)
    tokens = np.arange(200) % VOCAB
    with compiled_meanwhile(model().config, config):
        own = model()
    before = counters["stats"]["unique_graphs"]
    assert before
    assert np.isfinite(SlidingForecaster(own, config).score(tokens, 65, 193)).all()
    assert counters["stats"]["unique_graphs"] == before


def test_windows_gathered_on_the_device_are_those_of_the_host(rng: np.random.Generator) -> None:
    tokens = rng.integers(1, VOCAB, 200).astype(np.uint16)
    for start, stop in ((1, 200), (70, 123), (100, 101), (65, 66)):
        windows = list(plan_windows(start, stop, 64, 16))
        held = HeldTokens(tokens, windows[0].window_start, stop - 1, torch.device("cpu"))
        np.testing.assert_array_equal(held.windows(windows, 64).numpy(), gather_windows(tokens, windows, 64))


@pytest.mark.parametrize(
    ("free", "each", "seq_len", "expected"),
    [
        (80 << 30, 40 << 20, 2048, 256),  # as many as fill it
        (8 << 30, 40 << 20, 2048, 136),  # as many as fit, in eights
        (200 << 20, 40 << 20, 2048, 3),
        (1, 40 << 20, 2048, 1),
        (80 << 30, 1, 1 << 20, 1),
    ],
)
def test_batches_fill_a_gpu_and_fit_into_it(free: int, each: int, seq_len: int, expected: int) -> None:
    assert windows_that_fit(free, each, seq_len) == expected


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("queries", [1, 5, 24])
def test_what_a_gpu_is_asked_for_is_the_same_attention(kv_heads: int, queries: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, queries, 8)
    k, v = torch.randn(2, 2, kv_heads, 24, 8)
    on_gpu, here = (attend(q, k, v, on_gpu=on_gpu, flash=False) for on_gpu in (True, False))
    torch.testing.assert_close(on_gpu, here)


def test_the_flash_kernel_is_asked_for_shapes_that_it_takes() -> None:
    q = torch.empty(2, 4, 5, 8, dtype=torch.bfloat16, device="meta")
    k, v = torch.empty(2, 2, 2, 24, 8, dtype=torch.bfloat16, device="meta")
    assert attend(q, k, v, on_gpu=True, flash=True).shape == q.shape
    assert not has_flash(torch.device("cpu"), torch.bfloat16, 8)


def test_a_kernel_is_taken_only_where_it_is_clearly_faster() -> None:
    flash, cudnn = CANDIDATES
    assert choose([]) is None
    assert choose([(flash, 1.0), (cudnn, 0.95)]).backend == flash
    assert choose([(flash, 1.0), (cudnn, 0.8)]).backend == cudnn
    assert choose([(cudnn, 2.0)]).backend == cudnn
    assert "cuDNN 0.80 ms" in str(choose([(flash, 1.0), (cudnn, 0.8)]))


@pytest.mark.parametrize("training", [False, True])
def test_kernels_that_a_device_lacks_are_left_out(training: bool) -> None:
    tried = (*CANDIDATES, SDPBackend.MATH)
    found = measure(tried, (2, 4, 2, 32, 8), torch.device("cpu"), torch.bfloat16, training=training)
    assert [backend for backend, _ in found] == [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]  # no cuDNN on a CPU
    assert all(value > 0 for _, value in found)
    with choose(found).active():
        attend(*torch.randn(3, 1, 2, 16, 8), on_gpu=False, flash=False)


def test_mixing_piece_by_piece_gives_the_numbers_of_whole_spans(rng: np.random.Generator) -> None:
    tokens = rng.integers(0, VOCAB, 300)
    neural = SlidingForecaster(model(), SlidingConfig(seq_len=64, stride=16))
    forecaster = MixedForecaster(neural, Mixer(default_config(VOCAB)), VOCAB)
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
