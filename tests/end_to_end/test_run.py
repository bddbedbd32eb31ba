"""``evalkit run``: one command from text to a score with its verdict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evalkit.cli.main import run_command
from evalkit.report.load import read_report
from evalkit.tokens.shards import write_shard
from evalkit.tokens.tokenizer import Tokenizer

SETTINGS = (
    "data.train_pattern=*train*.bin", "data.val_pattern=*val*.bin", "model.num_layers=2", "model.model_dim=32",
    "model.num_heads=2", "model.num_kv_heads=1", "model.mlp_hidden=48", "model.vocab_size=384", "train.seq_len=64",
    "train.batch_tokens=256", "train.threads=1", "ttt.chunk_tokens=64", "ttt.time_limit=1e-9",
)  # fmt: skip


def test_a_run_whose_time_limit_struck_stays_illegal(
    tokenizer_path: Path, text_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The audits cannot see it: forecasters that all stop learning at once repeat each other."""
    tokenizer = Tokenizer(tokenizer_path)
    tokens = np.concatenate([tokenizer.encode_document(t) for t in text_path.read_text().split("\n") if t])
    write_shard(tmp_path / "x_train_000000.bin", tokens[:2000])
    write_shard(tmp_path / "x_val_000000.bin", tokens[2000:2300])
    command = ["run", "--recipe", "tiny", "--data", str(tmp_path), "--tokenizer", str(tokenizer_path), "--steps", "1"]
    command += ["--out", str(tmp_path / "out"), "--ttt", "--budget", "1.5", "--quiet"]
    assert run_command([*command, *(word for setting in SETTINGS for word in ("--set", setting))]) == 3
    check = json.loads((tmp_path / "out" / "check-sliding-ttt.json").read_text())
    assert check["verdict"] in ("legal", "unproven")
    assert check["findings"] == []
    stages = json.loads((tmp_path / "out" / "report.json").read_text())["stages"]
    assert (stages["sliding-ttt"]["verdict"], stages["sliding-ttt"]["legal"]) == ("illegal", False)
    assert stages["sliding"]["verdict"] in ("legal", "unproven")
    report = read_report(tmp_path / "out" / "score-sliding-ttt.json").report
    assert report.to_dict() == stages["sliding-ttt"]
    assert "ttt.time_limit stopped the training" in str(report.illegal_because)
    assert "illegal" in capsys.readouterr().out
