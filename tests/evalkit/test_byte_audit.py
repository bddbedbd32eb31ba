"""Bytes of any tokenizer: right, or refused; and an audit that does not share the mistakes of what it audits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from evalkit.data.verify import VerifyOptions, verify
from evalkit.legality.bytes import recount_stream, require_honest_bytes
from evalkit.plumbing.errors import TokenError
from evalkit.tokens.kinds import open_tokenizer
from evalkit.tokens.shards import write_shard
from evalkit.tokens.stream import TokenStream, open_shards, tokenize_file
from evalkit.tokens.tokenizer import TextTokenizer
from evalkit.tokens.witness import ByteWitness

WORDS = ["the history of the city begins in the north 7 42 of the country & the quick brown fox."] * 20
TEXT = "the city of 7 zürich & 42 north fox"


def train(path: Path, **options: Any) -> Path:
    model = io.BytesIO()
    base = {"vocab_size": 340, "model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False}
    ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "minloglevel": 2, "num_threads": 1}
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(WORDS), model_writer=model, **(base | ids | options)
    )
    path.write_bytes(model.getvalue())
    return path


def without_lone_space(path: Path) -> Path:
    """Rename the piece for a lone space to a private character: spaces become three byte tokens."""
    content = path.read_bytes()
    piece = b"\x0a\x03\xe2\x96\x81\x15"
    assert content.count(piece) == 1
    path.write_bytes(content.replace(piece, b"\x0a\x03\xee\x83\xbf\x15"))
    return path


IDENTITY = {"normalization_rule_name": "identity"}
RIGHT: dict[str, dict[str, Any]] = {
    "usual": {},
    "identity": IDENTITY,
    "marks inside pieces": IDENTITY | {"split_by_whitespace": False, "vocab_size": 400},
    "spaces kept": IDENTITY | {"remove_extra_whitespaces": False},
    "no space added": IDENTITY | {"add_dummy_prefix": False},
    "case folded": {"normalization_rule_name": "nmt_nfkc_cf"},
    "own symbols": {"user_defined_symbols": ["<x>", " y"], "control_symbols": ["<c>"]},
    "unigram": {"model_type": "unigram"},
    "only spaces": IDENTITY | {"allow_whitespace_only_pieces": True, "remove_extra_whitespaces": False},
}


def as_shard(tokenizer: TextTokenizer, folder: Path, text: str) -> TokenStream:
    folder.mkdir(exist_ok=True)
    write_shard(folder / "val_0.bin", tokenizer.encode_document(text))
    return open_shards(str(folder))


def as_text(tokenizer: TextTokenizer, folder: Path, text: str) -> TokenStream:
    (folder / "d.jsonl").write_text(json.dumps({"text": text}))
    return tokenize_file(folder / "d.jsonl", tokenizer)


@pytest.mark.parametrize("kind", RIGHT)
def test_bytes_are_those_of_the_text(kind: str, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(train(tmp_path / "t.model", **RIGHT[kind]))
    for stream in (as_text(tokenizer, tmp_path, TEXT), as_shard(tokenizer, tmp_path / "s", TEXT)):
        assert stream.num_bytes(tokenizer) == len(TEXT.encode())
        require_honest_bytes(stream, tokenizer)
        findings, covered, doubts = recount_stream(stream, tokenizer)
        assert (findings, doubts) == ([], [])
        assert covered["drawn_texts"] > 20
        assert covered["drawn_texts_miscounted"] == 0
    assert verify(VerifyOptions(shards=(str(tmp_path / "s"),), tokenizer=tmp_path / "t.model")).findings == []


@pytest.mark.parametrize("kind", ["three bytes for a space", "three bytes, spaces kept", "space behind words"])
def test_bytes_that_are_no_text_are_found_with_and_without_the_text(kind: str, tmp_path: Path) -> None:
    options = IDENTITY | {"treat_whitespace_as_suffix": kind == "space behind words"}
    path = train(tmp_path / "t.model", **(options | {"remove_extra_whitespaces": "kept" not in kind}))
    if kind != "space behind words":
        without_lone_space(path)
    tokenizer = open_tokenizer(path)
    wrong = "Room " + TEXT  # a capital that no piece begins with: the space before it stands alone
    for stream in (as_text(tokenizer, tmp_path, wrong), as_shard(tokenizer, tmp_path / "s", wrong)):
        assert stream.num_bytes(tokenizer) > len(wrong.encode())
        with pytest.raises(TokenError, match="bytes that are no text"):
            require_honest_bytes(stream, tokenizer)
        findings, covered, _ = recount_stream(stream, tokenizer)
        assert [finding.axiom for finding in findings] == ["bytes"]
        assert covered["bytes_counted"] == len(wrong.encode())
        assert covered["drawn_texts_miscounted"] > 20
    assert any(
        "the byte table counts" in finding
        for finding in verify(VerifyOptions(shards=(str(tmp_path / "s"),), tokenizer=path)).findings
    )


def test_a_space_in_three_byte_tokens_is_found_far_inside_a_stream(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(train(tmp_path / "t.model", **IDENTITY))
    fine = tokenizer.encode_document("the city of the north")
    stream = TokenStream(parts=(np.tile(fine, 40_000), np.array(tokenizer.mark_ids)), names=("a", "b"))
    with pytest.raises(TokenError, match=f"token {40_000 * len(fine):,} of the stream"):
        require_honest_bytes(stream, tokenizer)
    require_honest_bytes(stream.truncated(40_000 * len(fine) + 2), tokenizer)


def test_a_row_of_tokens_is_found_across_blocks_and_parts() -> None:
    zeros = np.zeros(2**20 - 1, dtype=np.uint16)
    stream = TokenStream(parts=(zeros, np.array([7, 8], np.uint16), np.array([9], np.uint16)), names=("a", "b", "c"))
    assert stream.find((7, 8, 9)) == 2**20 - 1
    assert stream.find((0, 7)) == 2**20 - 2
    assert stream.find((9, 9)) is None
    assert stream.find(()) is None


def test_the_table_follows_the_decoder_and_doubt_is_said(tmp_path: Path) -> None:
    """A tokenizer whose encoder and decoder agree on a mistake that the witness has no name for is not called legal."""
    tokenizer = open_tokenizer(train(tmp_path / "t.model", **IDENTITY))
    table = tokenizer.byte_table
    the = tokenizer.encode("the")[0]
    assert (table.base[the], table.has_space[the]) == (3, True)
    table.base[the] += 2
    stream = as_shard(tokenizer, tmp_path / "s", "fox of north")  # the stream does not have the piece
    findings, _, doubts = recount_stream(stream, tokenizer)
    assert findings == []
    assert "texts drawn from the vocabulary" in doubts[0]


def test_other_tokenizers_have_a_witness_too() -> None:
    witness = ByteWitness(open_tokenizer("bytes"))
    assert not witness.mark_is_space
    assert witness.size_of(" \u2581 ") == 5
    assert witness.drawn_texts() == (64, [])
