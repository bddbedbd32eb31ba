"""Test-time training: exact, causal, and equal to the published runs where it repeats them."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evalkit.model.gpt import GPT
from evalkit.prequential.ledger import Ledger
from evalkit.prequential.loop import run_prequential
from evalkit.prequential.sliding import SlidingConfig, SlidingForecaster
from evalkit.recipes import load_recipe
from evalkit.tokens.shards import write_shard
from evalkit.tokens.stream import TokenStream
from evalkit.tokens.tokenizer import ByteTable
from evalkit.ttt.config import PRESETS, TTTConfig, sgd_config
from evalkit.ttt.forecaster import TTTForecaster
from evalkit.ttt.parameters import with_pair_table
from evalkit.ttt.schedule import learning_rate
from evalkit.ttt.temperature import temper
from evalkit.ttt.trainer import TrainingError
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.score import score
from evalkit.verbs.session import open_session

VOCAB, CHUNK, LENGTH = 48, 60, 400
SLIDING = SlidingConfig(seq_len=32, stride=8)
TABLE = ByteTable(
    base=np.arange(VOCAB, dtype=np.int32) % 4,
    has_space=np.arange(VOCAB) % 2 == 0,
    is_boundary=np.arange(VOCAB) < 3,
)
BASE = TTTConfig(
    chunk_tokens=CHUNK,
    learning_rate=1e-2,
    epochs=2,
    batch_sequences=2,
    polyak_decay=0.5,
    trainable="all_but_first_blocks",
)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(5)
    config = load_recipe("pr849").model_config(
        vocab_size=VOCAB, num_layers=3, model_dim=24, num_heads=2, num_kv_heads=2, mlp_hidden=32, rope_dims=8,
        bigram_buckets=16, bigram_dim=4, value_embed_dim=4,
    )  # fmt: skip
    model = GPT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def tokens(rng: np.random.Generator) -> np.ndarray:
    tokens = rng.integers(3, VOCAB, LENGTH)
    tokens[[0, 90, 95, 250]] = 1
    return tokens


def scores(model: GPT, config: TTTConfig | None, tokens: np.ndarray, **extra: Any) -> np.ndarray:
    forecaster: Any = SlidingForecaster(model, SLIDING)
    if config is not None:
        forecaster = TTTForecaster(model, SLIDING, config, TABLE, document_token=1, **extra)
    stream = TokenStream(parts=(tokens.astype(np.uint16),), names=("x",))
    return np.array(run_prequential(forecaster, stream, TABLE, Ledger()).scores())


VARIANTS = {
    "default": {},
    "sgd": {"optimizer": "sgd"},
    "scales": {"trainable": "scales"},
    "all": {"trainable": "all"},
    "last blocks": {"trainable": "last_blocks_and_scales", "blocks": 1},
    "shuffled": {"order": "shuffled", "schedule": "inverse_sqrt"},
    "adapters": {"trainable": "adapters"},
    "temperature": {"temperature": 0.9},
    "pairs": {"optimizer": "sgd", "trainable": "all", "hash_buckets": 16, "byte_weighted": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_later_token_moves_an_earlier_score(model: GPT, tokens: np.ndarray, variant: str) -> None:
    config, tokens = replace(BASE, **VARIANTS[variant]), tokens[: 3 * CHUNK + 20]
    reference = scores(model, config, tokens)
    for position in (CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 30, len(tokens) - 1):
        changed = tokens[: -(-position // CHUNK) * CHUNK + 1].copy()  # nothing is there after the chunk
        changed[position:] = (changed[position:] - 3 + 11) % (VOCAB - 3) + 3
        np.testing.assert_array_equal(scores(model, config, changed)[: position - 1], reference[: position - 1])


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "temperature"])
def test_learning_changes_scores_after_the_first_chunk_only(model: GPT, tokens: np.ndarray, variant: str) -> None:
    plain = scores(model, None, tokens)
    trained = scores(model, replace(BASE, **VARIANTS[variant]), tokens)
    np.testing.assert_array_equal(trained[:CHUNK], plain[:CHUNK])
    assert (trained[CHUNK:] != plain[CHUNK:]).any()


@pytest.mark.parametrize("change", [{"learning_rate": 0.0}, {"epochs": 0}])
def test_without_learning_the_scores_are_the_sliding_scores(model: GPT, tokens: np.ndarray, change: dict) -> None:
    np.testing.assert_array_equal(scores(model, replace(BASE, **change), tokens), scores(model, None, tokens))


@pytest.mark.parametrize("variant", ["adapters", "all", "temperature"])
def test_scores_are_those_of_the_mixture_with_the_frozen_network(model: GPT, tokens: np.ndarray, variant: str) -> None:
    config = replace(BASE, **VARIANTS[variant])
    mixed, alone, frozen = (
        scores(model, replace(config, **change), tokens)
        for change in ({"frozen_weight": 0.25}, {"frozen_weight": 0.0}, {"epochs": 0})
    )
    assert (alone != frozen).any()
    np.testing.assert_allclose(mixed, -np.log(0.75 * np.exp(-alone) + 0.25 * np.exp(-frozen)), rtol=0, atol=1e-12)


def test_polyak_decay_zero_scores_with_the_raw_weights(model: GPT, tokens: np.ndarray) -> None:
    forecaster = TTTForecaster(model, SLIDING, replace(BASE, polyak_decay=0.0), TABLE)
    forecaster.score(tokens[: CHUNK + 1], 1, CHUNK + 1)
    forecaster.observe(tokens[: CHUNK + 1], 1, CHUNK + 1)
    raw, average = forecaster._trainer.trained, forecaster._trainer.average
    assert forecaster._trainer.steps == 2
    for name in raw:
        torch.testing.assert_close(average[name], raw[name].detach(), rtol=0, atol=0)


def test_a_step_is_adamw_on_the_byte_weighted_loss(model: GPT, tokens: np.ndarray) -> None:
    config = replace(BASE, epochs=1, batch_sequences=8, trainable="all", grad_clip=0.0, polyak_decay=0.0)
    forecaster = TTTForecaster(model, SLIDING, config, TABLE)
    forecaster.score(tokens[: CHUNK + 1], 1, CHUNK + 1)
    forecaster.observe(tokens[: CHUNK + 1], 1, CHUNK + 1)
    naive = deepcopy(model).requires_grad_()
    total, weight = torch.zeros(()), 0.0
    for first in range(0, CHUNK, 32):
        ids = torch.from_numpy(tokens[first : min(first + 32, CHUNK) + 1])
        padded = torch.zeros(1, 32, dtype=torch.long)
        padded[0, : len(ids) - 1] = ids[:-1]
        losses = torch.nn.functional.cross_entropy(naive(padded)[0, : len(ids) - 1], ids[1:], reduction="none")
        num_bytes = torch.from_numpy(TABLE.count(ids[:-1].numpy(), ids[1:].numpy()))
        total = total + (losses * num_bytes).sum()
        weight += float(num_bytes.sum())
    (total / weight).backward()
    torch.optim.AdamW(naive.parameters(), lr=1e-2, weight_decay=0.0).step()
    for name, parameter in naive.named_parameters():
        torch.testing.assert_close(forecaster._trainer.trained[name], parameter, rtol=1e-4, atol=1e-5)


def test_sgd_carries_its_momentum_from_chunk_to_chunk(model: GPT, tokens: np.ndarray) -> None:
    config = replace(sgd_config(learning_rate=0.02, hash_buckets=16), chunk_tokens=64, epochs=2, batch_sequences=8)
    forecaster = TTTForecaster(model, SLIDING, config, TABLE, num_chunks=4)
    for start in (1, 65):
        forecaster.score(tokens[: start + 64], start, start + 64)
        forecaster.observe(tokens[: start + 64], start, start + 64)

    naive = with_pair_table(deepcopy(model), 16).requires_grad_()
    parameters = dict(naive.named_parameters())
    buffers: dict[str, torch.Tensor] = {}
    for chunk in (0, 1):
        rate = 0.02 * (1 + np.cos(np.pi * chunk / 3)) / 2
        ids = torch.from_numpy(tokens[64 * chunk : 64 * chunk + 65])
        for _ in range(2):
            logits = naive(ids[:-1].view(2, 32))
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:])
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            norm = torch.stack([g.norm() for g in gradients]).norm()
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                step = gradient * min(1.0, 1.0 / (float(norm) + 1e-6))
                buffers[name] = 0.9 * buffers[name] + step if name in buffers else step
                parameter.data -= rate * buffers[name]
    assert forecaster._trainer.trained["pair.weight"].any()
    for name, parameter in parameters.items():
        torch.testing.assert_close(forecaster._trainer.trained[name], parameter, rtol=1e-4, atol=1e-5)


def test_presets_of_published_systems() -> None:
    for name, rate, buckets in (("pr1477", 0.005, 0), ("pr1493", 0.005, 0), ("pr1529", 0.01, 16384)):
        preset = PRESETS[name]()
        assert (preset.learning_rate, preset.hash_buckets, preset.momentum) == (rate, buckets, 0.9)
        assert (preset.chunk_tokens, preset.epochs, preset.batch_sequences) == (32768, 3, 32)
        assert learning_rate(preset, 619, 1238) == pytest.approx(0.00249683 * rate / 0.005, rel=1e-5)


def test_adapters_start_from_zero_in_every_document(model: GPT, tokens: np.ndarray) -> None:
    config = replace(BASE, trainable="adapters", learning_rate=0.1)
    plain, adapted = scores(model, None, tokens), scores(model, config, tokens)
    opening = 250  # the token at 250 opens a document: what follows in its chunk is scored unadapted
    np.testing.assert_array_equal(adapted[opening : 5 * CHUNK], plain[opening : 5 * CHUNK])
    assert (adapted[5 * CHUNK : 6 * CHUNK] != plain[5 * CHUNK : 6 * CHUNK]).all()


@pytest.mark.parametrize("variant", ["default", "sgd", "adapters", "shuffled", "pairs"])
def test_a_saved_state_continues_to_the_same_bits(model: GPT, tokens: np.ndarray, variant: str) -> None:
    from evalkit.prequential.resume import dump_state, parse_state

    config = replace(BASE, **VARIANTS[variant])
    reference = scores(model, config, tokens)
    first = TTTForecaster(model, SLIDING, config, TABLE, document_token=1)
    stop = 3 * CHUNK + 1
    for start in range(1, stop, CHUNK):
        first.score(tokens[: start + CHUNK], start, start + CHUNK)
        first.observe(tokens[: start + CHUNK], start, start + CHUNK)
    second = TTTForecaster(model, SLIDING, config, TABLE, document_token=1)
    second.load_state_dict(parse_state(dump_state({"s": first.state_dict()}))["s"])
    for start in range(stop, LENGTH, CHUNK):
        end = min(start + CHUNK, LENGTH)
        np.testing.assert_array_equal(second.score(tokens[:end], start, end), reference[start - 1 : end - 1])
        second.observe(tokens[:end], start, end)


def test_gains_over_the_frozen_network_are_reported_by_document(model: GPT, tokens: np.ndarray) -> None:
    forecaster = TTTForecaster(model, SLIDING, replace(BASE, compare=True), TABLE, document_token=1)
    stream = TokenStream(parts=(tokens.astype(np.uint16),), names=("x",))
    trained = np.array(run_prequential(forecaster, stream, TABLE, Ledger()).scores())
    frozen = scores(model, None, tokens)
    num_bytes = TABLE.count(tokens[:-1], tokens[1:])
    report = forecaster.report()["ttt_report"]
    gain = (frozen.sum() - trained.sum()) / np.log(2) / num_bytes.sum()
    assert report["gain"]["bpb"] == pytest.approx(gain, rel=1e-12)
    assert report["gain"]["documents"] == 4
    low, high = report["gain"]["interval_95"]
    assert low < gain < high
    first = report["chunks"][1]
    piece = slice(CHUNK, 2 * CHUNK)
    assert first["bpb"] == pytest.approx(trained[piece].sum() / np.log(2) / num_bytes[piece].sum())
    assert first["frozen_bpb"] == pytest.approx(frozen[piece].sum() / np.log(2) / num_bytes[piece].sum())


def test_divergence_stops_with_the_chunk_named(model: GPT, tokens: np.ndarray) -> None:
    ledger = Ledger()
    forecaster = TTTForecaster(model, SLIDING, replace(BASE, learning_rate=1e30, optimizer="sgd"), TABLE)
    stream = TokenStream(parts=(tokens.astype(np.uint16),), names=("x",))
    with pytest.raises(TrainingError, match="after chunk 0"):
        run_prequential(forecaster, stream, TABLE, ledger)
    assert len(ledger) == CHUNK  # what was scored is kept


def test_schedules() -> None:
    published = TTTConfig(learning_rate=1.0, schedule="cosine", ramp=3.0)
    assert learning_rate(published, 0, 101) == pytest.approx(1.0)
    assert learning_rate(published, 50, 101) == pytest.approx(0.5 * 3.0)
    assert learning_rate(published, 100, 101) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(TTTConfig(learning_rate=1.0, schedule="inverse_sqrt"), 3, None) == 0.5
    with pytest.raises(ValueError, match="number of chunks"):
        learning_rate(published, 0, None)


def test_temperature_stays_normalised_and_sharpens_certainty() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    tempered = temper(logits, 0.95)
    torch.testing.assert_close(tempered[0], logits[0])
    assert tempered[1, 0] == pytest.approx(9.0 / 0.95, rel=1e-3)
    assert temper(logits, 1.0) is logits


PARITY = {"plain": 0, "ttt_only": 1, "ttt_only_no_averaging": 1, "mixer_only": 5, "both": 5}
"""Chunks that are learned before a score is compared: until its sixth the mixer leaves the network's scores alone."""


