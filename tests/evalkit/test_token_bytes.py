"""``--token-bytes``: bytes of transformed texts come from shards beside the tokens; nobody has to believe them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import evalkit
from evalkit.cli.main import run_command
from evalkit.tokens.shards import write_shard
from evalkit.tokens.tokenizer import Tokenizer

ORIGINALS = ["NASA and the Launch. 12 words", "A second Document, with a \u00e4 in it"]
MARK = "\ue001"


def marked(text: str) -> str:
    """Return the text with a mark and a small letter for every capital."""
    return "".join(MARK + c.lower() if c.isupper() else c for c in text)


def shards_of(tokenizer: Tokenizer, folder: Path, change: Callable[[np.ndarray], object] | None = None) -> list[str]:
    """Write tokens of the marked text and the bytes of the original; return the options that name them."""
    tokens = np.concatenate([tokenizer.encode_document(marked(text)) for text in ORIGINALS])
    counts = tokenizer.byte_table.count(np.append(0, tokens[:-1]), tokens)
    of_mark = tokenizer.encode("a" + MARK)[-3:]  # three byte pieces
    counts[np.isin(tokens, of_mark)] = 0
    num_bytes = counts.astype(np.int64)
    if change is not None:
        changed = change(num_bytes)
        num_bytes = num_bytes if changed is None else np.asarray(changed)
    write_shard(folder / "x_val_000000.bin", tokens)
    write_shard(folder / "x_val_bytes_000000.bin", num_bytes)
    (folder / "original.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ORIGINALS))
    return ["--tokens", str(folder / "x_val_*.bin"), "--token-bytes", str(folder / "x_val_bytes_*.bin")]


@pytest.fixture
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer(tokenizer_path)


@pytest.fixture
def command(tiny_artifact: Path, tokenizer_path: Path) -> list[str]:
    return [str(tiny_artifact), "--tokenizer", str(tokenizer_path), "--seq-len", "64", "-q"]


def test_ledger_report_and_dump_follow_the_sidecar(tokenizer: Tokenizer, command: list[str], tmp_path: Path) -> None:
    shards = shards_of(tokenizer, tmp_path)
    written = ["--json", str(tmp_path / "r.json"), "--dump-nll", str(tmp_path / "n.npz")]
    assert run_command(["score", *command, *shards, "--text", str(tmp_path / "original.jsonl"), *written]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    raw = sum(len(text.encode()) for text in ORIGINALS)
    assert report["bytes_scored"] == raw
    assert report["token_bytes"]["documents"] == len(ORIGINALS)
    assert report["bpb"] == pytest.approx(report["nats"] / np.log(2) / raw)
    with np.load(tmp_path / "n.npz") as dumped:
        assert int(dumped["bytes"].sum()) == raw
    # the same tokens, by the tokenizer's rule: the marks count as well
    names = ["--tokens", str(tmp_path / "x_val_0*.bin")]
    assert run_command(["score", *command, *names, "--json", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["bytes_scored"] > raw


def test_a_limit_takes_as_many_numbers(tokenizer: Tokenizer, command: list[str], tmp_path: Path) -> None:
    shards = shards_of(tokenizer, tmp_path)
    assert run_command(["score", *command, *shards, "--limit-tokens", "9", "--json", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    counts = np.fromfile(tmp_path / "x_val_bytes_000000.bin", dtype="<u2", offset=1024)
    assert report["bytes_scored"] == int(counts[1:10].sum())
    assert report["token_bytes"]["documents"] is None


@pytest.mark.parametrize("with_text", [True, False])
def test_a_check_says_whether_the_bytes_were_compared(
    with_text: bool, tokenizer: Tokenizer, command: list[str], tmp_path: Path
) -> None:
    options = shards_of(tokenizer, tmp_path) + (["--text", str(tmp_path / "original.jsonl")] if with_text else [])
    options += ["--max-tokens", "20", "--budget", "1", "--json", str(tmp_path / "c.json")]
    assert run_command(["check", *command, *options]) == 0
    check = json.loads((tmp_path / "c.json").read_text())
    assert check["covered"]["bytes"]["documents"] == (len(ORIGINALS) if with_text else None)
    assert any("compared with nothing" in gap for gap in check["uncovered"]) != with_text


def doubled(counts: np.ndarray) -> None:
    counts *= 2


def shifted(counts: np.ndarray) -> np.ndarray:
    return np.roll(counts, 1)


def moved(counts: np.ndarray) -> None:
    """Move a byte from the last document to the first: the sum stays."""
    counts[1] += 1
    counts[int(np.flatnonzero(counts > 1)[-1])] -= 1


def hole(counts: np.ndarray) -> None:
    counts[int(np.flatnonzero(counts > 1)[2])] = 0


@pytest.mark.parametrize(
    ("change", "with_text", "words"),
    [
        (doubled, True, "bytes for document 1 (from token 0 on); its text has"),
        (lambda counts: counts[:-1], False, "expected one for each"),
        (shifted, False, "a sidecar of other shards, or shifted"),
        (hole, False, "stands for at least 1 byte"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    change: Callable[[np.ndarray], object],
    with_text: bool,
    words: str,
    tokenizer: Tokenizer,
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = shards_of(tokenizer, tmp_path, change)
    options += ["--text", str(tmp_path / "original.jsonl")] if with_text else []
    assert run_command(["score", *command, *options, "--json", str(tmp_path / "r.json")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r.json").exists()


def test_bytes_moved_between_documents_are_found(tokenizer: Tokenizer, command: list[str], tmp_path: Path) -> None:
    options = shards_of(tokenizer, tmp_path, moved)
    given = evalkit.ScoreOptions(
        artifact=command[0],
        tokenizer=tokenizer.path,
        tokens=options[1],
        token_bytes=options[3],
        text=str(tmp_path / "original.jsonl"),
    )
    with pytest.raises(evalkit.InputError, match="bytes for document 1"):
        evalkit.open_session(given)


def test_other_documents_are_refused(tokenizer: Tokenizer, command: list[str], tmp_path: Path) -> None:
    options = shards_of(tokenizer, tmp_path)
    lines = (tmp_path / "original.jsonl").read_text()
    for text, words in ((lines + '{"text": "more"}\n', "more documents"), (lines.splitlines()[0], "has 1 documents")):
        (tmp_path / "other.jsonl").write_text(text)
        given = evalkit.ScoreOptions(
            artifact=command[0],
            tokenizer=tokenizer.path,
            tokens=options[1],
            token_bytes=options[3],
            text=str(tmp_path / "other.jsonl"),
        )
        with pytest.raises(evalkit.InputError, match=words):
            evalkit.open_session(given)


def test_byte_shards_are_not_taken_for_tokens(
    tokenizer: Tokenizer, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = shards_of(tokenizer, tmp_path)
    assert run_command(["score", *command, *shards[:2]]) == 2
    assert "name it with --token-bytes" in capsys.readouterr().err


def test_more_bytes_than_the_tokens_decode_to_are_pointed_out(
    tokenizer: Tokenizer, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def five_times(counts: np.ndarray) -> None:
        counts *= 5

    shards = shards_of(tokenizer, tmp_path, five_times)
    assert run_command(["score", *command, *shards]) == 0
    assert "to have them compared" in capsys.readouterr().err


def test_training_weighs_by_what_a_decoder_knows(tokenizer: Tokenizer, command: list[str], tmp_path: Path) -> None:
    """The sidecar is not in the artifact: scores with test-time training are the same without it."""
    shards = shards_of(tokenizer, tmp_path)
    given = {"artifact": command[0], "tokenizer": tokenizer.path, "seq_len": 64, "ttt": True}
    given |= {"settings": {"ttt": {"chunk_tokens": "16", "compare": "true"}}}
    plain = evalkit.score(evalkit.ScoreOptions(tokens=str(tmp_path / "x_val_0*.bin"), **given))  # type: ignore[arg-type]
    sidecar = evalkit.score(evalkit.ScoreOptions(tokens=shards[1], token_bytes=shards[3], **given))  # type: ignore[arg-type]
    np.testing.assert_array_equal(plain.nll, sidecar.nll)
    gains = [report.to_dict()["ttt_report"]["gain"]["bpb"] for report in (plain, sidecar)]
    assert gains[0] * plain.bytes_scored == pytest.approx(gains[1] * sidecar.bytes_scored)


def test_raw_bytes_and_a_text_alone(tiny_artifact: Path, tmp_path: Path) -> None:
    """A text tokenised here goes with a sidecar as well."""
    text = "plain text"
    (tmp_path / "t.txt").write_text(text)
    write_shard(tmp_path / "b.bin", np.array([0] + [1] * len(text)))
    import torch

    given = {"tokenizer": "bytes", "text": str(tmp_path / "t.txt"), "token_bytes": str(tmp_path / "b.bin")}
    report = evalkit.score(
        evalkit.ScoreOptions(module=lambda ids: torch.zeros(*ids.shape, 257), seq_len=16, stride=16, **given)  # type: ignore[arg-type]
    )
    assert report.bpb == pytest.approx(np.log2(257))
    assert report.token_bytes is not None
    assert report.token_bytes.documents == 1
