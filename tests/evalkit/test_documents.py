"""Documents by themselves: each position once, with nothing of another document, whatever the batches and spans are."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.cli.main import run_command
from evalkit.codec import compress, decompress, read_header
from evalkit.model.gpt import GPT
from evalkit.plumbing.errors import InputError
from evalkit.prequential.sliding import SlidingConfig, SlidingForecaster
from evalkit.prequential.windows import plan_documents
from evalkit.recipes import load_recipe
from evalkit.tokens.shards import write_shard
from evalkit.verbs.check import CheckOptions, check
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.score import score
from evalkit.verbs.session import open_session

VOCAB, BOS, SEQ_LEN, STRIDE = 64, 1, 32, 8
CONFIG = SlidingConfig(seq_len=SEQ_LEN, stride=STRIDE, batch_windows=3, document_token=BOS)
LENGTHS = (1, 20, 2, 32, 33, 34, 90, 1, 1, 5, 61, 40)  # of documents, in tokens after BOS: with and without sliding


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    config = load_recipe("pr849").model_config(
        vocab_size=VOCAB, num_layers=3, model_dim=32, num_heads=2, num_kv_heads=2, mlp_hidden=48, rope_dims=8,
        bigram_buckets=16, bigram_dim=4, value_embed_dim=4,
    )  # fmt: skip
    model = GPT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def tokens(rng: np.random.Generator) -> np.ndarray:
    """A stream that begins inside a document."""
    texts = [rng.integers(2, VOCAB, n) for n in LENGTHS]
    return np.concatenate([np.concatenate([[7], texts[0]]), *(np.concatenate([[BOS], text]) for text in texts)])


def naive(model: GPT, tokens: np.ndarray) -> np.ndarray:
    """Cut the stream before every BOS; walk each document window by window; a BOS ends the document before it."""
    nll: list[float] = []
    cuts = [0, *(int(i) for i in np.flatnonzero(tokens[1:] == BOS) + 1), len(tokens) - 1]
    for cut, following in pairwise(cuts):
        document = torch.tensor(tokens[cut : following + 1])
        scored, start = 1, 0
        while scored < len(document):
            stop = min(start + SEQ_LEN + 1, len(document))
            rows = torch.log_softmax(model(document[None, start : stop - 1], fed_length=SEQ_LEN)[0].double(), -1)
            nll += [-float(rows[p - 1 - start, document[p]]) for p in range(scored, stop)]
            scored, start = stop, start + STRIDE
    return np.array(nll)


@given(
    openings=st.sets(st.integers(0, 150), max_size=12),
    length=st.integers(2, 150),
    seq_len=st.integers(1, 40),
    data=st.data(),
)
@settings(deadline=None, max_examples=200)
def test_every_position_once_in_its_own_document(
    openings: set[int], length: int, seq_len: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, seq_len))
    cuts = sorted(data.draw(st.sets(st.integers(2, length), max_size=4)) | {1, length})
    tokens = np.array([BOS if i in openings else 5 for i in range(length)])
    seen = []
    for start, stop in pairwise(cuts):
        for span in plan_documents(tokens[:stop], BOS, start, stop, seq_len, stride):
            for position in range(span.start, span.stop):
                first = max([i for i in openings if i < position], default=0)  # the token that opened its document
                held = position - span.window_start
                assert span.origin == first
                assert span.window_start >= first
                # The whole document where it fits; else what the first window that reaches the position holds.
                assert held == position - first if position - first <= seq_len else seq_len - stride < held <= seq_len
                seen.append(position)
    assert seen == list(range(1, length))


def test_the_last_token_moves_no_window() -> None:
    tokens = np.array([BOS, 5, 5, BOS, 5, 5])
    plan = partial(plan_documents, opening=BOS, start=1, stop=6, seq_len=4, stride=2)
    assert list(plan(tokens)) == list(plan(np.array([BOS, 5, 5, BOS, 5, BOS])))


def test_scores_are_those_of_a_naive_loop_over_documents(model: GPT, tokens: np.ndarray) -> None:
    expected = naive(model, tokens)
    assert len(expected) == len(tokens) - 1
    forecaster = SlidingForecaster(model, CONFIG)
    np.testing.assert_allclose(forecaster.score(tokens, 1, len(tokens)), expected, atol=1e-5)
    rows = forecaster.distribution(tokens, 1, len(tokens))
    np.testing.assert_allclose(np.exp(rows).sum(axis=1), 1.0, rtol=1e-12)
    for position in range(1, 140):
        row = forecaster.next_distribution(tokens[:position])
        np.testing.assert_allclose(row, rows[position - 1], atol=2e-5)


def test_it_is_another_number_than_sliding(model: GPT, tokens: np.ndarray) -> None:
    whole = SlidingForecaster(model, replace(CONFIG, document_token=None)).score(tokens, 1, len(tokens))
    apart = SlidingForecaster(model, CONFIG).score(tokens, 1, len(tokens))
    first = 1 + LENGTHS[0]  # as long as there is but one document, both see the same
    np.testing.assert_array_equal(apart[:first], whole[:first])
    assert (np.abs(apart[first:] - whole[first:]) > 1e-3).mean() > 0.5


def test_spans_and_threads_do_not_change_a_bit(model: GPT, tokens: np.ndarray) -> None:
    reference = SlidingForecaster(model, CONFIG).score(tokens, 1, len(tokens))
    for threads in (1, 3):
        forecaster = SlidingForecaster(model, replace(CONFIG, threads=threads))
        for span in (7, 50):
            pieces = [
                forecaster.score(tokens[: min(start + span, len(tokens))], start, min(start + span, len(tokens)))
                for start in range(1, len(tokens), span)
            ]
            np.testing.assert_array_equal(np.concatenate(pieces), reference)


def test_batches_of_any_size_give_the_numbers_of_single_windows(
    model: GPT, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = SlidingForecaster(model, CONFIG).score(tokens, 1, len(tokens))
    monkeypatch.setattr(SlidingForecaster, "_on_cpu", False)  # what a GPU does, on this CPU
    for batch_windows in (1, 2, 5, 64):
        forecaster = SlidingForecaster(model, replace(CONFIG, batch_windows=batch_windows))
        shapes = []
        logits = forecaster.network.logits
        monkeypatch.setattr(
            forecaster.network, "logits", lambda ids, row, of=logits, into=shapes: into.append(len(ids)) or of(ids, row)
        )
        np.testing.assert_allclose(forecaster.score(tokens, 1, len(tokens)), expected, atol=1e-6)
        assert max(shapes) == min(batch_windows, 8)  # the later windows of the longest document


def test_nothing_crosses_a_documents_end(model: GPT, tokens: np.ndarray) -> None:
    forecaster = SlidingForecaster(model, CONFIG)
    scores = forecaster.score(tokens, 1, len(tokens))
    openings = np.flatnonzero(tokens == BOS)
    for opening in openings[[1, 4, 7]]:
        other = tokens.copy()
        other[:opening] = (other[:opening] - 2 + 11) % (VOCAB - 2) + 2  # other text, and no document before this one
        np.testing.assert_array_equal(forecaster.score(other, 1, len(other))[opening:], scores[opening:])


def test_a_later_token_changes_nothing_before_it(model: GPT, tokens: np.ndarray) -> None:
    forecaster = SlidingForecaster(model, CONFIG)
    scores = forecaster.score(tokens, 1, len(tokens))
    for position in (1, 2, 22, 60, 100, 101, len(tokens) - 1):
        stop = min(position + SEQ_LEN + STRIDE, len(tokens))  # with every window that holds both
        for later in (BOS, 9):
            changed = tokens[:stop].copy()
            changed[position:] = later
            np.testing.assert_array_equal(forecaster.score(changed, 1, stop)[: position - 1], scores[: position - 1])


# Sessions and commands: an option like any other.


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen documents as JSON lines: longer and shorter than the window."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    texts = [topics[name][: 40 + 35 * i] for i, name in enumerate(sorted(topics)[:14])]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def options(tiny_artifact: Path, tokenizer_path: Path, documents: Path) -> ScoreOptions:
    return ScoreOptions(
        artifact=str(tiny_artifact),
        tokenizer=str(tokenizer_path),
        text=str(documents),
        seq_len=128,
        stride=32,
        limit_tokens=900,
        dtype="float32",
        context="documents",
    )


def test_the_report_says_which_number_it_is(options: ScoreOptions) -> None:
    apart, sliding = score(options), score(replace(options, context="sliding"))
    assert (apart.context, sliding.context) == ("documents", "sliding")
    assert apart.tokens_scored == sliding.tokens_scored == 900
    assert apart.bytes_scored == sliding.bytes_scored
    assert apart.bpb != sliding.bpb
    assert open_session(options).identity() != open_session(replace(options, context="sliding")).identity()


def test_it_is_legal(options: ScoreOptions) -> None:
    how = CheckOptions(span=40, budget_seconds=math.inf, positions=1, offsets=2, max_tokens=200)
    report = check(replace(options, seq_len=64), how)
    assert report.verdict == "legal", report.findings
    assert report.covered["subject"]["context"] == "documents"


@pytest.mark.parametrize(
    "change",
    [
        {"mixer": "hedge", "settings": {"ttt": {"chunk_tokens": "32"}}},
        {"settings": {"ttt": {"preset": "full", "chunk_tokens": "32"}}},
    ],
)
def test_what_learns_decodes_across_documents(options: ScoreOptions, change: dict[str, Any]) -> None:
    session = open_session(replace(options, seq_len=64, ttt=True, **change))
    tokens = session.stream.read(0, 80).astype(np.int64)
    assert np.count_nonzero(tokens == session.tokenizer.bos_id) > 2

    def make() -> Any:
        return session.make_forecaster()

    coded = compress(make, tokens, span=32)
    np.testing.assert_array_equal(decompress(make, coded.data), tokens)
    assert coded.words_bits < coded.ledger_bits * 1.001 + 64


def test_adapters_train_on_their_document_alone(options: ScoreOptions) -> None:
    """A long document's adapters see none of the text before it: another beginning of the stream changes nothing."""
    session = open_session(replace(options, ttt=True, settings={"ttt": {"chunk_tokens": "32"}}))
    stream = session.stream.read(0, 900).astype(np.int64)
    opening = int(np.flatnonzero(stream == session.tokenizer.bos_id)[3])
    results = []
    for text in (stream, np.concatenate([(stream[:opening] + 5) % 380 + 4, stream[opening:]])):
        forecaster: Any = session.make_forecaster()
        nll = []
        for start in range(1, 900, 32):
            stop = min(start + 32, 900)
            nll.append(forecaster.score(text[:stop], start, stop))
            forecaster.observe(text[:stop], start, stop)
        assert forecaster.report()["ttt_report"]["steps"] > 5
        results.append(np.concatenate(nll)[opening:])
    np.testing.assert_array_equal(*results)