@pytest.mark.parametrize("variant", PARITY)
def test_published_runs_are_reproduced(shared: Path, tmp_path: Path, variant: str) -> None:
    """Scores after some chunks of learning; ``bench/parity.py --ttt`` compares the whole streams."""
    folder = shared / "parity/849/small"
    reference = np.load(folder / "ttt" / variant / "nll.npz")
    expected = json.loads((folder / "ttt" / variant / "result.json").read_text())["exactly_once"]
    write_shard(tmp_path / "val.bin", reference["tokens"])
    settings = {"preset": "published", "chunk_tokens": "2048", "epochs": "2", "batch_sequences": "2"}
    if variant in ("plain", "mixer_only"):
        settings["epochs"] = "0"
    if variant.endswith("no_averaging"):
        settings["polyak_decay"] = "0"
    options = ScoreOptions(
        artifact=str(folder / "final_model.int6.ptz"),
        recipe="pr849",
        tokens=str(tmp_path / "val.bin"),
        tokenizer=str(shared / "data/tokenizers/fineweb_1024_bpe.model"),
        seq_len=256,
        dtype="float32",
        batch_windows=2,
        ttt=True,
        mixer="published" if variant.startswith(("mixer", "both")) else "none",
        settings={"ttt": settings},
    )
    session = open_session(options)
    forecaster: Any = session.make_forecaster()
    begin, count = PARITY[variant] * 2048 + 1, 768
    tokens = session.stream.read(0, begin + count)
    for start in range(1, begin, 2048):
        forecaster.observe(tokens[: start + 2048], start, start + 2048)
    nll = forecaster.score(tokens, begin, begin + count)
    assert np.abs(nll - reference["nll"][begin - 1 : begin - 1 + count]).max() < 1e-4
    assert expected["tokens"] == len(session.stream) - 1


