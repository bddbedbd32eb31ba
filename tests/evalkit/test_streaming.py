"""The streaming forecaster: legal, repeatable, and equal to a window as long as everything fits into one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from evalkit.model.gpt import GPT
from evalkit.prequential.ledger import Ledger
from evalkit.prequential.loop import run_prequential
from evalkit.prequential.sliding import SlidingConfig, SlidingForecaster
from evalkit.prequential.streaming import StreamingConfig, StreamingForecaster
from evalkit.recipes import load_recipe
from evalkit.tokens.stream import TokenStream
from evalkit.tokens.tokenizer import ByteTable

VOCAB, LENGTH, SEQ_LEN = 40, 240, 48
TABLE = ByteTable(base=np.ones(VOCAB, np.int32), has_space=np.zeros(VOCAB, bool), is_boundary=np.zeros(VOCAB, bool))
CONFIG = StreamingConfig(seq_len=SEQ_LEN, block=8, sinks=3)


ORDERED = {
    "layer_order": (0, 1, 0, 2),
    "parallel_form": "routed",
    "parallel_start": 1,
    "skip_gates": True,
    "smear_gate": False,
    "smear_width": 8,
    "pair_buckets": 30,
    "value_residual": "none",
}


@pytest.fixture(scope="module", params=["pr333", "pr344", "pr849", "ordered"])
def model(request: pytest.FixtureRequest) -> GPT:
    torch.manual_seed(3)
    config = load_recipe("pr849" if request.param == "ordered" else request.param).model_config(
        vocab_size=VOCAB, num_layers=3, model_dim=24, num_heads=2, num_kv_heads=1, mlp_hidden=32,
        bigram_buckets=16, bigram_dim=4, value_embed_dim=4, **({"rope_dims": 8} if request.param != "pr333" else {}),
        **(ORDERED if request.param == "ordered" else {}),
    )  # fmt: skip
    model = GPT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture
def tokens(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, VOCAB, LENGTH)


def stream_scores(model: GPT, tokens: np.ndarray, config: StreamingConfig = CONFIG, span: int = 100) -> np.ndarray:
    stream = TokenStream(parts=(tokens.astype(np.uint16),), names=("x",))
    return np.array(run_prequential(StreamingForecaster(model, config), stream, TABLE, Ledger(), span=span).scores())


def test_equals_a_window_while_everything_fits(model: GPT, tokens: np.ndarray) -> None:
    window = SlidingForecaster(model, SlidingConfig(seq_len=SEQ_LEN, stride=1)).score(
        tokens[: SEQ_LEN + 1], 1, SEQ_LEN + 1
    )
    np.testing.assert_allclose(stream_scores(model, tokens)[:SEQ_LEN], window, atol=2e-5)


def test_spans_do_not_matter(model: GPT, tokens: np.ndarray) -> None:
    reference = stream_scores(model, tokens)
    for span, length in ((1, 150), (5, 150), (8, LENGTH), (64, LENGTH), (1000, LENGTH)):
        np.testing.assert_array_equal(stream_scores(model, tokens[:length], span=span), reference[: length - 1])


def test_threads_do_not_matter(model: GPT, tokens: np.ndarray) -> None:
    reference = stream_scores(model, tokens, replace(CONFIG, threads=1))
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(stream_scores(model, tokens, replace(CONFIG, threads=threads)), reference)


def test_a_failure_in_one_block_stops_the_others(model: GPT, tokens: np.ndarray) -> None:
    forecaster: Any = StreamingForecaster(model, replace(CONFIG, threads=3))

    class Broken:
        calls = 0

        def extend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            self.calls += 1
            if self.calls == 4:
                raise RuntimeError("broken")
            return keys, values

        def rewind(self) -> None:
            pass

    forecaster._caches[1] = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        forecaster.score(tokens, 1, LENGTH)


def test_repeated_calls_and_later_tokens_change_nothing(model: GPT, tokens: np.ndarray) -> None:
    reference = stream_scores(model, tokens)
    forecaster: Any = StreamingForecaster(model, CONFIG)
    for start in range(1, LENGTH, 57):
        stop = min(start + 57, LENGTH)
        other = tokens[:stop].copy()
        other[start + 20 :] = (other[start + 20 :] + 1) % VOCAB
        first = forecaster.score(other, start, stop)
        np.testing.assert_array_equal(first[:20], reference[start - 1 : start + 19][: len(first[:20])])
        rows = forecaster.distribution(tokens[:stop], start, stop)
        np.testing.assert_allclose(np.exp(rows).sum(axis=1), 1.0, rtol=1e-12)
        np.testing.assert_array_equal(forecaster.score(tokens[:stop], start, stop), reference[start - 1 : stop - 1])
        forecaster.observe(tokens[:stop], start, stop)


def test_sinks_stand_right_before_the_window(model: GPT, tokens: np.ndarray) -> None:
    """Far into the stream, a block sees what a window of sinks, recent tokens and itself would rotate alike."""
    forecaster = StreamingForecaster(model, CONFIG)
    stop = 20 * CONFIG.block + 1
    forecaster.score(tokens[:stop], 1, stop)
    forecaster.observe(tokens[:stop], 1, stop)
    cache = forecaster._caches[0]
    keys = torch.randn(1, model.config.num_kv_heads, CONFIG.block, model.config.head_dim)
    visible, _ = cache.extend(keys, keys)
    assert visible.shape[2] == SEQ_LEN
    assert torch.equal(visible[:, :, -CONFIG.block :], keys)
    from evalkit.model.rope import rotary_tables, rotate

    shift = torch.tensor([float(20 * CONFIG.block - (SEQ_LEN - CONFIG.block))], dtype=torch.float64)
    cos, sin = rotary_tables(model.config, SEQ_LEN, torch.device("cpu"), shift)
    torch.testing.assert_close(visible[:, :, :3], rotate(cache._sinks[0], cos, sin))


def test_stepping_agrees_with_blocks(model: GPT, tokens: np.ndarray) -> None:
    reference = stream_scores(model, tokens)
    forecaster = StreamingForecaster(model, CONFIG)
    for position in range(1, 100):
        row = torch.log_softmax(forecaster.next_logits(tokens[:position])[0].double(), -1)
        assert -row[tokens[position]].item() == pytest.approx(reference[position - 1], abs=1e-9)
        if position % 30 == 0:
            forecaster.score(tokens[: position + 1], position - 29, position + 1)
            forecaster.observe(tokens[: position + 1], position - 29, position + 1)
