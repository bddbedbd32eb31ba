"""The Python interface, and what importing and asking for help must not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import evalkit
from evalkit.cli.main import COMMANDS

HEAVY = "[m for m in ('torch', 'numba', 'scipy', 'numpy', 'sentencepiece', 'constriction') if m in sys.modules]"


def loaded_after(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", f"import sys; {code}; print({HEAVY})"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_importing_loads_nothing_heavy() -> None:
    assert loaded_after("import evalkit; dir(evalkit)") == "[]"


def test_help_of_every_command_loads_nothing_heavy() -> None:
    words = [[name, "--help"] for name in COMMANDS]
    words += [["data", name, "--help"] for name in ("download", "tokenize", "verify")]
    words += [["probe", name, "--help"] for name in ("emit", "judge")]
    code = f"from evalkit.cli.main import _run; assert all(_run(words, False) == 0 for words in {words})"
    assert loaded_after(code) == "[]"


@pytest.mark.parametrize("name", [name for name in evalkit.__all__ if name != "__version__"])
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(evalkit, name).__doc__


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'scor'"):
        evalkit.scor  # noqa: B018


def test_score_and_check_as_documented(tiny_artifact: Path, tokenizer_path: Path, scored: tuple[Path, Path]) -> None:
    options = evalkit.ScoreOptions(
        artifact=str(tiny_artifact),
        tokenizer=str(tokenizer_path),
        tokens=str(scored[1]),
        seq_len=64,
        limit_tokens=150,
        mixer="hedge",
        threads=1,
    )
    report = evalkit.score(options)
    assert report.nll.shape == (150,)
    assert report.bpb == report.to_dict()["bpb"] > 0
    legality = evalkit.check(options, evalkit.CheckOptions(budget_seconds=3))
    assert legality.verdict in ("legal", "unproven")
    assert legality.findings == []
    artifact = evalkit.load_artifact(tiny_artifact)
    assert isinstance(artifact, evalkit.Artifact)
    with pytest.raises(evalkit.InputError, match="does not exist"):
        evalkit.load_artifact("nothing.ptz")


def test_the_modules_do_not_hide_the_functions() -> None:
    import evalkit.checking
    import evalkit.scoring

    assert callable(evalkit.score)
    assert callable(evalkit.check)
    assert evalkit.score is evalkit.scoring.score
