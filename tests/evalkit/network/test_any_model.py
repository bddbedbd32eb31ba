"""Any module is scored like evalkit's own network: exactly, causally, and with a sentence where it does not fit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import any_models as models
import numpy as np
import pytest
import torch
from torch import nn

import evalkit
from evalkit.cli.main import run_command
from evalkit.network.causality import find_leak
from evalkit.network.network import Network
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import InputError
from evalkit.ttt.config import TTTConfig
from evalkit.ttt.parameters import adapted_names

FILE = Path(models.__file__)
LENGTH, STRIDE, TOKENS = 64, 16, 300


def naive(model: nn.Module, tokens: np.ndarray) -> np.ndarray:
    """Score every position with the first window that reaches it, one window at a time, in plain float32."""
    nll, scored, start = [], 1, 0
    while scored < len(tokens):
        stop = min(start + LENGTH + 1, len(tokens))
        inputs = torch.tensor(tokens[start : stop - 1].astype(np.int64))
        if getattr(model, "pad", True):
            inputs = torch.nn.functional.pad(inputs, (0, LENGTH - len(inputs)))
        with torch.no_grad():
            out = model(inputs[None])
        logits = (out[0] if isinstance(out, tuple) else out)[0].double()
        rows = torch.log_softmax(logits, -1)
        nll += [-float(rows[p - 1 - start, int(tokens[p])]) for p in range(scored, stop)]
        scored, start = stop, start + STRIDE
    return np.array(nll)


def options(tokenizer_path: Path, text_path: Path, **more: object) -> evalkit.ScoreOptions:
    given = {
        "tokenizer": str(tokenizer_path),
        "text": str(text_path),
        "seq_len": LENGTH,
        "stride": STRIDE,
        "limit_tokens": TOKENS,
    }
    return evalkit.ScoreOptions(**(given | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["transformer", "tuple_transformer", "recurrent"])
def test_scores_are_those_of_a_naive_loop(name: str, tokenizer_path: Path, text_path: Path) -> None:
    session = evalkit.open_session(options(tokenizer_path, text_path, module=f"{FILE}:{name}"))
    report = evalkit.score(session.options)
    expected = naive(getattr(models, name)().eval(), session.stream.read(0, TOKENS + 1))
    assert report.nll.shape == expected.shape
    np.testing.assert_allclose(report.nll, expected, atol=1e-5)
    batched = evalkit.score(options(tokenizer_path, text_path, module=f"{FILE}:{name}", batch_windows=1))
    np.testing.assert_allclose(batched.nll, expected, atol=1e-5)


def test_a_model_object_and_a_window_of_its_own(tokenizer_path: Path, text_path: Path) -> None:
    named = evalkit.score(options(tokenizer_path, text_path, module=f"{FILE}:transformer", seq_len=None))
    held = evalkit.score(options(tokenizer_path, text_path, module=models.transformer(), seq_len=None))
    assert (named.seq_len, held.seq_len) == (64, 64)
    np.testing.assert_array_equal(named.nll, held.nll)


def test_the_report_names_code_and_weights(tokenizer_path: Path, text_path: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    torch.save({"module._orig_mod." + k: v for k, v in models.transformer().state_dict().items()}, weights)
    spec = f"{FILE}:with_weights"
    report = evalkit.score(options(tokenizer_path, text_path, module=spec, weights=str(weights)))
    plain = evalkit.score(options(tokenizer_path, text_path, module=f"{FILE}:transformer"))
    np.testing.assert_array_equal(report.nll, plain.nll)
    artifact = report.to_dict()["artifact"]
    assert artifact["format"] == "module"
    assert artifact["bytes"] == FILE.stat().st_size + weights.stat().st_size
    assert [file["path"] for file in artifact["files"]] == [str(FILE), str(weights)]
    assert artifact["sha256"] != plain.to_dict()["artifact"]["sha256"]


def test_evalkits_own_network_gives_the_scores_of_its_artifact(
    tiny_artifact: Path, tokenizer_path: Path, text_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(
        "from evalkit.artifact.load import load_artifact\n"
        "def make(weights):\n"
        "    artifact = load_artifact(weights)\n"
        "    return artifact.build(artifact.resolve('pr849').config)\n"
    )
    module = f"{tmp_path / 'own.py'}:make"
    own = evalkit.score(options(tokenizer_path, text_path, module=module, weights=str(tiny_artifact)))
    artifact = evalkit.score(options(tokenizer_path, text_path, artifact=str(tiny_artifact), recipe="pr849"))
    assert own.ledger_sha256 == artifact.ledger_sha256


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "has no callable named 'nowhere'"),
        ("none", "the factory returned None; expected a model"),
        ("raising", "the factory raised ValueError: no such checkpoint (any_models.py, line"),
        ("failing", "failed on ids of shape"),
        ("wrong_shape", "expected [1, 64, 384]"),
        ("wrong_vocabulary", "another vocabulary than the tokenizer's"),
        ("wider", "if it is wider on purpose, let the model say vocab_size = 385"),
        ("whole_numbers", "returned torch.int64 numbers; expected floating-point logits"),
        ("not_a_number", "returned NaN in row 0"),
        ("text", "returned str 'logits'; expected logits"),
        ("with_weights", "there are no weights to load"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    name: str, words: str, tokenizer_path: Path, text_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", "--module", f"{FILE}:{name}", "--text", str(text_path), "--tokenizer", str(tokenizer_path)]
    command += ["--seq-len", "64", "--limit-tokens", "100", "--json", str(tmp_path / "r.json"), "-q"]
    assert run_command(command) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r.json").exists()


def test_weights_that_do_not_fit_are_one_line(
    tokenizer_path: Path, text_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(models.transformer().state_dict(), tmp_path / "w.pt")
    command = ["score", "--module", f"{FILE}:with_narrow_weights", "--weights", str(tmp_path / "w.pt")]
    assert run_command([*command, "--text", str(text_path), "--tokenizer", str(tokenizer_path)]) == 2
    error = capsys.readouterr().err
    assert "the factory raised RuntimeError: Error(s) in loading state_dict" in error
    assert "size mismatch" in error
    assert error.count("\n") == 1


def test_an_array_in_place_of_logits_is_called_one() -> None:
    network = Network(model=lambda ids: np.zeros((*ids.shape, 5)), vocab_size=5, name="the model")
    with pytest.raises(InputError, match="returned a ndarray; expected logits, a tensor"):
        network.logits(torch.zeros(1, 3, dtype=torch.int64))


def test_logits_may_be_a_view_of_a_weight(tokenizer_path: Path, text_path: Path) -> None:
    report = evalkit.score(options(tokenizer_path, text_path, module=models.constant(), seq_len=None))
    np.testing.assert_allclose(report.nll, np.log(models.VOCAB))
    learned = evalkit.score(
        options(
            tokenizer_path,
            text_path,
            module=models.constant(),
            ttt=True,
            settings={"ttt": {"trainable": "all", "chunk_tokens": "64"}},
        )
    )
    assert learned.bpb < report.bpb


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--weights", "nowhere.pt"], "weights nowhere.pt does not exist"),
        (["--weights", str(FILE)], "the factory takes no argument; leave out --weights"),
        (["--no-model"], "are different models: give one of them"),
        (["--recipe", "pr849"], "leave it out"),
        (["--context", "streaming"], "--context streaming is for artifacts"),
        (["--set", "model.rope_base=1"], "would change nothing here"),
    ],
)
def test_options_that_do_not_go_with_a_module(
    extra: list[str], words: str, tokenizer_path: Path, text_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", "--module", f"{FILE}:transformer", "--text", str(text_path), "--tokenizer", str(tokenizer_path)]
    assert run_command([*command, *extra]) == 2
    assert words in capsys.readouterr().err


def test_a_look_ahead_is_found_before_the_first_window(
    tokenizer_path: Path, text_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", "--module", f"{FILE}:leaking", "--text", str(text_path), "--tokenizer", str(tokenizer_path)]
    assert run_command([*command, "--limit-tokens", "100", "--json", str(tmp_path / "r.json")]) == 0
    assert "not causal" in capsys.readouterr().err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["legal"] is False
    assert "a token 1 ahead" in report["illegal_because"]


class AcrossTheBatch(models.Transformer):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids.max(0, keepdim=True).values).expand(ids.shape[0], -1, -1)


def test_a_look_at_other_windows_of_the_batch_is_found() -> None:
    torch.manual_seed(0)
    leak = find_leak(Network(model=AcrossTheBatch(), vocab_size=models.VOCAB), 64, torch.device("cpu"))
    assert leak is not None
    assert leak.distance == 0


def test_what_outlives_a_call_is_found(tokenizer_path: Path, text_path: Path) -> None:
    report = evalkit.score(options(tokenizer_path, text_path, module=models.counting()))
    assert report.legal is False
    assert "at a second call with the same ids" in str(report.illegal_because)


@pytest.mark.parametrize("make", [models.transformer, models.recurrent, models.tuple_transformer])
@pytest.mark.parametrize("seed", range(5))
def test_honest_models_pass(make: object, seed: int) -> None:
    model = make().eval()  # type: ignore[operator]
    assert find_leak(Network(model=model, vocab_size=models.VOCAB), 64, torch.device("cpu"), seed=seed) is None


def test_ids_that_a_model_rules_out_cost_nothing(tokenizer_path: Path, text_path: Path) -> None:
    plain = evalkit.score(options(tokenizer_path, text_path, module=models.transformer()))
    masked = evalkit.score(options(tokenizer_path, text_path, module=models.masked()))
    np.testing.assert_allclose(masked.nll, plain.nll, atol=1e-9)
    mixed = evalkit.score(options(tokenizer_path, text_path, module=models.masked(), mixer="hedge"))
    assert np.isfinite(mixed.nll).all()


@pytest.mark.parametrize("name", ["transformer", "tuple_transformer", "recurrent"])
@pytest.mark.parametrize("trainable", ["adapters", "all", "scales", "last_blocks_and_scales"])
def test_any_module_learns_what_has_been_scored(
    name: str, trainable: str, tokenizer_path: Path, text_path: Path
) -> None:
    if name == "recurrent" and trainable == "last_blocks_and_scales":
        pytest.skip("a model without blocks has no last ones")
    settings = {"ttt": {"trainable": trainable, "chunk_tokens": "64"}}
    given = options(tokenizer_path, text_path, module=f"{FILE}:{name}", ttt=True, mixer="hedge", settings=settings)
    learned = evalkit.score(given)
    frozen = evalkit.score(options(tokenizer_path, text_path, module=f"{FILE}:{name}", mixer="hedge"))
    np.testing.assert_allclose(learned.nll[:64], frozen.nll[:64], atol=1e-5)
    assert np.abs(learned.nll[64:] - frozen.nll[64:]).max() > 1e-5
    assert learned.to_dict()["ttt_report"]["steps"] > 0


def test_adapters_go_where_they_are_told() -> None:
    model = models.Transformer()
    assert adapted_names(model, TTTConfig(), models.VOCAB) == ["blocks.0.qkv.weight", "blocks.1.qkv.weight"]
    assert adapted_names(model, TTTConfig(match=r"\.1\.down$"), models.VOCAB) == ["blocks.1.down.weight"]
    assert adapted_names(models.Recurrent(), TTTConfig(), models.VOCAB) == ["head.weight"]
    with pytest.raises(evalkit.InputError, match="matches none of the linear layers"):
        adapted_names(model, TTTConfig(match="nothing"), models.VOCAB)
    with pytest.raises(evalkit.InputError, match="expected a regular expression"):
        TTTConfig(match="(")


class Detached(models.Transformer):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return super().forward(ids)


@pytest.mark.parametrize(
    ("model", "words"),
    [(Detached(), "carry no gradient"), (models.Stateless(), "no torch module with weights")],
    ids=["detached", "function"],
)
def test_what_cannot_learn_is_said(model: object, words: str, tokenizer_path: Path, text_path: Path) -> None:
    with pytest.raises(evalkit.InputError, match=words):
        evalkit.score(options(tokenizer_path, text_path, module=model, ttt=True))


@pytest.mark.parametrize(("name", "verdict", "code"), [("transformer", "legal", 0), ("leaking", "illegal", 3)])
def test_check_judges_a_module(
    name: str, verdict: str, code: int, tokenizer_path: Path, text_path: Path, tmp_path: Path
) -> None:
    command = ["check", "--module", f"{FILE}:{name}", "--text", str(text_path), "--tokenizer", str(tokenizer_path)]
    command += ["--max-tokens", "70", "--span", "64", "--budget", "inf", "--json", str(tmp_path / "c.json"), "-q"]
    assert run_command(command) == code
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["verdict"] == verdict
    assert report["covered"]["budget"]["bytes"] == FILE.stat().st_size
    if verdict == "legal":
        assert report["covered"]["audit"]["in_child_process"] is True
    else:
        assert report["findings"][0]["axiom"] == "causality"


@pytest.mark.parametrize("name", ["transformer", "recurrent"])
def test_compress_and_decompress_in_two_processes(
    name: str, forked_evalkit: list[str], tokenizer_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_bytes("Na\u00efve \u4f60\u597d,\r\nhello there, my friend.".encode())
    model = ["--module", f"{FILE}:{name}"]
    tokenizer = ["--tokenizer", str(tokenizer_path)]
    coded, restored = str(tmp_path / "t.evk"), tmp_path / "r.txt"
    for command in (
        ["compress", *model, str(tmp_path / "t.txt"), "-o", coded, "--seq-len", "64", *tokenizer],
        ["decompress", *model, coded, "-o", str(restored), *tokenizer],
    ):
        done = subprocess.run([*forked_evalkit, *command], check=True, capture_output=True, text=True)
        assert ("the model offers no step(ids, state)" in done.stderr) == (name == "transformer")
    assert restored.read_bytes() == (tmp_path / "t.txt").read_bytes()


def test_code_that_ships_is_counted_once_and_named(
    tokenizer_path: Path, text_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "helper.py").write_text("WIDTH = 32\n")
    (tmp_path / "large.bin").write_bytes(bytes(SIZE_CAP))
    command = ["score", "--module", f"{FILE}:transformer", "--text", str(text_path), "--tokenizer", str(tokenizer_path)]
    command += ["--limit-tokens", "20", "--json", str(tmp_path / "r.json"), "--enforce-cap"]
    code = ["--code", str(tmp_path / "helper.py"), "--code", str(FILE)]  # the module's own file counts already
    assert run_command([*command, *code]) == 0
    artifact = json.loads((tmp_path / "r.json").read_text())["artifact"]
    assert [Path(file["path"]).name for file in artifact["code"]] == ["helper.py"]
    assert artifact["shipped_bytes"] == FILE.stat().st_size + 11
    assert artifact["cap_headroom_bytes"] == SIZE_CAP - artifact["shipped_bytes"]
    assert run_command([*command, *code, "--code", str(tmp_path / "large.bin")]) == 3
    assert "over the cap" in capsys.readouterr().err
    assert run_command([*command, "--code", "nowhere.py"]) == 2
    assert "code file nowhere.py does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "budget", "code"), [("transformer", "0", 0), ("leaking", "1", 3)])
def test_run_scores_and_checks_without_training(
    name: str,
    budget: str,
    code: int,
    tokenizer_path: Path,
    text_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["run", "--module", f"{FILE}:{name}", "--text", str(text_path), "--tokenizer", str(tokenizer_path)]
    command += ["--limit-tokens", "100", "--mixer", "hedge", "--budget", budget, "--out", str(out), "-q"]
    assert run_command(command) == code
    report = json.loads((out / "report.json").read_text())
    assert list(report["stages"]) == ["sliding", "sliding-mixer"]
    assert report["artifact"]["path"] == f"{FILE}:{name}"
    assert report["stages"]["sliding"] == json.loads((out / "score-sliding.json").read_text())
    if code:
        check = json.loads((out / "check-sliding-mixer.json").read_text())
        assert (check["verdict"], check["covered"]["subject"]["mixer"]) == ("illegal", "hedge")
    capsys.readouterr()
    assert run_command([*command, "--steps", "3"]) == 2
    assert "--steps: a module is not trained; leave it out" in capsys.readouterr().err


def test_a_submission_holds_a_modules_code_and_counts_everything(
    tokenizer_path: Path, text_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(models.transformer().state_dict(), tmp_path / "w.pt")
    (tmp_path / "helper.py").write_text("WIDTH = 32\n")
    (tmp_path / "model.py").write_bytes(FILE.read_bytes())
    command = ["score", "--module", f"{tmp_path / 'model.py'}:with_weights", "--weights", str(tmp_path / "w.pt")]
    command += ["--text", str(text_path), "--tokenizer", str(tokenizer_path), "--limit-tokens", "50"]
    command += ["--code", str(tmp_path / "helper.py"), "--json", str(tmp_path / "r.json"), "-q"]
    assert run_command(command) == 0
    submit = [
        "submit",
        str(tmp_path / "mine"),
        "--report",
        str(tmp_path / "r.json"),
        "--name",
        "Mine",
        "--author",
        "Ada",
    ]
    assert run_command(submit) == 0
    values = json.loads((tmp_path / "mine" / "submission.json").read_text())
    assert values["code"] == {"model.py": FILE.stat().st_size, "helper.py": 11}
    assert values["bytes_model"] == (tmp_path / "w.pt").stat().st_size
    assert values["bytes_total"] == values["bytes_model"] + FILE.stat().st_size + 11
    assert (tmp_path / "mine" / "model.py").read_bytes() == FILE.read_bytes()
    assert str(tmp_path) not in (tmp_path / "mine" / "score-1.json").read_text()
    assert "--module model.py:with_weights --weights w.pt" in (tmp_path / "mine" / "README.md").read_text()
    (tmp_path / "helper.py").write_text("WIDTH = 33\n")
    submit[1] = str(tmp_path / "other")
    assert run_command(submit) == 2
    assert "helper.py is not the file that" in capsys.readouterr().err


def test_a_submission_that_is_there_already_is_said_before_the_work(
    tokenizer_path: Path, text_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    command = ["run", "--module", f"{FILE}:transformer", "--text", str(text_path), "--tokenizer", str(tokenizer_path)]
    command += ["--out", str(tmp_path / "out"), "--submission", str(tmp_path / "mine"), "--author", "Ada"]
    assert run_command(command) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
