"""``evalkit export``: from a run folder to an artifact, through the command line."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from train_helpers import write_shard

import evalkit
from evalkit.artifact.layouts import held_values
from evalkit.artifact.load import load_artifact
from evalkit.artifact.recognition import OpenSettings
from evalkit.artifact.tensors import PlainTensor, QuantizedTensor
from evalkit.cli.main import run_command
from evalkit.model.gpt import GPT
from evalkit.recipes import load_recipe
from evalkit.tokens.tokenizer import Tokenizer
from evalkit.train.export.export import pack_artifact, quantize_state_dict
from evalkit.train.export.pipeline import ExportConfig, ExportResult, export_run, plan_of, target_weights
from evalkit.train.export.text import TrainingText
from evalkit.train.folder import load_run
from evalkit.train.qat import bits_of, round_to_grid, step_size
from evalkit.train.quantization.hessian import collect_hessians
from evalkit.train.resolve import resolve
from evalkit.train.run import train_model
from evalkit.verbs.score import score_session

# 160 wide: the MLP's matrices are above the 65,536 elements up to which the published plans keep float16.
RUNS = {"pr634": "160x2", "pr849": "160x2", "tiny": "64x2"}
SETTINGS = {
    "model.vocab_size": "384",
    "model.bigram_buckets": "256",
    "train.batch_tokens": "256",
    "train.spans": "1",
    "train.seq_len": "32",
    "train.checkpoint_seconds": "0",
    "train.device": "cpu",
}
FEW = ("--calibration-tokens", "512")


@pytest.fixture(autouse=True)
def _little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are measured and lowered on fewer tokens than an export for use would take."""
    monkeypatch.setattr("evalkit.train.export.text.HELD_OUT_TOKENS", 1024)
    monkeypatch.setattr("evalkit.train.export.text.REFINE_TOKENS", 1024)


