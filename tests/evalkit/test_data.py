"""Documents to shards, and shards verified: every planted defect is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from evalkit.cli.main import run_command
from evalkit.data.documents import WordHasher, iterate_documents, token_ngrams
from evalkit.data.tokenize import TokenizeOptions, tokenize_documents
from evalkit.data.verify import Verification, VerifyOptions, verify
from evalkit.plumbing.errors import InputError, TokenError
from evalkit.tokens.shards import open_shard, write_shard
from evalkit.tokens.stream import TokenStream, open_shards, tokenize_file
from evalkit.tokens.texts import read_documents
from evalkit.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def texts() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name][:1500] for name in sorted(topics)][:40]


@pytest.fixture(scope="module")
def documents(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shards(documents: Path, tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "data"
    tokenize_documents(
        TokenizeOptions(documents=(documents,), tokenizer=tokenizer_path, out=out, val_documents=8, shard_tokens=7000)
    )
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_hold_each_document_behind_bos(shards: Path, texts: list[str], tokenizer_path: Path) -> None:
    tokenizer = Tokenizer(tokenizer_path)
    for split, chosen in (("val", texts[:8]), ("train", texts[8:])):
        stream = open_shards(str(shards / f"fineweb_{split}_*.bin"))
        expected = np.concatenate([tokenizer.encode_document(text) for text in chosen])
        assert np.array_equal(stream.read(0, len(stream)), expected)
        assert all(len(part) == 7000 for part in stream.parts[:-1])
    manifest = json.loads((shards / "manifest.json").read_text())
    assert manifest["splits"]["val"]["documents"] == 8
    assert manifest["splits"]["train"]["raw_bytes"] == sum(len(text.encode()) for text in texts[8:])


@pytest.mark.parametrize("compressed", [False, True])
def test_the_same_bytes_for_any_number_of_workers(
    documents: Path, shards: Path, tokenizer_path: Path, tmp_path: Path, compressed: bool, monkeypatch
) -> None:
    monkeypatch.setattr("evalkit.data.tokenize._BATCH_CHARACTERS", 5000)  # many batches
    source = documents
    if compressed:
        source = tmp_path / "docs.jsonl.zst"
        source.write_bytes(zstandard.compress(documents.read_bytes()))
    options = {"documents": (source,), "tokenizer": tokenizer_path, "val_documents": 8, "shard_tokens": 7000}
    tokenize_documents(TokenizeOptions(**options, out=tmp_path / "two", workers=2))  # type: ignore[arg-type]
    expected = files_of(shards)
    found = files_of(tmp_path / "two")
    expected.pop("manifest.json"), found.pop("manifest.json")
    assert found == expected


def test_nothing_is_left_after_a_failure(tokenizer_path: Path, tmp_path: Path) -> None:
    source = tmp_path / "docs.jsonl"
    source.write_text('{"text": "fine"}\n{"no": "text"}\n')
    with pytest.raises(TokenError, match="line 2"):
        tokenize_documents(TokenizeOptions(documents=(source,), tokenizer=tokenizer_path, out=tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["docs.jsonl"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(InputError, match="not an empty folder"):
        tokenize_documents(TokenizeOptions(documents=(source,), tokenizer=tokenizer_path, out=tmp_path / "out"))
    assert (tmp_path / "out" / "precious").exists()


def test_an_error_in_a_worker_is_one_sentence(tokenizer_path: Path, tmp_path: Path, capsys) -> None:
    source = tmp_path / "docs.txt"
    source.write_bytes(b"\xff\xfe\x00bad")
    arguments = ["data", "tokenize", str(source), "--tokenizer", str(tokenizer_path), "--out", str(tmp_path / "o")]
    assert run_command([*arguments, "--workers", "2"]) == 2
    assert "UTF-16 text" in capsys.readouterr().err


def test_lost_text_is_refused_unless_it_is_asked_for_and_then_counted(tmp_path: Path, capsys) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    words = ["plain words alone", "the quick brown fox jumps over the lazy dog"]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(words * 20),
        model_prefix=str(tmp_path / "lossy"),
        vocab_size=60,
        model_type="bpe",
        minloglevel=2,
        num_threads=1,
    )
    source = tmp_path / "docs.jsonl"
    source.write_text('{"text": "plain words"}\n{"text": "fox \u2603 dog \u2603"}\n')
    arguments = ["data", "tokenize", str(source), "--tokenizer", str(tmp_path / "lossy.model"), "--workers", "1"]
    assert run_command([*arguments, "--out", str(tmp_path / "o")]) == 2
    assert "--keep-unknown" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert run_command([*arguments, "--out", str(tmp_path / "o"), "--keep-unknown"]) == 0
    assert "2 unknown tokens stand for lost text" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert manifest["splits"]["train"]["unknown_tokens"] == 2
    stream = open_shards(str(tmp_path / "o" / "*.bin"))
    assert (stream.read(0, len(stream)) == Tokenizer(tmp_path / "lossy.model").unk_id).sum() == 2
    result = checked(tmp_path / "o", tmp_path / "lossy.model", documents=(source,))
    assert result.findings == []
    assert result.counts["unknown_tokens"] == {"val": 0, "train": 2}


def checked(shards: Path, tokenizer: Path, **changes: object) -> Verification:
    return verify(VerifyOptions(shards=(str(shards),), tokenizer=tokenizer, **changes))  # type: ignore[arg-type]


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(shards, tmp_path / "copy"))


def test_clean_shards_are_clean(shards: Path, documents: Path, texts: list[str], tokenizer_path: Path) -> None:
    result = checked(shards, tokenizer_path, documents=(documents,))
    assert result.findings == []
    counts = result.counts
    assert counts["documents"] == {"val": 8, "train": len(texts) - 8}
    for split in ("val", "train"):
        assert counts["bytes"][split]["table"] == counts["bytes"][split]["decoded_text"] > 0
    stream = tokenize_file(documents, Tokenizer(tokenizer_path))
    assert counts["tokens"]["val"] + counts["tokens"]["train"] == len(stream)


def test_a_wrong_header_and_a_wrong_size_are_found(copy: Path, tokenizer_path: Path) -> None:
    val, train = sorted(copy.glob("*val*.bin"))[0], sorted(copy.glob("*train*.bin"))[0]
    data = bytearray(val.read_bytes())
    data[0] ^= 1
    val.write_bytes(data)
    train.write_bytes(train.read_bytes()[:-2])
    findings = checked(copy, tokenizer_path).findings
    assert any("a token shard starts with 20240520" in finding for finding in findings)
    assert any("its header announces" in finding for finding in findings)


def test_out_of_range_and_unknown_ids_are_found(copy: Path, tokenizer_path: Path) -> None:
    path = sorted(copy.glob("*train*.bin"))[1]
    tokens = np.array(open_shard(path))
    tokens[123], tokens[124] = 384, 3
    write_shard(path, tokens)
    findings = checked(copy, tokenizer_path).findings
    assert any("token 123 is id 384" in finding for finding in findings)
    assert any("1 unknown tokens (the first: token 124)" in finding for finding in findings)


def test_a_duplicate_document_is_found_by_hash(copy: Path, tokenizer_path: Path) -> None:
    val = np.array(open_shard(sorted(copy.glob("*val*.bin"))[0]))
    seams = np.flatnonzero(val == 1)
    path = sorted(copy.glob("*train*.bin"))[-1]
    write_shard(path, np.concatenate([open_shard(path), val[seams[2] : seams[3]]]))
    findings = checked(copy, tokenizer_path, ngram=0).findings
    assert len(findings) == 1
    assert "is also val document 2" in findings[0]


@pytest.mark.parametrize("unit", ["words", "tokens"])
def test_a_copied_passage_is_found_by_its_ngrams(copy: Path, texts: list[str], tokenizer_path: Path, unit: str) -> None:
    tokenizer = Tokenizer(tokenizer_path)
    path = sorted(copy.glob("*train*.bin"))[-1]
    changed = tokenizer.encode_document("An entirely new beginning. " + texts[5][100:])
    write_shard(path, np.concatenate([open_shard(path), changed]))
    result = checked(copy, tokenizer_path, unit=unit)
    assert [finding for finding in result.findings if "val document 5 " in finding]
    assert result.counts["duplicates"]["train_in_val"] == 0
    sampled = checked(copy, tokenizer_path, unit=unit, max_ngrams=700)
    assert sampled.counts["overlap"]["sampled_one_in"] > 1
    assert [finding for finding in sampled.findings if "val document 5 " in finding]


def test_tokens_that_are_not_the_documents_are_found(copy: Path, documents: Path, tokenizer_path: Path) -> None:
    path = sorted(copy.glob("*val*.bin"))[0]
    tokens = np.array(open_shard(path))
    tokens[10] = tokens[10] % 300 + 40
    write_shard(path, tokens)
    findings = checked(copy, tokenizer_path, documents=(documents,)).findings
    assert any("val document 0" in finding and "from its token 10 on" in finding for finding in findings)


def test_missing_and_surplus_documents_are_found(
    shards: Path, texts: list[str], tokenizer_path: Path, tmp_path
) -> None:
    for number, message in ((30, "not among the documents"), (41, "the documents go on")):
        source = tmp_path / f"{number}.jsonl"
        chosen = [*texts, "one more"][:number]
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen), encoding="utf-8")
        assert any(message in f for f in checked(shards, tokenizer_path, documents=(source,)).findings)


def test_command_exits_with_2_and_prints_findings(copy: Path, tokenizer_path: Path, tmp_path: Path, capsys) -> None:
    arguments = ["data", "verify", str(copy), "--tokenizer", str(tokenizer_path), "--json", str(tmp_path / "v.json")]
    assert run_command(arguments) == 0
    path = sorted(copy.glob("*val*.bin"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert run_command(arguments) == 2
    assert "FOUND shard" in capsys.readouterr().out
    assert json.loads((tmp_path / "v.json").read_text())["clean"] is False


def test_documents_cross_blocks_and_shards(monkeypatch) -> None:
    monkeypatch.setattr("evalkit.data.documents._BLOCK", 4)
    monkeypatch.setattr("evalkit.data.documents.MAX_DOCUMENT", 9)
    parts = tuple(np.array(part, dtype=np.uint16) for part in ([7, 8, 1, 5, 5, 5], [5, 5, 1, 1, 6]))
    stream = TokenStream(parts=parts, names=("a", "b"))
    found = [(start, tokens.tolist()) for start, tokens in iterate_documents(stream, 1)]
    assert found == [(0, [7, 8]), (2, [1, 5, 5, 5, 5, 5]), (8, [1]), (9, [1, 6])]
    long = TokenStream(parts=(np.full(25, 5, dtype=np.uint16),), names=("a",))
    assert [len(tokens) for _, tokens in iterate_documents(long, 1)] == [12, 12, 1]


def test_ngrams_ignore_case_and_punctuation_but_not_order() -> None:
    hasher = WordHasher(3)
    assert np.array_equal(hasher.ngrams("One, two; THREE four"), hasher.ngrams("one two three FOUR!"))
    assert len(hasher.ngrams("one two three four")) == 2
    assert len(hasher.ngrams("one two")) == 0
    assert not np.isin(hasher.ngrams("one two three"), hasher.ngrams("three two one")).any()
    grams = token_ngrams(np.arange(10), 4)
    assert len(np.unique(grams)) == 7
    assert np.array_equal(token_ngrams(np.arange(2, 8), 4), grams[2:5])


def test_zst_documents_of_several_frames_are_read_whole_and_cut_ones_refused(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {i} " * 50}).encode() + b"\n" for i in range(40)]
    path = tmp_path / "docs.jsonl.zst"
    path.write_bytes(zstandard.compress(b"".join(lines[:25])) + zstandard.compress(b"".join(lines[25:])))
    assert [json.loads(line)["text"] for line in lines] == list(read_documents(path))
    for cut in (5, len(path.read_bytes()) - 3):
        path.with_name("cut.jsonl.zst").write_bytes(path.read_bytes()[:cut])
        with pytest.raises(TokenError, match="cut short"):
            list(read_documents(path.with_name("cut.jsonl.zst")))


def test_a_number_of_thousands_of_digits_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text('{"text": "x", "n": ' + "1" * 5000 + "}\n")
    with pytest.raises(TokenError, match="line 1"):
        list(read_documents(tmp_path / "docs.jsonl"))
