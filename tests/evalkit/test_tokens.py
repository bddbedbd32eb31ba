"""Shards, texts and the byte rule."""

import json
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.plumbing.errors import TokenError
from evalkit.tokens.shards import find_shards, open_shard, write_shard
from evalkit.tokens.stream import TokenStream, VisibleTokens, open_shards, tokenize_file
from evalkit.tokens.texts import read_documents
from evalkit.tokens.tokenizer import Tokenizer


def test_shards_round_trip_and_join_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_shard(tmp_path / "b_1.bin", np.array([7, 8, 65535]))
    write_shard(tmp_path / "b_0.bin", np.array([1, 5]))
    stream = open_shards(str(tmp_path / "b_*.bin"))
    assert stream.read(0, 5).tolist() == [1, 5, 7, 8, 65535]
    assert stream.read(1, 3).tolist() == [5, 7]
    assert stream.truncated(3).read(0, 3).tolist() == [1, 5, 7]
    assert [path.name for path in find_shards(str(tmp_path))] == ["b_0.bin", "b_1.bin"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:1000], "a shard has a header"),
        (lambda b: b"\x00" * 4 + b[4:], "a token shard starts with"),
        (lambda b: b[:4] + b"\x02" + b[5:], "a token shard starts with"),
        (lambda b: b[:-1], "its header announces 3 tokens"),
        (lambda b: b + b"\x00\x00", "its header announces 3 tokens"),
        (lambda b: b[:8] + b"\xff\xff\xff\xff" + b[12:], "its header announces -1 tokens"),
        (lambda b: b[:8] + b"\x00\x00\x00\x00" + b[12:1024], "holds no tokens"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage, message: str) -> None:
    write_shard(tmp_path / "s.bin", np.array([1, 2, 3]))
    (tmp_path / "s.bin").write_bytes(damage((tmp_path / "s.bin").read_bytes()))
    with pytest.raises(TokenError, match=message):
        open_shard(tmp_path / "s.bin")


def test_ids_outside_the_vocabulary_and_unknown_tokens_are_errors(tokenizer_path: Path) -> None:
    tokenizer = Tokenizer(tokenizer_path)
    for tokens, message in (
        ([1, 50, 384], "token 2 is id 384"),
        ([1, 3, 50], "unknown token"),
        ([1], "no token to score"),
    ):
        stream = TokenStream(parts=(np.array(tokens, dtype=np.uint16),), names=("x",))
        with pytest.raises(TokenError, match=message):
            stream.validate(tokenizer)


def test_without_byte_fallback_unknown_tokens_are_counted(
    tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = Tokenizer(tokenizer_path)
    monkeypatch.setattr(tokenizer, "has_byte_fallback", False)
    stream = TokenStream(parts=(np.array([1, 3, 50], np.uint16), np.array([3], np.uint16)), names=("x", "y"))
    with caplog.at_level("WARNING", logger="evalkit"):
        stream.validate(tokenizer)
    assert "2 unknown tokens (id 3) of the stream stand for text that the tokenizer cannot write" in caplog.text
    assert stream.count(3) == 2
    assert tokenizer.byte_table.count(np.array([50]), np.array([3])).tolist() == [0]


def test_documents_open_with_bos_and_raw_bytes_are_counted(tmp_path: Path, tokenizer_path: Path) -> None:
    tokenizer = Tokenizer(tokenizer_path)
    documents = ["Hello  world.\nSecond line", "Ünïcode\r\n…"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (tmp_path / "d.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    assert list(read_documents(tmp_path / "d.jsonl")) == documents
    stream = tokenize_file(tmp_path / "d.jsonl.zst", tokenizer)
    tokens = stream.read(0, len(stream))
    assert (tokens == 1).sum() == 2
    assert tokens[0] == 1
    assert stream.raw_bytes == sum(len(text.encode()) for text in documents)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[1]", 'no string "text"'), (b"{", "not JSON"), (b'{"text": 3}', 'no string "text"'), (b"\xff\xfe", "UTF-8")],
)
def test_bad_documents_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(TokenError, match=message):
        list(read_documents(tmp_path / "d.jsonl"))


@given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_the_byte_rule_counts_the_normalised_text(tokenizer_path: Path, documents: list[str]) -> None:
    tokenizer = Tokenizer(tokenizer_path)
    tokens = np.concatenate([tokenizer.encode_document(text) for text in documents])
    counted = tokenizer.byte_table.count(tokens[:-1], tokens[1:])
    # Right after BOS the space mark that the tokenizer puts before a text counts nothing.
    expected = sum(len(tokenizer.decode(tokenizer.encode(text)).encode()) for text in documents)
    assert counted.sum() == expected


def test_byte_totals_of_the_published_shards(shared: Path) -> None:
    tokenizer = Tokenizer(shared / "data/tokenizers/fineweb_1024_bpe.model")
    stream = open_shards(str(shared / "data/fineweb_val_prefix/sp1024"))
    tokens = stream.read(0, len(stream))
    assert len(stream) == 622_787
    assert tokenizer.byte_table.count(tokens[:-1], tokens[1:]).sum() == 1_492_524


def test_visible_tokens_hold_exactly_what_was_released() -> None:
    stream = TokenStream(parts=(np.arange(10, dtype=np.uint16), np.arange(10, 30, dtype=np.uint16)), names=("a", "b"))
    visible = VisibleTokens(stream)
    first = visible.up_to(7)
    assert first.tolist() == list(range(7))
    assert not first.flags.writeable
    assert visible.up_to(25).tolist() == list(range(25))
    assert visible._file.seek(0, 2) == 50  # the file behind it holds 25 tokens and no more
    assert visible.up_to(12).tolist() == list(range(12))
    assert visible._file.seek(0, 2) == 24
