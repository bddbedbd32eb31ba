"""``compress`` in one process and ``decompress`` in another, as users run them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from evalkit.cli.main import run_command

MODEL = ["--seq-len", "64", "--dtype", "float32", "--threads", "1"]
TTT = ["--ttt", "--set", "ttt.chunk_tokens=64"]
ROOT = Path(__file__).resolve().parents[3]


def compressed(
    artifact: Path, raw: bytes, tokenizer: Path, folder: Path, *options: str, capsys: pytest.CaptureFixture[str]
) -> tuple[Path, str]:
    """Write ``raw`` and compress it; return the file and what was printed."""
    (folder / "in").write_bytes(raw)
    file = folder / "out.evk"
    arguments = [str(artifact), str(folder / "in"), "-o", str(file), "--tokenizer", str(tokenizer), *MODEL, *options]
    assert run_command(["compress", *arguments]) == 0
    return file, capsys.readouterr().out


def bits(printed: str) -> tuple[float, float]:
    """Return the bits of code and those of the ledger."""
    found = re.search(r"([\d,]+) bits of code .* ledger says ([\d,.]+)", printed)
    assert found
    return float(found[1].replace(",", "")), float(found[2].replace(",", ""))


@pytest.mark.parametrize(
    "options", [[], ["--mixer", "hedge"], TTT, ["--mixer", "hedge", *TTT]], ids=["plain", "hedge", "ttt", "both"]
)
def test_a_fresh_process_restores_the_text(
    options: list[str],
    tiny_artifact: Path,
    forked_evalkit: list[str],
    tokenizer_path: Path,
    text_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from evalkit.tokens.tokenizer import Tokenizer

    raw = text_path.read_bytes()[:200]
    file, printed = compressed(tiny_artifact, raw, tokenizer_path, tmp_path, *options, capsys=capsys)
    arguments = [str(tiny_artifact), str(file), "-o", str(tmp_path / "back"), "--tokenizer", str(tokenizer_path)]
    command = [*forked_evalkit, "decompress", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tokenizer = Tokenizer(str(tokenizer_path))
    assert (tmp_path / "back").read_bytes() == raw
    assert tokenizer.decode(list(tokenizer.encode(raw.decode()))) != raw.decode()
    code, ledger = bits(printed)
    assert code <= 1.001 * ledger + 64


EXACT = {
    "empty": b"",
    "English": "A line.\n\n  Two  blanks, a tab\tand a\u00a0no-break space. \n".encode(),
    "Chinese": "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u300c\u5f15\u7528\u300d\u3000\u5168\u89d2\uff21\u3002".encode(),
    "one character": b"q",
    "random bytes": np.random.default_rng(3).integers(0, 256, 20_000, dtype=np.uint8).tobytes(),
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469 and caf\u0065\u0301".encode(),
    "NUL": b"\x00a\x00\x00b\x00",
    "line ends": b"\n\r\n a\n\n\tb  c\r\n",
}


@pytest.mark.parametrize("option", [[], ["--exact"]], ids=["default", "exact"])
@pytest.mark.parametrize("name", EXACT)
def test_every_byte_is_restored_unless_told_otherwise(
    name: str,
    option: list[str],
    tiny_artifact: Path,
    tokenizer_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, printed = compressed(tiny_artifact, EXACT[name], tokenizer_path, tmp_path, *option, capsys=capsys)
    assert ("bytes larger than" in printed) == (file.stat().st_size > len(EXACT[name]))
    target = tmp_path / "back"
    arguments = [str(tiny_artifact), str(file), "-o", str(target), "--tokenizer", str(tokenizer_path)]
    assert run_command(["decompress", *arguments]) == 0
    assert target.read_bytes() == EXACT[name]


def test_normalised_restores_what_the_tokenizer_keeps(
    tiny_artifact: Path, tokenizer_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = b"two  blanks\r\nand a line"
    exact, printed = compressed(tiny_artifact, raw, tokenizer_path, tmp_path, capsys=capsys)
    assert "--normalised would leave out" in printed
    size = exact.stat().st_size
    file, printed = compressed(tiny_artifact, raw, tokenizer_path, tmp_path, "--normalised", capsys=capsys)
    assert "would leave out" not in printed
    assert file.stat().st_size < size
    target = tmp_path / "back"
    arguments = [str(tiny_artifact), str(file), "-o", str(target), "--tokenizer", str(tokenizer_path)]
    assert run_command(["decompress", *arguments]) == 0
    assert target.read_bytes() == b"two blanks and a line"


def test_what_does_not_belong_together_is_refused_and_writes_nothing(
    tiny_artifact: Path,
    other_artifact: Path,
    tokenizer_path: Path,
    text_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, _ = compressed(tiny_artifact, b"some text to keep", tokenizer_path, tmp_path, capsys=capsys)
    data = file.read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    (tmp_path / "none").write_bytes(b"")
    altered = bytearray(data)
    altered[-40] ^= 4
    (tmp_path / "altered").write_bytes(bytes(altered))
    model = tmp_path / "other.model"
    with open(model, "wb") as sink:
        text = text_path.read_text()[3000:]
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(text[i : i + 200] for i in range(0, len(text), 200)),
            model_writer=sink,
            vocab_size=384,
            model_type="bpe",
            byte_fallback=True,
            minloglevel=2,
            num_threads=1,
        )
    cases = [
        (tiny_artifact, tmp_path / "cut", tokenizer_path),
        (tiny_artifact, tmp_path / "none", tokenizer_path),
        (tiny_artifact, tmp_path / "altered", tokenizer_path),
        (tiny_artifact, tmp_path / "absent", tokenizer_path),
        (other_artifact, file, tokenizer_path),
        (tiny_artifact, file, model),
    ]
    for artifact, source, tokenizer in cases:
        target = tmp_path / "back"
        arguments = [str(artifact), str(source), "-o", str(target), "--tokenizer", str(tokenizer)]
        assert run_command(["decompress", *arguments]) == 2, source
        assert capsys.readouterr().err.startswith("evalkit: error: ")
        assert not target.exists()
