"""``evalkit check`` and ``evalkit probe`` as commands: exit codes and JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evalkit.cli.main import run_command
from evalkit.legality.sources import BigramSource
from evalkit.tokens.shards import write_shard

GALLERY = Path(__file__).parent / "gallery"


@pytest.mark.parametrize(
    ("name", "code", "axiom"),
    [
        ("x_sparse_peek", 3, "causality"),
        ("x_sparse_fiction", 3, "normalisation"),
        ("x_rewrites_input", 3, "ledger"),
        ("h_counts", 0, None),
    ],
)
def test_a_strangers_forecaster(name: str, code: int, axiom: str | None, tmp_path: Path) -> None:
    tokens, _ = BigramSource.invented(16, 1).sample(700, 1, np.random.default_rng(0))
    write_shard(tmp_path / "val_000000.bin", tokens)
    arguments = ["--forecaster", f"{GALLERY / name}.py:make", "--tokens", str(tmp_path / "val_*.bin")]
    arguments += ["--max-tokens", "300", "--budget", "inf"]  # all positions, whatever the clock says
    assert run_command(["check", *arguments, "--json", str(tmp_path / "out.json")]) == code
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["covered"]["audit"]["span"] == 64
    assert document["verdict"] == ("illegal" if code else "legal")
    assert axiom is None or axiom in {finding["axiom"] for finding in document["findings"]}


READER = """
import glob
import numpy as np

class Reader:
    vocab_size = 32
    tokens = None
    def score(self, tokens, start, stop):
        if start > {after} and self.tokens is None:
            self.tokens = np.fromfile(glob.glob(r"{folder}/*.bin")[0], "<u2")
        return np.full(stop - start, np.log(32))
    def observe(self, tokens, start, stop):
        pass

make = Reader
"""


@pytest.mark.parametrize("after", [0, 300])
def test_a_forecaster_that_opens_the_stream_is_convicted(after: int, tmp_path: Path) -> None:
    """Behind a link as well; and a file that is not the stream may be opened."""
    tokens, _ = BigramSource.invented(32, 1).sample(500, 1, np.random.default_rng(0))
    for folder in ("val", "linked", "train"):
        (tmp_path / folder).mkdir()
    write_shard(tmp_path / "val" / "val_000000.bin", tokens)
    write_shard(tmp_path / "train" / "train_000000.bin", tokens[:100])
    (tmp_path / "linked" / "data.bin").symlink_to(tmp_path / "val" / "val_000000.bin")
    for folder, code in (("linked", 3), ("train", 0)):
        (tmp_path / "reader.py").write_text(READER.format(after=after, folder=tmp_path / folder))
        arguments = ["--forecaster", f"{tmp_path}/reader.py:make", "--tokens", f"{tmp_path}/val/*.bin"]
        assert run_command(["check", *arguments, "--json", str(tmp_path / "out.json")]) == code
        findings = json.loads((tmp_path / "out.json").read_text())["findings"]
        assert {finding["axiom"] for finding in findings} == ({"causality"} if code else set())
        assert all(finding["position"] > after for finding in findings)


def test_decoding_the_first_tokens_is_part_of_a_check(
    tiny_artifact: Path, tokenizer_path: Path, text_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_artifact), "--text", str(text_path), "--tokenizer", str(tokenizer_path), "--seq-len", "64"]
    arguments += ["--dtype", "float32", "--threads", "1", "--limit-tokens", "120", "--budget", "inf", "--decode", "80"]
    assert run_command(["check", *arguments, "--json", str(tmp_path / "out.json")]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    decode = document["covered"]["decode"]
    assert decode["tokens"] == 80
    assert decode["decoded"] is True
    assert 0 < decode["bits"] <= 1.001 * decode["ledger_bits"] + 64
    assert document["covered"]["audit"]["span"] == 2048
    assert "decoded 80 tokens" in capsys.readouterr().out


def test_a_probe_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "probe")
    emit = ["probe", "emit", "--kind", "uniform", "--tokens-count", "4097", "--multiple", "256", "--out", folder]
    assert run_command(emit) == 0
    assert "6.927558 nats" in capsys.readouterr().out  # ln 1020: control ids are not drawn
    assert run_command(["probe", "judge", folder, "--val-loss", "6.95"]) == 0
    judge = ["probe", "judge", folder, "--val-loss", "6.95", "--prefix-loss", "7.05", "--json", f"{folder}.json"]
    assert run_command(judge) == 3
    document = json.loads(Path(f"{folder}.json").read_text())
    assert [finding["axiom"] for finding in document["findings"]] == ["normalisation"]
    assert document["findings"][0]["position"] == 2049
    assert run_command(emit) == 2  # a used stream is no longer secret


LATE = """
import numpy as np
class Late:
    vocab_size = 32
    def score(self, tokens, start, stop):
        return np.where(np.arange(start, stop) > 1500, 0.5, 1.0) * np.log(32)
    def observe(self, tokens, start, stop): pass
make = Late
"""


@pytest.mark.parametrize(("length", "code"), [(1200, 0), (4000, 3)])
def test_fiction_beyond_the_audited_part_is_met(length: int, code: int, tmp_path: Path, capsys) -> None:
    tokens, _ = BigramSource.invented(32, 1).sample(length, 1, np.random.default_rng(0))
    write_shard(tmp_path / "val_000000.bin", tokens)
    (tmp_path / "late.py").write_text(LATE)
    arguments = ["--forecaster", f"{tmp_path}/late.py:make", "--tokens", str(tmp_path / "val_*.bin")]
    assert run_command(["check", *arguments, "--max-tokens", "1000", "--budget", "inf"]) == code
    out = capsys.readouterr().out
    assert f"audited 1,000 of {length:,} tokens" in out
    assert ("audit deep salting" in out) == bool(code)


BROKEN = """
def make():
    raise RuntimeError("no such\\nmodel")
def shrinking():
    class Shrinking:
        vocab_size = 32
        def score(self, tokens, start, stop):
            self.vocab_size -= 1
            return 0.0 * tokens[start:stop] + 4.0
        def observe(self, tokens, start, stop): pass
    return Shrinking()
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{file}:make"], 2, "the factory made no forecaster: RuntimeError: no such model"),
        (["{file}:shrinking"], 3, "vocab_size went from 32 to 31"),
        (["{file}:shrinking", "--mixer", "hedge", "--decode", "5"], 2, "--mixer, --decode: for an artifact"),
        (["{file}:shrinking", "--seed", "-1"], 2, "the seed is -1"),
        (["{file}:shrinking", "--limit-tokens", "-1"], 2, "--limit-tokens is -1"),
        (["{file}:shrinking", "--span", "x"], 2, "Invalid value for '--span': 'x'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], code: int, said: str, tmp_path: Path, capsys) -> None:
    write_shard(tmp_path / "val_000000.bin", np.arange(60) % 32)
    (tmp_path / "broken.py").write_text(BROKEN)
    filled = [argument.format(file=tmp_path / "broken.py") for argument in arguments]
    assert run_command(["check", "--tokens", str(tmp_path / "val_*.bin"), "--forecaster", *filled]) == code
    out, err = capsys.readouterr()
    assert said in (out if code == 3 else err)
    assert code == 3 or (not out and err.count("\n") == 1)


def test_a_strangers_check_imports_no_torch() -> None:
    """Which takes as long as all of the audits of a quick forecaster."""
    code = "import sys, evalkit.cli.check_command, evalkit.verbs.check; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
