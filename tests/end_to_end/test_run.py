"""``evalkit run``: from text to a score with its verdict."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from evalkit.report.load import read_report
from evalkit.tokens.shards import write_shard
from evalkit.tokens.tokenizer import Tokenizer
from evalkit.verbs.check import CheckOptions
from evalkit.verbs.run import PipelineOptions, describe, run_pipeline

SETTINGS = {
    "data.train_pattern": "*train*.bin",
    "data.val_pattern": "*val*.bin",
    "model.num_layers": "2",
    "model.model_dim": "32",
    "model.num_heads": "2",
    "model.num_kv_heads": "1",
    "model.mlp_hidden": "48",
    "model.vocab_size": "384",
    "model.bigram_buckets": "64",
    "train.seq_len": "256",
    "train.batch_tokens": "256",
    "train.threads": "1",
    "ttt.chunk_tokens": "64",
    "ttt.time_limit": "1e-9",
}


def test_a_run_whose_time_limit_struck_stays_illegal(tokenizer_path: Path, text_path: Path, tmp_path: Path) -> None:
    """The audits cannot see it: forecasters that all stop learning at once repeat each other."""
    tokenizer = Tokenizer(tokenizer_path)
    tokens = np.concatenate([tokenizer.encode_document(t) for t in text_path.read_text().split("\n") if t])
    write_shard(tmp_path / "x_train_000000.bin", tokens[:1000])
    write_shard(tmp_path / "x_val_000000.bin", tokens[1000:1120])
    options = PipelineOptions(
        recipe="tiny",
        data=tmp_path,
        tokenizer=tokenizer_path,
        out=tmp_path / "out",
        settings=SETTINGS,
        steps=1,
        calibration_tokens=256,
        variants=(("none", True),),
        check=CheckOptions(budget_seconds=math.inf, positions=1, offsets=4),
        dtype="float32",
        threads=1,
    )
    stage = run_pipeline(options).stages["sliding-ttt"]
    check = json.loads((tmp_path / "out" / "check-sliding-ttt.json").read_text())
    assert check["verdict"] == "legal"
    assert check["findings"] == []
    assert (stage.verdict, stage.legal) == ("illegal", False)
    assert "ttt.time_limit stopped the training" in str(stage.illegal_because)
    assert read_report(tmp_path / "out" / "score-sliding-ttt.json").report == stage
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["stages"]["sliding-ttt"] == stage.to_dict()
    assert saved["artifact"]["bytes"] == (tmp_path / "out" / "model.evk").stat().st_size
    assert "illegal |" in describe({"sliding-ttt": stage})
