"""Scores depend on the artifact, the text and the window, and on nothing else."""

import json
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.cli.main import run_command
from evalkit.plumbing.errors import InputError
from evalkit.prequential.ledger import Ledger
from evalkit.prequential.loop import run_prequential
from evalkit.prequential.sliding import SlidingForecaster
from evalkit.tokens.shards import write_shard
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.score import score, score_session
from evalkit.verbs.session import open_session
from tests.evalkit.conftest import write_tiny


@pytest.fixture
def options(tiny_artifact: Path, tokenizer_path: Path, text_path: Path) -> ScoreOptions:
    return ScoreOptions(
        artifact=str(tiny_artifact),
        tokenizer=str(tokenizer_path),
        text=str(text_path),
        seq_len=64,
        stride=16,
        limit_tokens=700,
        dtype="float32",
    )


def test_spans_batches_and_threads_do_not_change_a_bit(options: ScoreOptions) -> None:
    options = replace(options, limit_tokens=300)
    reference = score(options).nll
    for change in ({"batch_windows": 3}, {"threads": 1}, {"threads": 3}):
        np.testing.assert_array_equal(score(replace(options, **change)).nll, reference)
    session = open_session(options)
    for span in (1, 7, 64, 5000):
        ledger = run_prequential(
            session.make_forecaster(), session.stream, session.tokenizer.byte_table, Ledger(), span=span
        )
        np.testing.assert_array_equal(ledger.scores(), reference)


def test_two_runs_report_the_same_but_for_the_times(options: ScoreOptions) -> None:
    first, second = (score(replace(options, mixer="hedge")).to_dict() for _ in range(2))
    for report in (first, second):
        for key in ("seconds", "tokens_per_second"):
            assert report.pop(key) > 0
    assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


