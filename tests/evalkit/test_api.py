"""The Python interface, and what importing and asking for help must not load."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import evalkit
from evalkit.cli.main import COMMANDS
from evalkit.report.load import read_check, read_report

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
    code = f"from evalkit.cli.main import run_command; assert all(run_command(words) == 0 for words in {words})"
    assert loaded_after(code) == "[]"


@pytest.mark.parametrize("name", [name for name in evalkit.__all__ if name != "__version__"])
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(evalkit, name).__doc__


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'scor'"):
        evalkit.scor  # noqa: B018


def test_score_and_check_as_documented(
    tiny_artifact: Path, tokenizer_path: Path, scored: tuple[Path, Path], tmp_path: Path
) -> None:
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
    legality = evalkit.check(options, evalkit.CheckOptions(budget_seconds=math.inf, offsets=8))
    assert legality.verdict == "legal", legality.summary()
    assert legality.findings == ()
    (tmp_path / "r.json").write_text(json.dumps(report.to_dict()))
    (tmp_path / "c.json").write_text(json.dumps(legality.to_dict(), allow_nan=False))
    assert read_check(tmp_path / "c.json", read_report(tmp_path / "r.json")) == legality
    artifact = evalkit.load_artifact(tiny_artifact)
    assert isinstance(artifact, evalkit.Artifact)
    with pytest.raises(evalkit.InputError, match="does not exist"):
        evalkit.load_artifact("nothing.ptz")


def test_the_modules_do_not_hide_the_functions() -> None:
    import evalkit.verbs.check
    import evalkit.verbs.score

    assert callable(evalkit.score)
    assert callable(evalkit.check)
    assert evalkit.score is evalkit.verbs.score.score


def test_an_artifact_refuses_another_tokenizer_of_the_same_size(tmp_path: Path, tokenizer_path: Path) -> None:
    from evalkit.artifact.native import NativeMetadata, write_native
    from evalkit.artifact.tensors import PlainTensor
    from evalkit.model.config import ModelConfig
    from evalkit.model.gpt import GPT
    from evalkit.verbs.session import open_model

    config = ModelConfig(vocab_size=384, num_layers=1, model_dim=16, num_heads=2, num_kv_heads=2, mlp_hidden=16)
    state = GPT(config).state_dict()
    tensors = {k: PlainTensor(values=v.numpy(), stored="float32", dtype="float32") for k, v in state.items()}
    metadata = NativeMetadata(config=config.to_dict(), tokenizer_sha256="0" * 64)
    (tmp_path / "a.evk").write_bytes(write_native(tensors, metadata))
    options = evalkit.ScoreOptions(artifact=str(tmp_path / "a.evk"), tokenizer=str(tokenizer_path), text="x")
    with pytest.raises(evalkit.InputError, match="another tokenizer"):
        open_model(options)
