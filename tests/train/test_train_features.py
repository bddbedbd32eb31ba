"""Every feature of every recipe acts: switching it off changes the loss or the trained weights."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import SMALL, VOCAB

from evalkit.model.gpt import GPT
from evalkit.plumbing.ranks import Ranks
from evalkit.recipes import load_recipe
from evalkit.train.config import RunConfig
from evalkit.train.data import TrainingTokens, find_shards
from evalkit.train.folder import TrainingFolder
from evalkit.train.init import initial_weights
from evalkit.train.loop import Trainer
from evalkit.train.objective import Objective
from evalkit.train.parameters import unpack
from evalkit.train.resolve import resolve

CPU = torch.device("cpu")
OFF: dict[str, Any] = {
    "activation": "relu2",
    "rope_base": 12345.0,
    "rope_dims": 0,
    "logit_softcap": 0.0,
    "xsa_last_n": 0,
    "ln_scale": False,
    "unet_skips": False,
    "smear_gate": False,
    "bigram_buckets": 0,
    "trigram_buckets": 0,
    "value_embed_layers": (),
    "value_residual": "none",
    "attention_gate": "none",
    "layer_order": (),
    "skip_gates": False,
    "parallel_form": "none",
}
TRAINING_OFF: dict[str, Any] = {
    "optimizer.nesterov": False,
    "optimizer.clip_norm": 0.0,
    "optimizer.matrix_weight_decay": 0.0,
    "optimizer.adam_weight_decay": 0.0,
    "optimizer.momentum_warmup": 0,
    "schedule.warmdown": 0,
    "init.linear": "uniform",
    "init.embedding": "normal",
    "init.residual_mix": "identity",
    "init.projection_scaling": False,
    "averaging.export": "raw",
    "averaging.swa_every": 0,
    "qat.enabled": False,
    "qat.clip_floor": 0.0,
    "qat.rounding": "ste",
    "qat.row_clip": "amax",
    "qat.crown_q": 0.0,
    "qat.grid_pull": 0.0,
}
LATER = ("pr1218", "pr1334", "pr1394", "pr1493", "pr1477", "pr1529")
RECIPES = ("baseline", "pr333", "pr592", "pr344", "pr634", "pr849")


def model_features() -> list[tuple[str, str]]:
    found = []
    for recipe in (*RECIPES, *LATER):
        config = load_recipe(recipe).model_config()
        found += [(recipe, name) for name, off in OFF.items() if getattr(config, name) != off]
        if config.xsa_form == "mean":
            found.append((recipe, "xsa_form"))
    return found


def training_features() -> list[tuple[str, str]]:
    found = []
    for recipe in RECIPES:
        config = resolve(load_recipe(recipe)).to_dict()
        for name, off in TRAINING_OFF.items():
            section, _, key = name.partition(".")
            inert = section == "averaging" and config["averaging"]["export"] == "raw"
            inert |= section == "qat" and not config["qat"]["enabled"]
            if config[section][key] != off and not inert:
                found.append((recipe, name))
    return found


def noise(name: str, like: torch.Tensor) -> torch.Tensor:
    """Values that depend on the name alone, large enough that zero-initialised layers take part."""
    seed = sum((i + 1) * ord(c) for i, c in enumerate(name))
    return 0.3 * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("recipe", "feature"), model_features())
def test_a_feature_of_the_model_changes_the_loss(recipe: str, feature: str) -> None:
    keys = SMALL
    config = resolve(load_recipe(recipe), keys, scale="64x4")
    off = "projection" if feature == "xsa_form" else OFF[feature]
    without = dataclasses.replace(config, model=dataclasses.replace(config.model, **{feature: off}))
    ids = torch.randint(0, VOCAB, (2, 33), generator=torch.Generator().manual_seed(1))
    losses = []
    for each in (config, without):
        masters = {name: noise(name, value) for name, value in GPT(each.model).state_dict().items()}
        with torch.no_grad():
            loss, _ = Objective(each, CPU, compiled=False)(
                masters, ids[:, :-1], ids[:, 1:], quantised=False, alpha=torch.tensor(1.0)
            )
        losses.append(loss.item())
    assert abs(losses[0] - losses[1]) > 3e-6  # six steps of float32 at these losses


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        *((recipe, {}) for recipe in LATER),
        ("pr1394", {"model.attention_gate": "window", "model.attention_gate_width": "64"}),
        ("pr1394", {"model.attention_gate": "window_doubled", "model.attention_gate_width": "12"}),
        ("pr1394", {"model.smear_width": "12", "model.smear_reset_token": "1"}),
    ],
)
def test_the_gradient_reaches_every_parameter(recipe: str, more: dict[str, str]) -> None:
    config = resolve(load_recipe(recipe), SMALL | more, scale="64x4")
    weights = {name: noise(name, value).requires_grad_() for name, value in GPT(config.model).state_dict().items()}
    ids = torch.randint(0, VOCAB, (2, 33), generator=torch.Generator().manual_seed(1))
    loss, _ = Objective(config, CPU, compiled=False)(
        weights, ids[:, :-1], ids[:, 1:], quantised=False, alpha=torch.tensor(1.0)
    )
    loss.backward()
    start = config.model.parallel_start
    for name, weight in weights.items():
        assert weight.grad is not None, name
        reached = weight.grad
        if name.startswith("skip_") and config.model.parallel_form == "lanes_dead_skips":
            reached = reached[:1]  # the skips behind the split have no effect
        if name.startswith("parallel_"):
            assert not reached[:start].any()
            reached = reached[start:]
        assert (
            reached.flatten(1).any(1).all() if reached.ndim > 1 and name.startswith(("skip", "par")) else reached.any()
        )


@pytest.mark.parametrize("recipe", LATER)
def test_a_later_recipe_trains(recipe: str, data: Path, tmp_path: Path) -> None:
    config = resolve(
        load_recipe(recipe), SMALL | {"train.spans": "1", "train.batch_tokens": "64"}, scale="32x4", steps=6
    )
    before = initial_weights(config.model, config.init, seed=config.train.seed)
    after = exported(config, data, tmp_path)
    moved = ["skip_gates", "skip_weights", "lane_merge", "parallel_resid_lambdas", "parallel_post_lambdas"]
    masters = unpack(config.model, after)
    assert all(not torch.equal(before[name], masters[name]) for name in moved if name in before)
    assert before["blocks.0.attn.q_gain"][0] == config.init.q_gain


def exported(config: RunConfig, data: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Train a few steps and return the weights that the recipe exports."""
    stream = TrainingTokens(find_shards(data, config.data)[0], vocab_size=VOCAB)
    ranks = Ranks()
    trainer = Trainer(config, stream=stream, validator=None, ranks=ranks, folder=TrainingFolder(path=folder))
    while not trainer.clock.over(trainer.step):
        trainer.train_step()
    kind = trainer.averages.exported_kind()
    return trainer.averages.available().get(kind) or {n: v.detach() for n, v in trainer.masters.items()}


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Weights of a recipe with some settings, each trained once."""
    known: dict[Any, dict[str, torch.Tensor]] = {}

    def run(recipe: str, **more: Any) -> dict[str, torch.Tensor]:
        key = (recipe, *more.items())
        if key not in known:
            meant = resolve(load_recipe(recipe))
            keys = SMALL | {"train.spans": "1", "train.batch_tokens": "64"}
            # A dozen steps are too few for the recipes' late phases, so these start earlier.
            if meant.averaging.swa_every:
                keys |= {"averaging.swa_every": "1", "averaging.swa_start_scale": "0.9"}
            if meant.qat.enabled and meant.qat.start_scale:
                keys["qat.start_scale"] = "0.8"
            config = resolve(load_recipe(recipe), keys | more, scale="32x2", steps=12)
            known[key] = exported(config, data, tmp_path_factory.mktemp("run"))
        return known[key]

    return run


@pytest.mark.parametrize(("recipe", "feature"), training_features())
def test_a_feature_of_the_training_changes_the_weights(recipe: str, feature: str, trained: Any) -> None:
    # The published floor of the row clip binds for all small rows, and then their clip does not matter.
    more = {"qat.clip_floor": 0.0} if feature == "qat.row_clip" else {}
    with_it = trained(recipe, **more)
    if feature == "averaging.swa_every":
        more = {"averaging.export": "raw"}
    without = trained(recipe, **more, **{feature: TRAINING_OFF[feature]})
    assert any(not torch.equal(with_it[name], without[name]) for name in with_it)


def test_as_run_switches_change_the_weights(trained: Any) -> None:
    meant = trained("pr634")
    for feature, value in {
        "optimizer.decay_vectors": True,
        "train.table_precision": "bfloat16",
        "optimizer.momentum_precision": "bfloat16",
        "optimizer.small_projections": "muon",
    }.items():
        other = trained("pr634", **{feature: value})
        assert any(not torch.equal(meant[name].float(), other[name].float()) for name in meant), feature


def test_the_layouts_agree(trained: Any) -> None:
    banks, single = trained("pr634"), trained("pr634", **{"optimizer.layout": "matrices"})
    shared = set(banks) & set(single)
    assert {"tok_emb.weight", "skip_weights"} <= shared
    for name in shared:
        assert torch.allclose(banks[name], single[name], atol=1e-5), name
