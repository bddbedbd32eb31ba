"""Every kind of tokenizer: a text comes back, and its bytes are those of the text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.data.shard_writer import ShardWriter
from evalkit.plumbing.errors import TokenError
from evalkit.tokens.kinds import open_tokenizer
from evalkit.tokens.shards import open_shard
from evalkit.tokens.stream import TokenStream, VisibleTokens, open_shards

TEXT = "hello  there,\r\nmy na\u00efve friend \u4f60\u597d \U0001f600\x00!"


@given(st.text())
def test_bytes_are_the_text_itself(text: str) -> None:
    tokenizer = open_tokenizer("bytes")
    ids = tokenizer.encode_document(text)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.byte_table.count(ids[:-1], ids[1:]).sum()) == len(text.encode())


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level ``tokenizer.json`` of 300 pieces, trained here."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello there my friend, hello world"] * 3, trainer)
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def space_mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``tokenizer.json`` of pieces with the space mark and byte fallback, as Llama's."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "\u2581a", "h", "e", "\u2581\u2581", "a"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [("\u2581", "a"), ("\u2581", "\u2581")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("kind", ["byte_level", "space_mark"])
def test_a_hugging_face_tokenizer_counts_the_bytes_of_the_text(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = open_tokenizer(request.getfixturevalue(kind))
    text = "x" + TEXT  # a leading space behind BOS is no byte of the text by the challenge's rule
    ids = tokenizer.encode_document(text)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.byte_table.count(ids[:-1], ids[1:]).sum()) == len(text.encode())


def test_the_unknown_token_of_a_unigram_model_is_known(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.Unigram([("<unk>", 0.0), ("<s>", 0.0), ("\u2581", -1.0), ("a", -1.0)], 0, False)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.add_special_tokens(["<unk>", "<s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.unk_id == 0
    assert tokenizer.encode_document("a a").tolist() == [1, 2, 3, 2, 3]
    with pytest.raises(TokenError, match="without its unknown token"):
        tokenizer.encode_document("a b")


def test_a_decoder_that_loses_text_is_refused(byte_level: Path, tmp_path: Path) -> None:
    description = json.loads(byte_level.read_text(encoding="utf-8"))
    description["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(TokenError, match="decodes by WordPiece, which does not give back the text"):
        open_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(TokenError, match=r"is not a Hugging Face tokenizer\.json"):
        open_tokenizer(tmp_path / "tokenizer.json")


def test_wide_tokens_are_written_and_read(tmp_path: Path) -> None:
    tokens = np.array([1, 70_000, 65_535, 65_536, 2], dtype=np.int32)
    writer = ShardWriter(tmp_path, "v_val", 3, 100_000)
    writer.write(tokens)
    writer.close()
    stream = open_shards(str(tmp_path / "*.bin"))
    assert stream.dtype == np.dtype("<u4")
    np.testing.assert_array_equal(stream.read(0, 5), tokens)
    visible = VisibleTokens(stream)
    np.testing.assert_array_equal(visible.up_to(4), tokens[:4])
    np.testing.assert_array_equal(visible.up_to(2), tokens[:2])
    visible.close()


def test_a_mixture_of_widths_is_one_stream() -> None:
    narrow, wide = np.array([1, 2], dtype="<u2"), np.array([70_000], dtype="<u4")
    stream = TokenStream(parts=(narrow, wide), names=("a", "b"))
    np.testing.assert_array_equal(stream.read(1, 3), [2, 70_000])


def test_another_magic_number_is_named(tmp_path: Path) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240521, 1, 0
    (tmp_path / "s.bin").write_bytes(header.tobytes())
    with pytest.raises(TokenError, match="starts with 20240521, 1; a token shard starts with 20240520, 1 or 20240801"):
        open_shard(tmp_path / "s.bin")
