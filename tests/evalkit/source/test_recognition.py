"""A system is recognised only where no other published one can have written the artifact; nothing is guessed."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from source_scripts import plain
from test_reading import CONFIG, draw, save

from evalkit.artifact.load import load_artifact
from evalkit.artifact.recognition import (
    OpenSettings,
    candidates,
    check_recipe,
    open_settings,
    published_systems,
    recognised,
    shown,
)
from evalkit.cli.main import run_command
from evalkit.model.gpt import GPT
from evalkit.plumbing.errors import InputError
from evalkit.recipes import load_recipe
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.score import score
from evalkit.verbs.session import open_session

SYSTEMS = {system.name: system for system in published_systems()}


def full_size(name: str) -> tuple[dict, dict]:
    """Shapes and storage kinds of a system's artifact, without its numbers."""
    system = SYSTEMS[name]
    with torch.device("meta"):
        state = GPT(system.config).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    roles = {"mlp": ".mlp.", "attention": ".attn.c_", "embedding": "tok_emb"}
    kind = {
        key: next((system.kinds[r] for r, part in roles.items() if part in key and r in system.kinds), "int6")
        for key in shapes
    }
    return shapes, {key: SimpleNamespace(format=kind[key], values=np.empty(0)) for key in shapes}


@pytest.mark.parametrize("name", ["pr344", "pr849", "pr1334", "pr1477"])
def test_systems_with_tensors_of_their_own_are_recognised_at_full_size(name: str) -> None:
    assert recognised(*full_size(name)) == name


@pytest.mark.parametrize(
    "name", ["baseline", "pr162", "pr287", "pr315", "pr414", "pr549", "pr634", "pr1218", "pr1394", "pr1493"]
)
def test_systems_that_share_features_are_not(name: str) -> None:
    shapes, tensors = full_size(name)
    assert recognised(shapes, tensors) is None
    assert name in [system.name for system in candidates(shapes, tensors)]


def test_other_storage_kinds_are_another_system_s() -> None:
    shapes, tensors = full_size("pr849")
    other = {key: SimpleNamespace(format="int8", values=np.empty(0)) for key in tensors}
    assert recognised(shapes, other) is None


def test_a_small_artifact_is_refused_and_every_open_setting_suffices(tmp_path) -> None:
    save(draw(CONFIG), tmp_path / "a.ptz")
    artifact = load_artifact(tmp_path / "a.ptz")
    with pytest.raises(OpenSettings, match=r"--recipe NAME, --source .*, or --set for each of them") as refused:
        artifact.resolve()
    given = {name: shown(getattr(CONFIG, name)) for name in refused.value.names}
    given |= {name: shown(getattr(CONFIG, name)) for name in open_settings(artifact.shapes, given)}
    assert artifact.resolve(overrides=given).config == dataclasses.replace(CONFIG, skip_rows=2)
    del given["rope_base"]
    with pytest.raises(OpenSettings) as refused:
        artifact.resolve(overrides=given)
    assert refused.value.names == ("rope_base",)


def test_set_may_repeat_but_not_contradict_what_an_artifact_says_itself(tiny_artifact) -> None:
    artifact = load_artifact(tiny_artifact)
    held = artifact.resolve().config
    repeated = {name: shown(getattr(held, name)) for name in ("rope_dims", "value_embed_layers", "ln_scale")}
    assert artifact.resolve(overrides=repeated).config == held
    with pytest.raises(InputError, match=r"--set model\.rope_dims=4 contradicts the artifact, .* says 8: leave it out"):
        artifact.resolve(overrides={"rope_dims": "4"})


def test_candidates_and_what_they_differ_in_are_named() -> None:
    from evalkit.artifact.recognition import refusal

    shapes, tensors = full_size("pr287")
    told = refusal(shapes, tensors, open_settings(shapes, {}), None)
    assert "3 published systems have such tensors: pr265, pr287, pr315" in told
    assert "xsa_last_n (3: pr265, 4: pr287 pr315)" in told


def test_another_system_s_recipe_is_refused_by_name() -> None:
    shapes, _ = full_size("pr849")
    with pytest.raises(InputError, match=r"not of pr333 .*: it looks like pr849"):
        check_recipe(shapes, "pr333", load_recipe("pr333").model)


def test_only_systems_with_gated_skips_repeat_blocks() -> None:
    # What open_settings relies on.
    for system in SYSTEMS.values():
        plain = not system.config.layer_order and system.config.parallel_form == "none"
        assert plain or system.config.skip_gates, system.name


def test_a_score_and_a_check_by_one_script_are_of_one_subject(tmp_path) -> None:
    save(draw(dataclasses.replace(CONFIG, vocab_size=257)), tmp_path / "a.ptz")
    (tmp_path / "train_gpt.py").write_text(plain().replace('"VOCAB_SIZE", 64', '"VOCAB_SIZE", 257'))
    (tmp_path / "text").write_text("A few words to score.")
    options = ScoreOptions(
        artifact=str(tmp_path / "a.ptz"),
        tokenizer="bytes",
        text=str(tmp_path / "text"),
        source=str(tmp_path / "train_gpt.py"),
        threads=1,
    )
    checked = open_session(options).subject()
    assert score(options).subject() == checked
    assert checked["settings"]["model"]["xsa_last_n"] == "2"


def test_score_ends_with_code_2_and_inspect_shows_what_is_open(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    save(draw(CONFIG), tmp_path / "a.ptz")
    (tmp_path / "x").write_text("x")
    assert run_command(["score", str(tmp_path / "a.ptz"), "--text", str(tmp_path / "x"), "--tokenizer", "bytes"]) == 2
    assert "its tensors do not tell model.activation" in capsys.readouterr().err
    assert run_command(["inspect", str(tmp_path / "a.ptz")]) == 0
    assert "open        activation" in capsys.readouterr().out
