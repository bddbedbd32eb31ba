"""Texts and shards as people have them."""

from __future__ import annotations

import gzip
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import zstandard

from evalkit.data.tokenize import TokenizeOptions, tokenize_documents
from evalkit.plumbing.errors import InputError, TokenError
from evalkit.tokens.shards import find_shards, open_shard, split_of, write_shard
from evalkit.tokens.stream import open_shards
from evalkit.tokens.texts import read_documents
from evalkit.train.config import DataConfig
from evalkit.train.data import find_shards as find_training_shards
from evalkit.verbs.run import validation_shards

DOCUMENTS = ["one\r\ntwo", "zürich \u2028 \u2581", ""]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS).encode()
MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", LINES),
        ("d.ndjson", MARK + LINES),
        ("d.jsonl", LINES.replace(b"\n", b"\r\n\n")),
        ("d.json", LINES),
        ("d.json", json.dumps([{"text": text} for text in DOCUMENTS]).encode()),
        ("d.jsonl.gz", gzip.compress(MARK + LINES, mtime=0)),
        ("d.jsonl.gz", gzip.compress(LINES[:20], mtime=0) + gzip.compress(LINES[20:], mtime=0)),
        ("d.json.zst", zstandard.compress(LINES)),
        ("d.jsonl", zstandard.compress(LINES)),
    ],
)
def test_documents_in_every_wrapping(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(read_documents(tmp_path / name)) == DOCUMENTS


@pytest.mark.parametrize("wrap", [bytes, gzip.compress, zstandard.compress])
def test_one_text(wrap, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(wrap(b"a\r\nb\n"))
    assert list(read_documents(tmp_path / "a.txt")) == ["a\r\nb\n"]


def test_one_object_in_a_json_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n "text": "x"\n}')
    assert list(read_documents(tmp_path / "a.json")) == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", LINES + b'{"text": "\xff"}', rf"line 4, byte {len(LINES) + 10}\)"),
        ("a.jsonl", MARK + LINES + b'{"text": "\xff"}', rf"line 4, byte {len(LINES) + 13}\)"),
        ("a.txt", b"x\n" * 9000 + b"\xff", r"line 9,001, byte 18,000\)"),
        ("a.jsonl", b'{"text": "x"}\nnot', "line 2: not JSON"),
        ("a.json", b"once upon a time", "line 1: not JSON"),
        ("a.json", b'[{"text": "x"}, {"txt": "y"}]', 'document 2: no string "text"'),
        ("a.parquet", b"PAR1....PAR1", "is a parquet file.*read_parquet"),
        ("a.txt", "x".encode("utf-16"), "UTF-16 text, as its byte order mark.*iconv -f UTF-16"),
        ("a.txt.xz", b"\xfd7zXZ\x00.", "compressed with xz.*xz -dk"),
        ("a.txt.gz", gzip.compress(b"hello" * 100, mtime=0)[:-6], "gzip stream is damaged or cut short"),
        ("a.txt.zst", zstandard.compress(b"hello" * 100)[:-6], "cut short"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_true_name(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenError, match=message):
        list(read_documents(tmp_path / name))


def test_pipes_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for content, expected in (
        (b"a text\n", ["a text\n"]),
        (LINES, DOCUMENTS),
        (gzip.compress(LINES, mtime=0), DOCUMENTS),
    ):
        writer = threading.Thread(target=pipe.write_bytes, args=(content,))
        writer.start()
        assert list(read_documents(pipe)) == expected
        writer.join()
    (tmp_path / "in").write_bytes(b"from stdin")
    with (tmp_path / "in").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert list(read_documents("-")) == ["from stdin"]


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(12):
        write_shard(tmp_path / f"val_{number}.bin", np.array([number]))
    for pattern in (str(tmp_path), f"{tmp_path}/val_*.bin"):
        stream = open_shards(pattern)
        assert stream.read(0, 12).tolist() == list(range(12))


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_packed_shards(ending: str, tmp_path: Path) -> None:
    pack = gzip.compress if ending == "gz" else zstandard.compress
    write_shard(tmp_path / "a.bin", np.array([1, 2, 65535]))
    whole = (tmp_path / "a.bin").read_bytes()
    packed = tmp_path / f"b.bin.{ending}"
    packed.write_bytes(pack(whole))
    assert open_shard(packed).tolist() == [1, 2, 65535]
    assert [path.name for path in find_shards(str(tmp_path))] == ["a.bin", packed.name]
    (tmp_path / f"a.bin.{ending}").write_bytes(pack(whole))
    with pytest.raises(TokenError, match="one shard, packed and as it is"):
        find_shards(str(tmp_path))
    for content, message in ((whole[:-2], "only 4"), (whole + b"xx", "it holds more"), (whole[:9], "header")):
        packed.write_bytes(pack(content))
        with pytest.raises(TokenError, match=message):
            open_shard(packed)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("pretrain_val_000000.bin", "val"),
        ("pretrain_train_000000.bin", "train"),
        ("val_train_000001.bin", "train"),
        ("interval_train_7.bin.gz", "train"),
        ("fineweb_validation_0.bin", "val"),
        ("val.bin", "val"),
        ("train-12.bin", "train"),
        ("trainval_0.bin", None),
        ("evaluation_0.bin", None),
        ("fineweb_000000.bin", None),
    ],
)
def test_the_form_of_a_name_tells_the_split_and_no_part_of_it(name: str, split: str | None) -> None:
    assert split_of(Path("nowhere") / name) == split


@pytest.mark.parametrize("prefix", ["pretrain", "val", "train", "interval", "my.val-set"])
def test_any_prefix_trains_on_training_shards_only(prefix: str, tmp_path: Path, tokenizer_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(4)))
    out = tmp_path / "out"
    documents = (tmp_path / "d.jsonl",)
    tokenize_documents(
        TokenizeOptions(documents=documents, tokenizer=tokenizer_path, out=out, val_documents=2, prefix=prefix)
    )
    for _ in range(2):
        train, val = find_training_shards(out, DataConfig())
        assert [path.name for path in train] == [f"{prefix}_train_000000.bin"]
        assert [path.name for path in val] == [f"{prefix}_val_000000.bin"]
        assert validation_shards(out) == tuple(map(str, val))
        with pytest.raises(TokenError, match=r"a training shard and .* a validation shard"):
            open_shards(str(out))
        with pytest.raises(TokenError, match="a training shard and"):
            open_shards(f"{out}/*.bin")
        (out / "manifest.json").unlink(missing_ok=True)  # then the names alone


def test_a_manifest_decides_against_names(tmp_path: Path) -> None:
    for name in ("a_val_0.bin", "b.bin"):
        write_shard(tmp_path / name, np.array([1, 2, 3]))
    splits = {"train": {"shards": [{"name": "a_val_0.bin"}]}, "val": {"shards": [{"name": "b.bin"}]}}
    (tmp_path / "manifest.json").write_text(json.dumps({"splits": splits}))
    assert [split_of(tmp_path / name) for name in ("a_val_0.bin", "b.bin")] == ["train", "val"]


def test_prefixes_that_are_no_names_are_refused(tmp_path: Path) -> None:
    for prefix in ("", "a/b", "a*b", "a b", "[x]"):
        with pytest.raises(InputError, match="--prefix"):
            TokenizeOptions(documents=(tmp_path,), tokenizer=tmp_path, out=tmp_path, prefix=prefix)
