"""A full disk and a kill at any moment leave nothing that could be taken for a result."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
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


KILLED = """
import importlib, os, signal, sys
owner, name, call, moment, *arguments = sys.argv[1:]
module, _, inner = owner.partition(":")
target = importlib.import_module(module)
target = getattr(target, inner) if inner else target
original, calls = getattr(target, name), 0

def killing(*a, **k):
    global calls
    calls += 1
    if calls == int(call) and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*a, **k)
    if calls == int(call):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(target, name, killing)
from evalkit.cli.main import run_command
sys.exit(run_command(arguments))
"""
"""Runs a command and kills its own process before or after a certain call of a function."""


@pytest.mark.parametrize(
    ("moment", "is_whole"),
    [
        (("evalkit.data.shard_writer:ShardWriter", "write", "1", "before"), False),
        (("evalkit.data.shard_writer:ShardWriter", "write", "2000", "after"), False),
        (("evalkit.data.shard_writer:ShardWriter", "close", "1", "after"), False),
        (("evalkit.data.tokenize", "write_json", "1", "before"), False),
        (("evalkit.data.tokenize", "write_json", "1", "after"), False),
        (("evalkit.data.tokenize", "tokenize_documents", "1", "after"), True),
    ],
)
def test_killed_at_any_moment_the_folder_is_whole_or_absent(
    documents: Path, tokenizer_path: Path, tmp_path: Path, moment: tuple[str, ...], is_whole: bool
) -> None:
    out = tmp_path / "out"
    arguments = command(documents, tokenizer_path, out)[3:]
    process = subprocess.run([sys.executable, "-c", KILLED, *moment, *arguments], stdout=subprocess.DEVNULL)
    assert process.returncode == -signal.SIGKILL
    assert out.exists() == is_whole
    if is_whole:
        whole = tmp_path / "whole"
        tokenize_documents(
            TokenizeOptions(
                documents=(documents,), tokenizer=tokenizer_path, out=whole, val_documents=10, shard_tokens=40000
            )
        )
        assert {path.name: path.read_bytes() for path in out.iterdir()} == {
            path.name: path.read_bytes() for path in whole.iterdir()
        }


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
