"""``--module evalkit.hf:load``: a causal language model on this disk, scored without a look at the network."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

import evalkit
from evalkit.prequential.sliding import SlidingForecaster

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the extra hf is not installed")

WINDOW, STRIDE = 32, 16
SIZES = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        initializer_range=0.2,
        **SIZES,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=1, n_head=2, n_positions=WINDOW, initializer_range=0.2, **SIZES
    ),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(topics["assert"][:300] + " na\u00efve \u4f60\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A random model with a tokenizer, as ``save_pretrained`` writes them."""
    folder = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    config = CONFIGS[request.param]()
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280,  # fewer than the model has: some of its ids are never written
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text.read_text(encoding="utf-8")], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def options(folder: Path, text: Path) -> evalkit.ScoreOptions:
    return evalkit.ScoreOptions(
        module="evalkit.hf:load",
        weights=str(folder),
        tokenizer=str(folder / "tokenizer.json"),
        text=str(text),
        stride=STRIDE,
    )


@pytest.mark.usefixtures("offline")
def test_scores_are_those_of_a_plain_loop_over_transformers_own_model(model_folder: Path, text: Path) -> None:
    report = evalkit.score(options(model_folder, text))
    session = evalkit.open_session(options(model_folder, text))
    tokens = torch.from_numpy(session.stream.read(0, len(session.stream)).astype(np.int64))
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, local_files_only=True).eval()
    expected: list[float] = []
    start = 0
    while len(expected) < len(tokens) - 1:
        ids = tokens[start : start + WINDOW + 1]
        with torch.no_grad():
            rows = torch.log_softmax(model(ids[None, :-1]).logits[0].double(), -1)
        nll = -rows.gather(1, ids[1:, None])[:, 0]
        expected += nll[len(expected) - start :].tolist()
        start += STRIDE
    assert report.seq_len == WINDOW
    np.testing.assert_allclose(report.nll, expected, atol=1e-5)
    assert report.bytes_scored == report.bytes_raw == len(text.read_bytes())
    names = {Path(file.path).name for file in report.artifact.files} if report.artifact else set()
    assert names == {"hf.py", model_folder.name}


@pytest.mark.usefixtures("offline")
def test_steps_give_the_same_rows(model_folder: Path, text: Path) -> None:
    session = evalkit.open_session(options(model_folder, text))
    forecaster = session.make_forecaster()
    assert isinstance(forecaster, SlidingForecaster)
    tokens = session.stream.read(0, 50).astype(np.int64)
    rows = forecaster.distribution(tokens, 1, 50)
    for position in range(1, 50):
        np.testing.assert_allclose(forecaster.next_distribution(tokens[:position]), rows[position - 1], atol=1e-5)


@pytest.mark.usefixtures("offline")
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, text: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "x.M"}})
    )
    (tmp_path / "x.py").write_text("raise SystemExit('executed')")
    with pytest.raises(evalkit.InputError, match=r"transformers cannot read \S+: ") as caught:
        evalkit.score(options(tmp_path, text))
    assert "executed" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(evalkit.InputError, match="does not exist"):
        evalkit.score(options(tmp_path / "nowhere", text))
