"""Phases never overlap, and they add up to the wall time."""

import json
from pathlib import Path

import pytest

from evalkit.cli.main import run_command
from evalkit.plumbing.profiling import PHASES, Profile


class Clock:
    """A clock that is moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_phase_inside_another_pauses_it() -> None:
    clock = Clock()
    profile = Profile(clock)
    clock.now += 1.0
    with profile.phase("score"):
        clock.now += 2.0
        with profile.phase("mix"):
            clock.now += 4.0
        clock.now += 8.0
    clock.now += 16.0
    result = profile.to_dict()
    assert result["seconds"] == {"load": 0, "compile": 0, "score": 10, "mix": 4, "train": 0, "other": 17}
    assert result["wall_seconds"] == 31
    assert sum(result["percent"].values()) == pytest.approx(100)


def test_methods_are_timed_even_when_they_fail() -> None:
    clock = Clock()

    class Worker:
        def work(self, seconds: float) -> float:
            clock.now += seconds
            if seconds > 5:
                raise RuntimeError
            return seconds

    profile = Profile(clock)
    worker = profile.time_methods(Worker(), "train", ("work", "missing"))
    assert worker.work(3.0) == 3.0
    with pytest.raises(RuntimeError):
        worker.work(7.0)
    clock.now += 1.0
    assert profile.to_dict()["seconds"]["train"] == 10
    assert profile.to_dict()["seconds"]["other"] == 1
    assert Clock.now == 100.0


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(ValueError, match="'sleep'"), Profile().phase("sleep"):
        pass


@pytest.mark.parametrize(
    ("extra", "busy"), [((), {"load", "score"}), (("--mixer", "hedge", "--ttt"), {"load", "score", "mix", "train"})]
)
def test_score_prints_the_phases_and_scores_alike(
    tiny_artifact: Path,
    tokenizer_path: Path,
    text_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: tuple[str, ...],
    busy: set[str],
) -> None:
    command = ["score", str(tiny_artifact), "--text", str(text_path), "--tokenizer", str(tokenizer_path), *extra]
    command += ["--seq-len", "64", "--stride", "16", "--limit-tokens", "300", "--dtype", "float32", "--quiet"]
    command += ["--set", "ttt.chunk_tokens=128"] if "--ttt" in extra else []
    assert run_command([*command, "--json", str(tmp_path / "plain.json")]) == 0
    capsys.readouterr()
    assert run_command([*command, "--profile", "--json", str(tmp_path / "timed.json")]) == 0
    shown = capsys.readouterr().out
    plain, timed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "timed"))
    assert timed["ledger_sha256"] == plain["ledger_sha256"]
    assert "profile" not in plain
    profile = timed["profile"]
    assert sum(profile["seconds"].values()) == pytest.approx(profile["wall_seconds"], rel=1e-9)
    assert sum(profile["percent"].values()) == pytest.approx(100)
    assert profile["wall_seconds"] >= timed["seconds"]
    assert {name for name in PHASES if profile["seconds"][name] > 0} >= busy
    assert all(f"| {name} " in shown for name in (*PHASES, "wall"))
