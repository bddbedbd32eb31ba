"""Scores of a GPU: those of a CPU up to rounding, whatever the batches and spans, with mixer, training and coder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_inputs import DEVICE, Inputs

import evalkit
from evalkit.artifact.load import load_artifact
from evalkit.cli.main import run_command
from evalkit.model.regions import Compiled
from evalkit.network import network
from evalkit.prequential import sliding
from evalkit.prequential.sliding import SlidingConfig, SlidingForecaster
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.score import score_session
from evalkit.verbs.session import open_session

FLOAT32 = 1e-4
"""Nats that the order of float32 sums may move a score."""

BFLOAT16 = 2e-3
"""Relative difference of bits per byte that bfloat16 may make; bench/RESULTS.md has 2e-4 for longer texts."""

LEAKY = """
import torch
from torch import nn

class Leaky(nn.Module):
    vocab_size = 384
    seq_len = 128

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(384, 384)

    def forward(self, ids):
        ahead = nn.functional.one_hot(ids.roll(-1, 1), 384).float()
        return self.table(ids) + 3 * ahead

def make():
    torch.manual_seed(0)
    return Leaky()
"""


@pytest.fixture
def options(inputs: Inputs) -> ScoreOptions:
    return ScoreOptions(
        artifact=str(inputs.artifact),
        tokenizer=str(inputs.tokenizer),
        text=str(inputs.text),
        seq_len=128,
        stride=16,
        limit_tokens=1500,
        dtype="float32",
        device=DEVICE,
    )


def on_a_cpu(options: ScoreOptions, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Score with one thread a window, as a CPU does."""
    with monkeypatch.context() as patch:
        patch.setattr(SlidingForecaster, "_on_cpu", property(lambda self: self.device.type == "cpu"))
        return evalkit.score(replace(options, device="cpu"))


