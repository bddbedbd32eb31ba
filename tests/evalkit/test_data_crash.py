"""A full disk and a kill at any moment leave nothing that could be taken for a result."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evalkit.data.tokenize import TokenizeOptions, tokenize_documents


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "docs.jsonl"
    rng = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "the", "of", "and"]
    with path.open("w") as file:
        for _ in range(3000):
            file.write(json.dumps({"text": " ".join(rng.choices(words, k=60))}) + "\n")
    return path


def command(documents: Path, tokenizer: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "evalkit", "data", "tokenize", str(documents), "--tokenizer", str(tokenizer),
            "--out", str(out), "--val-documents", "10", "--workers", "1", "--shard-tokens", "40000"]  # fmt: skip


def test_a_full_disk_is_one_sentence_and_leaves_nothing(documents: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    def small_files_only() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    out = tmp_path / "out"
    done = subprocess.run(
        command(documents, tokenizer_path, out), capture_output=True, text=True, preexec_fn=small_files_only
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"docs.jsonl"}


def test_killed_at_random_the_folder_is_whole_or_absent(documents: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    options = TokenizeOptions(
        documents=(documents,), tokenizer=tokenizer_path, out=whole, val_documents=10, shard_tokens=40000
    )
    tokenize_documents(options)
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    rng = random.Random(1)
    absent = 0
    for i in range(6):
        out = tmp_path / f"out{i}"
        process = subprocess.Popen(command(documents, tokenizer_path, out), stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.1, 0.6))
        process.kill()
        process.wait()
        if out.exists():
            assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
        else:
            absent += 1
    assert absent  # or every kill came too late to mean anything


def test_two_runs_into_one_folder_leave_one_of_them(documents: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = [
        subprocess.Popen(command(documents, tokenizer_path, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    codes = []
    for process in both:
        _, errors = process.communicate()
        assert b"Traceback" not in errors
        codes.append(process.returncode)
    assert sorted(codes) in ([0, 2], [0, 0])
    assert (out / "manifest.json").exists()
    assert not list(tmp_path.glob(".out*"))