@pytest.mark.parametrize(("system", "variant"), [("1477", "ttt"), ("1529", "ttt_hash")])
def test_later_published_runs_are_reproduced(shared: Path, tmp_path: Path, system: str, variant: str) -> None:
    folder = shared / "parity" / system / "small"
    reference = np.load(folder / "ttt" / variant / "nll.npz")
    write_shard(tmp_path / "val.bin", reference["tokens"])
    options = ScoreOptions(
        artifact=str(folder / "final_model.int6.ptz"),
        recipe=f"pr{system}",
        tokens=str(tmp_path / "val.bin"),
        tokenizer=str(shared / "data/tokenizers/fineweb_8192_bpe.model"),
        seq_len=256,
        dtype="float32",
        ttt=True,
        settings={
            "model": {"layer_order": "0,1,2,1,2,1,2,3,4", "parallel_start": "3"},
            "ttt": {"preset": f"pr{system}", "chunk_tokens": "2048", "epochs": "2", "batch_sequences": "2"},
        },
    )
    session = open_session(options)
    forecaster: Any = session.make_forecaster()
    # One chunk to learn from, and what is made of it: the whole stream agrees as well (bench/parity.py), in minutes.
    tokens = session.stream.read(0, 2049 + 64)
    frozen = session.make_forecaster().score(tokens, 2049, 2049 + 64)
    forecaster.observe(tokens[:2049], 1, 2049)
    nll = forecaster.score(tokens, 2049, 2049 + 64)
    expected = reference["nll"][2048 : 2048 + 64]
    assert np.abs(nll - expected).max() < 1e-3
    assert np.abs(frozen - expected).max() > 1e-2


def test_the_published_mixer_is_reported_as_illegal(tiny_artifact_options: ScoreOptions) -> None:
    report = score(replace(tiny_artifact_options, mixer="published"))
    assert report.legal is False
    assert "exp(-H)" in str(report.illegal_because)


@pytest.fixture
def tiny_artifact_options(shared: Path) -> ScoreOptions:
    return ScoreOptions(
        artifact=str(shared / "parity/849/small/final_model.int6.ptz"),
        recipe="pr849",
        tokens=str(shared / "data/fineweb_sample/sp1024/*.bin"),
        tokenizer=str(shared / "data/tokenizers/fineweb_1024_bpe.model"),
        seq_len=64,
        limit_tokens=600,
    )