def test_scores_are_those_of_a_cpu(options: ScoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = on_a_cpu(options, monkeypatch)
    wide = evalkit.score(options)
    assert wide.device.startswith(DEVICE)
    np.testing.assert_allclose(wide.nll, expected.nll, atol=FLOAT32, rtol=0)
    narrow = evalkit.score(replace(options, dtype="bfloat16"))
    assert narrow.bpb == pytest.approx(expected.bpb, rel=BFLOAT16)
    assert (narrow.attention is not None) == (DEVICE == "cuda")
    streamed = replace(options, context="streaming")
    np.testing.assert_allclose(evalkit.score(streamed).nll, on_a_cpu(streamed, monkeypatch).nll, atol=FLOAT32, rtol=0)


def test_batches_and_spans_change_nothing(options: ScoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evalkit.score(options).nll
    for batch in (1, 3, 40):
        found = evalkit.score(replace(options, batch_windows=batch)).nll
        np.testing.assert_allclose(found, expected, atol=FLOAT32, rtol=0)
    monkeypatch.setattr(sliding, "SPAN_WINDOWS", 5)
    monkeypatch.setattr("evalkit.prequential.forecaster.DEFAULT_SPAN", 80)
    np.testing.assert_allclose(evalkit.score(options).nll, expected, atol=FLOAT32, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_scores_are_those_of_the_code_as_written(options: ScoreOptions, dtype: str) -> None:
    session = open_session(replace(options, dtype=dtype))
    assert session.resolved is not None
    tokens = session.stream.read(0, len(session.stream)).astype(np.int64)
    found = []
    for compiled in (False, True):
        model = load_artifact(str(options.artifact)).build(session.resolved.config)
        config = SlidingConfig(seq_len=128, stride=16, batch_windows=16, device=DEVICE, dtype=dtype, compile=compiled)
        found.append(SlidingForecaster(model, config).score(tokens, 1, len(tokens)))
    if dtype == "float32":
        np.testing.assert_allclose(*found, atol=FLOAT32, rtol=0)
    else:
        assert found[0].mean() == pytest.approx(found[1].mean(), rel=BFLOAT16)


def test_an_interrupted_run_resumes(options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_STATE", str(tmp_path))
    monkeypatch.setattr(sliding, "SPAN_WINDOWS", 10)
    monkeypatch.setattr("evalkit.prequential.forecaster.DEFAULT_SPAN", 160)
    monkeypatch.setattr("evalkit.verbs.score._CHECKPOINT_SECONDS", 0.0)
    options = replace(options, mixer="hedge", ttt=True, settings={"ttt": {"chunk_tokens": "256"}})
    expected = evalkit.score(options).nll
    starts: list[int] = []
    original = SlidingForecaster.logits

    def stopping(self: SlidingForecaster, tokens: Any, start: int, stop: int) -> Any:
        starts.append(start)
        if start > 700 and len(starts) < 1000:
            starts.extend([0] * 1000)
            raise KeyError("stop")
        return original(self, tokens, start, stop)

    monkeypatch.setattr(SlidingForecaster, "logits", stopping)
    with pytest.raises(KeyError):
        score_session(open_session(options), resume=False)
    starts.clear()
    starts.extend([0] * 1000)
    found = score_session(open_session(options), resume=True)
    assert min(starts[1000:]) > 300, "it went on from where it was"
    np.testing.assert_allclose(found.nll, expected, atol=10 * FLOAT32, rtol=0)


def test_mixer_and_training_together(options: ScoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(options, mixer="hedge", ttt=True, settings={"ttt": {"chunk_tokens": "256"}})
    found, expected = evalkit.score(options), on_a_cpu(options, monkeypatch)
    assert found.ttt_report is not None
    assert expected.ttt_report is not None
    assert found.ttt_report["steps"] == expected.ttt_report["steps"] > 0
    assert found.bpb == pytest.approx(expected.bpb, rel=BFLOAT16)
    assert found.network_bpb == pytest.approx(expected.network_bpb, rel=BFLOAT16)
    assert found.bpb < found.network_bpb


def test_training_on_scored_tokens_is_the_same_compiled(options: ScoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # differentiated as on a GPU, without its code generation
        monkeypatch.setattr(network, "Compiled", partial(Compiled, backend="aot_eager"))
    settings = {"ttt": {"chunk_tokens": "512", "batch_sequences": "2"}}
    session = open_session(replace(options, ttt=True, settings=settings))
    assert session.sliding is not None
    found = []
    for compiled in (False, True):
        sliding = replace(session.sliding, compile=compiled, batch_windows=16)
        found.append(score_session(replace(session, sliding=sliding)))
    assert found[0].ttt_report["steps"] > 0
    assert found[1].bpb == pytest.approx(found[0].bpb, rel=BFLOAT16)
    last = [report.ttt_report["chunks"][1]["last_loss"] for report in found]
    assert last[1] == pytest.approx(last[0], rel=BFLOAT16)


def test_a_legal_score_is_found_legal_and_a_leak_illegal(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--text", str(inputs.text), "--tokenizer", str(inputs.tokenizer), "--device", DEVICE]
    common += ["--seq-len", "128", "--stride", "16", "--max-tokens", "600", "--budget", "20"]
    assert run_command(["check", str(inputs.artifact), *common, "--mixer", "hedge"]) == 0
    assert capsys.readouterr().out.startswith("verdict: legal")
    (tmp_path / "leaky.py").write_text(LEAKY)
    assert run_command(["check", "--module", f"{tmp_path / 'leaky.py'}:make", *common]) == 3
    assert "not causal" in capsys.readouterr().out


def test_what_is_compressed_comes_back(inputs: Inputs, tmp_path: Path) -> None:
    text = tmp_path / "in.txt"
    text.write_bytes(inputs.text.read_bytes()[:400])
    packed, restored = tmp_path / "packed", tmp_path / "out.txt"
    common = [str(inputs.artifact), "--tokenizer", str(inputs.tokenizer)]
    run = [*common, str(text), "-o", str(packed), "--mixer", "hedge", "--exact", "--device", DEVICE]
    assert run_command(["compress", *run]) == 0
    assert run_command(["decompress", *common, str(packed), "-o", str(restored)]) == 0
    assert restored.read_bytes() == text.read_bytes()


def test_one_process_of_torchrun_scores_the_same(options: ScoreOptions, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "evalkit"]
    command += ["score", str(options.artifact), "--text", str(options.text), "--tokenizer", options.tokenizer]
    command += ["--seq-len", "128", "--stride", "16", "--limit-tokens", "1500", "--dtype", "float32"]
    command += ["--device", DEVICE, "--json", str(report), "--quiet"]
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run(command, check=True, timeout=240, cwd=root, env=os.environ | {"PYTHONPATH": root})
    assert json.loads(report.read_text())["bpb"] == pytest.approx(evalkit.score(options).bpb, abs=1e-6)


def test_the_fastest_kernel_computes_the_same_attention() -> None:
    from evalkit.model.attention import attend, has_flash

    generator = torch.Generator().manual_seed(0)
    device = torch.device(DEVICE)
    for queries in (256, 64, 1):
        q = torch.randn(2, 4, queries, 64, generator=generator)
        k, v = (torch.randn(2, 2, 256, 64, generator=generator) for _ in range(2))
        expected = attend(q, k, v, on_gpu=False, flash=False)
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
            flash = has_flash(device, dtype, 64)
            on_gpu = [x.to(device, dtype) for x in (q, k, v)]
            found = attend(*on_gpu, on_gpu=True, flash=flash)
            torch.testing.assert_close(found.float().cpu(), expected, atol=tolerance, rtol=0)