@pytest.fixture(scope="module")
def shards(tokenizer_path: Path, text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English in shards, of which the last is for validation."""
    folder = tmp_path_factory.mktemp("export-shards")
    tokenizer = Tokenizer(tokenizer_path)
    documents = text_path.read_text(encoding="utf-8").split("\n")
    tokens = np.concatenate([tokenizer.encode_document(text) for text in documents if text])
    third = len(tokens) // 3
    for i, name in enumerate(("t_train_000000", "t_train_000001", "t_val_000000")):
        write_shard(folder / f"{name}.bin", tokens[i * third : (i + 1) * third])
    return folder


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trained models, three steps each."""
    folder = tmp_path_factory.mktemp("export-runs")
    for recipe, scale in RUNS.items():
        config = resolve(load_recipe(recipe), SETTINGS, scale=scale, steps=3)
        train_model(config, data=shards, tokenizer=None, out=folder / recipe)
    return folder


def export(*arguments: object) -> int:
    return run_command(["export", *map(str, arguments)])


def integers(path: Path) -> dict[str, QuantizedTensor]:
    return {n: t for n, t in load_artifact(path).tensors.items() if isinstance(t, QuantizedTensor)}


@pytest.fixture(scope="module")
def in_own_container(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "evalkit"
    assert export(runs / "pr849", "-o", path, "--container", "evalkit", "--calibration-tokens", 0) == 0
    return path


@pytest.mark.parametrize("container", ["torch-zstd", "torch-xz", "torch-zlib"])
def test_every_container_holds_the_same_tensors(
    container: str, runs: Path, in_own_container: Path, tmp_path: Path
) -> None:
    arguments = ("--container", container, "--calibration-tokens", 0)
    assert export(runs / "pr849", "-o", tmp_path / container, *arguments) == 0
    own, published = load_artifact(in_own_container), load_artifact(tmp_path / container)
    assert published.compression == container.removeprefix("torch-")
    assert own.recognise() == "pr849"
    assert published.recognise() is None  # a small model's tensors could be any system's
    assert own.tensors.keys() == published.tensors.keys()
    assert any(isinstance(tensor, QuantizedTensor) for tensor in own.tensors.values())
    for name, tensor in own.tensors.items():
        other = published.tensors[name]
        assert held_values(tensor).tobytes() == held_values(other).tobytes(), name
    own.build(own.resolve().config)
    assert own.size < published.size


def test_gptq_calibrates_on_own_samples_or_on_training_shards(
    runs: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(runs / "tiny", "-o", tmp_path / "own", *FEW) == 0
    assert "calibrated on 512 tokens of the model's own samples" in capsys.readouterr().out
    assert export(runs / "tiny", "-o", tmp_path / "data", "--data", shards, *FEW) == 0
    assert "calibrated on 512 training tokens" in capsys.readouterr().out
    assert export(runs / "tiny", "-o", tmp_path / "nearest", "--calibration-tokens", 0) == 0
    assert "calibrated" not in capsys.readouterr().out
    own, data, nearest = (integers(tmp_path / name) for name in ("own", "data", "nearest"))
    name = "blocks.0.mlp.fc.weight"
    assert not np.array_equal(own[name].values, data[name].values)
    weight = load_run(runs / "tiny").weights[name].numpy()
    unchanged = np.clip(np.round(weight / nearest[name].scale[:, None].astype(np.float32)), -32, 31)
    np.testing.assert_array_equal(nearest[name].values, unchanged)
    assert not np.array_equal(data[name].values, nearest[name].values)
    described = load_artifact(tmp_path / "data").metadata["recipe"]["notes"]
    assert described[0] == "calibrated on 512 training tokens"


@pytest.mark.parametrize("disguise", ["t_val_train_000000.bin", "t_train_000000.bin"])
def test_validation_text_does_not_calibrate(
    disguise: str, runs: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its name, or as a copy of the validation shard that lies beside it."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(shards / "t_val_000000.bin", data / disguise)
    shutil.copy(shards / "t_val_000000.bin", data)
    arguments = (runs / "tiny", "-o", tmp_path / "a", "--data", data, *FEW)
    assert export(*arguments) == 2
    assert disguise in (message := capsys.readouterr().err)
    assert "calibrate on training shards" in message
    assert not (tmp_path / "a").exists()
    assert export(*arguments, "--force-calibration") == 0
    assert disguise in capsys.readouterr().out
    assert disguise in load_artifact(tmp_path / "a").metadata["recipe"]["notes"][0]


def test_target_bytes_counts_code_and_prunes(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free, tight = tmp_path / "free", tmp_path / "tight"
    code = tmp_path / "train_gpt.py"
    code.write_bytes(b"#" * 1234)
    assert export(runs / "tiny", "-o", free, *FEW) == 0
    target = free.stat().st_size + 1234 - 900
    capsys.readouterr()
    assert export(runs / "tiny", "-o", tight, *FEW, "--target-bytes", target, "--code", code) == 0
    printed = capsys.readouterr().out
    assert "integers of +-1 were zeroed" in printed
    total = tight.stat().st_size + 1234
    assert total <= target
    assert f"{total:,} bytes, {target - total:,} under the target of {target:,}" in printed
    assert target - total < 100, "the search ends where the target is met, not far below"
    before, after = integers(free), integers(tight)
    changed = {n: before[n].values != after[n].values for n in before}
    assert sum(map(np.count_nonzero, changed.values()))
    for name, where in changed.items():
        assert set(np.abs(before[name].values[where])) <= {1}
        assert not after[name].values[where].any()


def test_refinement_keeps_the_integers_and_says_what_it_gained(
    runs: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, steps in (("rounded", 0), ("refined", 4)):
        assert export(runs / "tiny", "-o", tmp_path / name, "--data", shards, *FEW, "--refine", steps) == 0
    note = load_artifact(tmp_path / "refined").metadata["recipe"]["notes"][-1]
    assert note in capsys.readouterr().out
    before, after = map(float, re.findall(r"\d+\.\d{5}", note))
    assert note.startswith("refined for 4 steps")
    assert after < before
    rounded, refined = (integers(tmp_path / name) for name in ("rounded", "refined"))
    for name, tensor in rounded.items():
        np.testing.assert_array_equal(refined[name].values, tensor.values)
    assert any((refined[name].scale != tensor.scale).any() for name, tensor in rounded.items())


def test_a_scaled_down_recipe_is_quantised_in_the_same_tensors(runs: Path) -> None:
    """The published bound on small tensors is that of a width of 512."""
    trained = load_run(runs / "pr634")
    plan = plan_of(trained)
    formats = {name: plan.rule_for(name, w.numel(), 2).format for name, w in trained.weights.items()}
    assert {formats[name] for name in formats if name.endswith(("c_k.weight", "c_v.weight"))} == {"int6"}
    assert {formats[name] for name in formats if name.endswith(("bigram.proj.weight", "resid_mix"))} == {"float16"}


def test_a_target_that_cannot_be_met_writes_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(runs / "tiny", "-o", tmp_path / "a", *FEW, "--target-bytes", 5000) == 2
    assert "above the target of 5000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_fit_prints_what_it_tried_and_keeps_the_best(
    runs: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free, fitted = tmp_path / "free", tmp_path / "fitted"
    arguments = ("--data", shards, *FEW)
    assert export(runs / "tiny", "-o", free, *arguments) == 0
    target = int(0.93 * free.stat().st_size)
    capsys.readouterr()
    results: list[ExportResult] = []

    def recorded(*given: object) -> ExportResult:
        results.append(export_run(*given))  # type: ignore[arg-type]
        return results[-1]

    monkeypatch.setattr("evalkit.train.export.pipeline.export_run", recorded)
    packed: list[int] = []

    def counted(*given: object, **more: object) -> bytes:
        data = pack_artifact(*given, **more)  # type: ignore[arg-type]
        packed.append(len(data))
        return data

    monkeypatch.setattr("evalkit.train.export.export.pack_artifact", counted)
    json_path = tmp_path / "fitted.json"
    chosen = ("--target-bytes", target, "--fit", "--json", json_path)
    assert export(runs / "tiny", "-o", fitted, *arguments, *chosen) == 0
    printed = capsys.readouterr().out
    (result,) = results
    unrounded, *tried = result.table
    assert (unrounded.label, unrounded.fits) == ("float32", False)
    assert unrounded.loss is not None
    best = min((row for row in tried if row.loss is not None), key=lambda row: row.loss or 0.0)
    assert best.fits
    assert "nats per token" in printed
    assert re.search(r"losses are nats per token of [\d,]+ tokens of training text", printed)
    assert best.total_bytes == fitted.stat().st_size <= target
    assert all(row.fits == (row.total_bytes <= target) for row in result.table)
    assert any(not row.fits for row in result.table)
    assert packed == [row.total_bytes for row in tried], "what was tried last is what is written"
    assert {row.label for row in tried} == {"the plan", "a step for each tensor"}
    for row in result.table:
        assert f"{row.total_bytes:,}" in printed
    assert f"{best.loss:.5f}" in printed
    assert export(runs / "tiny", "-o", tmp_path / "again", *arguments, *chosen) == 0
    assert (tmp_path / "again").read_bytes() == fitted.read_bytes()
    report = json.loads(json_path.read_text())
    assert report["artifact"]["bytes"] == report["total_bytes"] == fitted.stat().st_size
    assert report["artifact"]["sha256"] == hashlib.sha256(fitted.read_bytes()).hexdigest()
    assert report["target_bytes"] == target
    assert [row["loss"] for row in report["tried"]] == [row.loss for row in result.table]
    held = load_artifact(fitted).tensors
    assert {n: t["format"] for n, t in report["tensors"].items()} == {n: t.format for n, t in held.items()}


def test_a_published_layout_says_what_it_does_not_hold(
    runs: Path, tmp_path: Path, tokenizer_path: Path, shards: Path
) -> None:
    result = exported(runs, "pr634", tmp_path / "a", tokenizer_path, container="torch-xz")
    (note,) = [note for note in result.notes if "does not hold" in note]
    named = re.findall(r"model\.(\w+)", note)
    assert "xsa_last_n" in named
    assert "trigram_dim" not in named  # there is no such table
    config = load_run(runs / "pr634").config.model.to_dict()
    with pytest.raises(OpenSettings) as refused:
        load_artifact(tmp_path / "a").resolve()
    assert set(refused.value.names) <= set(named)
    told = load_artifact(tmp_path / "a").resolve(str(runs / "pr634" / "recipe.toml"))
    # the number of rows is what the shapes say; the run left it at the default that gives the same
    assert told.config.num_skips == load_run(runs / "pr634").config.model.num_skips
    assert told.config.to_dict() | {name: config[name] for name in ("trigram_dim", "skip_rows")} == config
    assert not any("does not hold" in note for note in exported(runs, "pr634", tmp_path / "b", tokenizer_path).notes)


def test_fit_without_training_text(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the model's own samples."""
    json_path = tmp_path / "a.json"
    assert export(runs / "tiny", "-o", tmp_path / "a", *FEW, "--fit", "--json", json_path) == 0
    printed = capsys.readouterr().out
    assert "calibrated on 512 tokens of the model's own samples" in printed
    assert "tokens of the model's own samples" in printed.partition("losses are nats per token of")[2]
    first, plan, *_ = json.loads(json_path.read_text())["tried"]
    assert (first["label"], plan["label"]) == ("float32", "the plan")
    assert first["loss"] is not None
    assert plan["loss"] is not None


def test_fit_keeps_to_the_widths_of_a_published_layout(runs: Path, shards: Path, tmp_path: Path) -> None:
    free, fitted = tmp_path / "free", tmp_path / "fitted"
    arguments = ("--data", shards, "--container", "torch-xz", *FEW)
    assert export(runs / "pr634", "-o", free, *arguments) == 0
    target = int(0.9 * free.stat().st_size)
    assert export(runs / "pr634", "-o", fitted, *arguments, "--target-bytes", target, "--fit") == 0
    assert fitted.stat().st_size <= target
    formats = {tensor.format for tensor in load_artifact(fitted).tensors.values()}
    assert formats <= {"int5", "int6", "int8", "float16", "float32", "bfloat16"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--container", "torch-xz"), "recipe tiny has no torch layout"),
        (("--calibration-tokens", "-5"), "--calibration-tokens is -5"),
        (("--calibration-tokens", "0", "--fit"), "give --calibration-tokens above 0"),
        (("--refine", "-1"), "--refine is -1"),
        (("--refine", "5"), "name training shards with --data"),
        (("--target-bytes", "0"), "--target-bytes is 0"),
        (("--code", "no/such.py"), "code file no/such.py does not exist"),
        (("--data", "no/such"), "data folder no/such does not exist"),
        (("--weights", "swa"), "has no swa weights"),
        (("--container", "gzip"), "gzip"),
        (("--tokenizer", "no/such.model"), "no/such.model"),
    ],
)
def test_wrong_options_end_with_a_sentence(
    arguments: tuple[str, ...], message: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = () if "--calibration-tokens" in arguments else FEW
    assert export(runs / "tiny", "-o", tmp_path / "a", *few, *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())


def test_the_better_artifact_decides_how_far_gptq_starts_towards_the_grid(runs: Path, shards: Path) -> None:
    """Of the average, the rounded weights and the middle, the one whose artifact loses least on training text."""
    trained = load_run(runs / "pr849")
    qat = trained.config.qat
    assert qat.enabled
    text = TrainingText(shards, trained, calibration_tokens=512)
    rng = torch.Generator().manual_seed(0)
    grid = {n: round_to_grid(w, bits_of(n, qat), qat) for n, w in trained.weights.items() if bits_of(n, qat)}
    assert grid
    step = {n: step_size(w, bits_of(n, qat), qat) for n, w in grid.items()}
    noisy = {n: w + 0.49 * step[n] * (2 * torch.rand(w.shape, generator=rng) - 1) for n, w in grid.items()}
    run = replace(trained, weights=trained.weights | noisy)
    model = GPT(run.config.model).eval().requires_grad_(False)
    model.load_state_dict(run.weights)
    plan = plan_of(run)
    hessians = collect_hessians(model, text.calibration())
    chosen, (note,) = target_weights(model, run, plan, hessians, text.held_out())
    assert all(torch.equal(w, run.weights[n]) for n, w in model.state_dict().items()), "the model is left as it was"
    losses = {}
    for share in (0.0, 0.5, 1.0):
        moved = {n: w + share * (round_to_grid(w, bits_of(n, qat), qat) - w) for n, w in noisy.items()}
        stored = quantize_state_dict(run.weights | moved, plan, hessians)
        model.load_state_dict({n: torch.from_numpy(held_values(t)).view_as(run.weights[n]) for n, t in stored.items()})
        ids = text.held_out()
        logits = model(ids[:, :-1])
        losses[share] = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    assert len(set(losses.values())) == 3
    best = min(losses, key=lambda share: losses[share])
    assert f"moved by {best:g} of the way" in note
    for name, w in noisy.items():
        expected = w + best * (round_to_grid(w, bits_of(name, qat), qat) - w)
        assert torch.allclose(chosen[name], expected, atol=1e-6)


def test_the_head_gets_its_integers_by_gptq(runs: Path, shards: Path) -> None:
    """The table that the head is tied to leaves less error in the logits than rounding it to nearest would."""
    trained = load_run(runs / "pr634")
    model = GPT(trained.config.model).eval().requires_grad_(False)
    model.load_state_dict(trained.weights)
    text = TrainingText(shards, trained, calibration_tokens=512)
    hessians = collect_hessians(model, text.calibration())
    plan = plan_of(trained)
    nearest = replace(plan, rules=tuple(replace(rule, gptq=False) for rule in plan.rules))
    table = trained.weights["tok_emb.weight"]
    x = model.head_input(model.hidden(torch.cat(text.calibration())))
    errors = []
    for rules in (plan, nearest):
        tensor = quantize_state_dict({"tok_emb.weight": table}, rules, hessians)["tok_emb.weight"]
        assert isinstance(tensor, QuantizedTensor)
        assert tensor.bits == 8
        errors.append(float((x @ (table - torch.from_numpy(tensor.dequantize())).T).square().mean()))
    assert errors[0] < 0.9 * errors[1]


def test_a_head_of_its_own_is_calibrated_too() -> None:
    config = replace(load_recipe("tiny").model_config(), tie_embeddings=False, vocab_size=64)
    model = GPT(config).eval().requires_grad_(False)
    ids = torch.arange(48).view(1, -1)
    hessians = collect_hessians(model, [ids])
    x = model.head_input(model.hidden(ids))[0]
    assert torch.allclose(hessians["lm_head"], x.T @ x / len(x), atol=1e-5)
    assert "tok_emb" not in hessians


def test_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path, "-o", tmp_path / "a") == 2
    assert "is not a run folder" in capsys.readouterr().err


def exported(runs: Path, recipe: str, path: Path, tokenizer: Path, **options: object) -> ExportResult:
    config = replace(ExportConfig(calibration_tokens=512, tokenizer=tokenizer), **options)  # type: ignore[arg-type]
    return export_run(load_run(runs / recipe), path, config)


@pytest.mark.parametrize(("recipe", "container"), [("tiny", "evalkit"), ("pr634", "torch-xz"), ("pr634", "evalkit")])
def test_the_file_scores_as_the_dequantised_weights(
    recipe: str, container: str, runs: Path, shards: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    """Bit for bit: the model built from the file, and one from float32 weights that never were in a file."""
    result = exported(runs, recipe, tmp_path / "a", tokenizer_path, container=container)
    options = evalkit.ScoreOptions(
        artifact=str(tmp_path / "a"),
        tokenizer=str(tokenizer_path),
        tokens=str(shards / "t_val_*.bin"),
        limit_tokens=400,
        seq_len=64,
        threads=1,
        recipe=None if container == "evalkit" else str(runs / recipe / "recipe.toml"),
        settings={"model": {} if container == "evalkit" else {"num_heads": _heads(runs, recipe)}},
    )
    session = evalkit.open_session(options)
    weights = {
        name: PlainTensor(values=held_values(tensor), stored="float32", dtype="float32")
        for name, tensor in result.tensors.items()
    }
    assert session.artifact is not None
    in_memory = replace(session, artifact=replace(session.artifact, tensors=weights))
    from_file, from_memory = score_session(session), score_session(in_memory)
    assert from_file.bpb == from_memory.bpb
    assert from_file.nll.tobytes() == from_memory.nll.tobytes()
    integer = next(t for t in result.tensors.values() if isinstance(t, QuantizedTensor))
    assert integer.values.any()


def _heads(runs: Path, recipe: str) -> str:
    return str(load_run(runs / recipe).config.model.num_heads)


def test_the_same_weights_give_the_same_bytes(runs: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    for recipe, container in (("tiny", "evalkit"), ("pr634", "torch-xz")):
        digests = set()
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            file = tmp_path / name / f"{recipe}.{name}"
            result = exported(runs, recipe, file, tokenizer_path, container=container)
            assert result.file.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
            digests.add(result.file.sha256)
        assert len(digests) == 1, container


@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupted_export_leaves_nothing(
    kept: bool, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a half-written file nor a damaged older one."""
    output = tmp_path / "artifact"
    if kept:
        output.write_bytes(b"an older artifact")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        assert export(runs / "tiny", "-o", output, "--calibration-tokens", 0) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"] * kept
    if kept:
        assert output.read_bytes() == b"an older artifact"


@pytest.mark.parametrize("each", [(), ("--tensors",)])
def test_inspect_tells_where_every_byte_of_the_file_goes(
    each: tuple[str, ...], runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(runs / "pr634", "-o", tmp_path / "a", "--calibration-tokens", 0) == 0
    capsys.readouterr()
    assert run_command(["inspect", str(tmp_path / "a"), "--json", str(tmp_path / "a.json"), *each]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, text in enumerate(lines) if "bytes in file" in text)
    listed = [int(text.split("|")[-2].replace(",", "")) for text in lines[start + 2 :]]
    size = (tmp_path / "a").stat().st_size
    assert sum(listed) == size
    groups = json.loads((tmp_path / "a.json").read_text())["groups"]
    assert sorted(row["file_bytes"] for row in groups) == sorted(listed[:-1])
    largest = next(row for row in groups if row["kind"] == "int6")
    assert 0 < largest["file_bytes"] < largest["stored_bytes"]