def test_the_distribution_is_normalised_and_holds_the_score(options: ScoreOptions) -> None:
    session = open_session(options)
    forecaster: Any = session.make_forecaster()
    tokens = session.stream.read(0, 200)
    rows = forecaster.distribution(tokens, 90, 200)
    np.testing.assert_allclose(np.exp(rows).sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(-rows[np.arange(110), tokens[90:200]], forecaster.score(tokens, 90, 200))


def test_stepping_token_by_token_agrees_with_windows(options: ScoreOptions) -> None:
    session = open_session(options)
    forecaster: Any = session.make_forecaster()
    tokens = session.stream.read(0, 200)
    rows = forecaster.distribution(tokens, 1, 200)
    for position in range(1, 200):
        np.testing.assert_allclose(forecaster.next_distribution(tokens[:position]), rows[position - 1], atol=2e-5)


def test_a_later_token_changes_nothing_before_it(options: ScoreOptions) -> None:
    session = open_session(options)
    forecaster: Any = session.make_forecaster()
    tokens = session.stream.read(0, 300).astype(np.int64)
    scores = forecaster.score(tokens, 1, 300)
    for position in (1, 63, 64, 65, 80, 81, 150, 299):
        changed = tokens.copy()
        changed[position:] = (changed[position:] + 7) % 384
        np.testing.assert_array_equal(forecaster.score(changed, 1, 300)[: position - 1], scores[: position - 1])


def test_short_streams(options: ScoreOptions, tokenizer_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b")
    for limit in (1, 2):
        report = score(replace(options, text=str(tmp_path / "a.txt"), limit_tokens=limit))
        assert len(report.nll) == report.tokens_scored == limit


class Stop(Exception):
    """Stands for whatever interrupts a run."""


def interrupt_fourth_span(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> list[int]:
    """Raise ``error`` once, in the fourth ``observe``; return the list, which grows, of the spans' first positions."""
    starts: list[int] = []
    original = SlidingForecaster.observe

    def observe(self: Any, tokens: Any, start: int, stop: int) -> None:
        starts.append(start)
        if len(starts) == 4:
            if error is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            raise error
        original(self, tokens, start, stop)

    monkeypatch.setattr(SlidingForecaster, "observe", observe)
    return starts


@pytest.mark.parametrize("mixer", ["none", "hedge"])
def test_an_interrupted_run_resumes_to_the_same_bits(
    options: ScoreOptions, mixer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALKIT_STATE", str(tmp_path))
    monkeypatch.setattr("evalkit.prequential.forecaster.DEFAULT_SPAN", 100)
    monkeypatch.setattr("evalkit.verbs.score._CHECKPOINT_SECONDS", 0.0)
    options = replace(options, mixer=mixer)
    expected = score(options).nll
    starts = interrupt_fourth_span(monkeypatch, Stop)
    with pytest.raises(Stop):
        score_session(open_session(options), resume=False)
    assert starts == sorted(set(starts))
    report = score_session(open_session(options), resume=True)
    # Where it resumed: the span that was interrupted, or the one after it where the ledger is all there is to keep. The
    # final bits alone would not tell a run that started over.
    due = starts[3] if mixer == "hedge" else starts[3] + 100
    assert starts[4] == due > 1
    np.testing.assert_array_equal(report.nll, expected)
    assert list(tmp_path.iterdir()) == []  # a complete run leaves nothing behind


def test_a_run_without_a_place_for_its_state_still_scores(
    options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVALKIT_STATE", str(tmp_path / "file" / "below"))
    assert score_session(open_session(options), resume=False).bpb == score(options).bpb
    with pytest.raises(InputError, match="EVALKIT_STATE"):
        score_session(open_session(options), resume=True)


def test_the_same_run_twice_at_a_time(options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit.prequential.resume import ResumeFolder

    monkeypatch.setenv("EVALKIT_STATE", str(tmp_path))
    session = open_session(options)
    other = ResumeFolder(session.identity(), resume=False)
    assert score_session(session, resume=False).bpb == score(options).bpb
    with pytest.raises(InputError, match="another process"):
        score_session(session, resume=True)
    other.remove()


def test_ctrl_c_then_resume_on_the_command_line(
    options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVALKIT_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("evalkit.prequential.forecaster.DEFAULT_SPAN", 100)
    expected = score(options)
    arguments = [
        "score", str(options.artifact), "--text", str(options.text), "--tokenizer", options.tokenizer,
        "--seq-len", "64", "--stride", "16", "--limit-tokens", "700", "--json", str(tmp_path / "a.json"),
    ]  # fmt: skip
    starts = interrupt_fourth_span(monkeypatch, KeyboardInterrupt)
    assert run_command(arguments) == 130
    captured = capsys.readouterr()
    assert "interrupted" in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "a.json").exists()
    assert run_command([*arguments, "--resume"]) == 0
    assert starts[4] > starts[3]
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["nats"] == expected.nats
    assert report["ledger_sha256"] == expected.ledger_sha256


def test_an_interrupt_loses_the_span_in_hand_alone_and_names_the_command(
    options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # No checkpoint is due while it runs: what is kept is kept by the interrupt itself.
    monkeypatch.setenv("EVALKIT_STATE", str(tmp_path / "state of runs"))
    monkeypatch.setattr("evalkit.prequential.forecaster.DEFAULT_SPAN", 100)
    options = replace(options, mixer="hedge", settings={"mixer": {"eta": "0.5", "method": "hedge"}})
    expected, report = score(options), tmp_path / "a.json"
    starts: list[int] = []
    original = SlidingForecaster.logits

    def interrupted(self: Any, tokens: Any, start: int, stop: int) -> Any:
        starts.append(start)
        if len(starts) == 4:
            raise KeyboardInterrupt
        return original(self, tokens, start, stop)

    monkeypatch.setattr(SlidingForecaster, "logits", interrupted)
    arguments = [
        "score", str(options.artifact), "--text", str(options.text), "--tokenizer", options.tokenizer, "--seq-len",
        "64", "--stride", "16", "--limit-tokens", "700", "--mixer", "hedge", "--set", "mixer.eta=0.5", "--set",
        "mixer.method=hedge", "--json", str(report),
    ]  # fmt: skip
    assert run_command(arguments) == 130
    said = capsys.readouterr().err
    (line,) = [line.strip() for line in said.splitlines() if line.strip().startswith("evalkit score")]
    assert run_command(shlex.split(line)[1:]) == 0
    assert "resuming after 300 of 700 tokens" in capsys.readouterr().err
    assert starts[4] == starts[3] == 301
    assert json.loads(report.read_text())["nats"] == expected.nats


def test_resume_says_when_there_is_nothing_to_resume(
    options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVALKIT_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("evalkit.prequential.forecaster.DEFAULT_SPAN", 100)
    arguments = [
        "score", str(options.artifact), "--text", str(options.text), "--tokenizer", options.tokenizer,
        "--seq-len", "64", "--stride", "16", "--limit-tokens", "700",
    ]  # fmt: skip
    assert run_command([*arguments, "--resume"]) == 0
    assert "nothing to resume: no interrupted run of this very score" in capsys.readouterr().err
    interrupt_fourth_span(monkeypatch, KeyboardInterrupt)
    assert run_command(arguments) == 130
    other = tmp_path / "other.evk"
    write_tiny(other, 5)
    assert run_command(["score", str(other), *arguments[2:], "--resume"]) == 0
    assert "(one that differs in artifact is); scoring from the beginning" in capsys.readouterr().err


def test_bfloat16_is_close_to_float32(options: ScoreOptions) -> None:
    wide, narrow = score(options), score(replace(options, dtype="bfloat16"))
    assert narrow.bpb == pytest.approx(wide.bpb, rel=5e-3)
    assert (narrow.nll != wide.nll).any()


def test_unknown_tokens_are_in_the_report(
    options: ScoreOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalkit.tokens.kinds import open_tokenizer

    tokenizer = open_tokenizer(options.tokenizer)
    monkeypatch.setattr(tokenizer, "has_byte_fallback", False)  # else such a stream is an error
    monkeypatch.setattr("evalkit.verbs.session.open_tokenizer", lambda path: tokenizer)
    assert "unknown_tokens" not in score(replace(options, limit_tokens=50)).to_dict()
    write_shard(tmp_path / "val_000000.bin", np.array([1, 50, 3, 60, 3, 61]))
    report = score(replace(options, text=None, tokens=str(tmp_path / "val_*.bin")))
    assert report.to_dict()["unknown_tokens"] == 2
    assert report.num_bytes[[1, 3]].tolist() == [0, 0]


def test_report_and_dump_follow_the_contract(options: ScoreOptions, tmp_path: Path) -> None:
    code = run_command(
        ["score", str(options.artifact), "--text", str(options.text), "--tokenizer", options.tokenizer,
         "--seq-len", "64", "--limit-tokens", "300", "--json", str(tmp_path / "r.json"),
         "--dump-nll", str(tmp_path / "r.npz"), "-q"]
    )  # fmt: skip
    assert code == 0
    report = json.loads((tmp_path / "r.json").read_text())
    dump = np.load(tmp_path / "r.npz")
    assert dump["position"].dtype == np.int64
    assert dump["nll"].dtype == np.float64
    assert dump["bytes"].dtype == np.int32
    assert dump["position"].tolist() == list(range(1, 301))
    assert report["tokens_scored"] == 300
    assert report["bytes_scored"] == dump["bytes"].sum()
    assert report["val_loss"] == pytest.approx(dump["nll"].mean(), rel=1e-14)
    assert report["bpb"] == pytest.approx(dump["nll"].sum() / np.log(2) / dump["bytes"].sum(), rel=1e-14)
    assert {"path", "sha256", "bytes", "format", "compression"} <= report["artifact"].keys()
    assert {"config", "stride", "seq_len", "mixer", "ttt", "legal", "seconds", "tokens_per_second", "versions"} <= set(
        report
    )
    assert report["legal"] is None
    assert report["config"]["value_residual"] == "x0"
    assert report["config"]["activation"] == "leaky_relu2"