def test_an_interrupted_run_resumes_to_the_same_bits(
    options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalkit.verbs.score import score_session

    monkeypatch.setenv("EVALKIT_STATE", str(tmp_path))
    options = replace(options, mixer="hedge", seq_len=64)  # spans of 256
    monkeypatch.setattr("evalkit.verbs.score._CHECKPOINT_SECONDS", 0.0)
    expected = score(options)
    calls = []
    observe = SlidingForecaster.observe

    def interrupted(self: Any, tokens: Any, start: int, stop: int) -> None:
        calls.append(start)
        if len(calls) == 3:
            raise KeyboardInterrupt
        observe(self, tokens, start, stop)

    monkeypatch.setattr(SlidingForecaster, "observe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_session(open_session(options), resume=False)
    report = score_session(open_session(options), resume=True)
    assert calls == [1, 257, 513, 513, 769]
    assert report.ledger_sha256 == expected.ledger_sha256


@pytest.mark.parametrize("pad", [True, False])
def test_a_module_scores_its_documents(pad: bool, tokenizer_path: Path, documents: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "class Model(torch.nn.Module):\n"
        f"    pad = {pad}\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.table = torch.nn.Embedding(384, 384)\n"
        "    def forward(self, ids):\n"
        "        x = self.table(ids)\n"
        "        return x.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]\n"
        "def make():\n    return Model()\n"
    )
    session = open_session(
        ScoreOptions(
            module=f"{tmp_path / 'own.py'}:make",
            tokenizer=str(tokenizer_path),
            text=str(documents),
            seq_len=128,
            stride=32,
            context="documents",
        )
    )
    stream = session.stream.read(0, len(session.stream)).astype(np.int64)
    torch.manual_seed(0)
    table = torch.nn.Embedding(384, 384).weight.detach().double().numpy()
    expected, origin = [], 0
    for p in range(1, len(stream)):
        origin = p - 1 if stream[p - 1] == session.tokenizer.bos_id else origin
        over = max(p - origin - 128, 0)
        row = table[stream[origin - (-over // 32) * 32 : p]].mean(axis=0)
        expected.append(np.log(np.exp(row).sum()) - row[stream[p]])
    np.testing.assert_allclose(score(session.options).nll, expected, atol=1e-5)


def test_compressed_files_hold_the_option(options: ScoreOptions, text_path: Path, tmp_path: Path) -> None:
    text, packed, back = tmp_path / "a.txt", tmp_path / "a.evk", tmp_path / "b.txt"
    text.write_text(text_path.read_text()[:120])
    common = [str(options.artifact)]
    tokenizer = ["--tokenizer", options.tokenizer]
    how = ["--context", "documents", "--seq-len", "32", "--stride", "8"]
    assert run_command(["compress", *common, str(text), "-o", str(packed), *tokenizer, *how, "--exact", "-q"]) == 0
    assert read_header(packed.read_bytes()).options["context"] == "documents"
    assert run_command(["decompress", *common, str(packed), "-o", str(back), *tokenizer, "-q"]) == 0
    assert back.read_bytes() == text.read_bytes()


def test_what_has_no_documents_is_one_sentence(options: ScoreOptions, tmp_path: Path) -> None:
    write_shard(tmp_path / "val_000000.bin", np.full(300, 40))
    with pytest.raises(InputError, match=r"the stream has no document, since BOS \(id 1\)"):
        open_session(replace(options, text=None, tokens=str(tmp_path / "val_*.bin")))
    with pytest.raises(InputError, match="--mixer published is for --context sliding"):
        replace(options, mixer="published")


def test_a_tokenizer_without_bos_is_one_sentence(
    options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalkit.tokens.kinds import open_tokenizer

    without = open_tokenizer(options.tokenizer)
    monkeypatch.setattr(without, "bos_id", -1)
    monkeypatch.setattr("evalkit.verbs.session.open_tokenizer", lambda path: without)
    with pytest.raises(InputError, match=r"has no BOS, which would open a document; use --context sliding"):
        open_session(options)
