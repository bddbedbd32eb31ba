import tomllib
from pathlib import Path

import pytest

from evalkit.plumbing.errors import InputError
from evalkit.recipes import Recipe, load_recipe, recipe_names
from evalkit.train.config import SECTIONS, RunConfig
from evalkit.train.resolve import resolve, to_toml
from evalkit.train.scaling import scale_model

SYSTEMS = ("baseline", "pr333", "pr592", "pr344", "pr634", "pr849")
OTHERS = ("pr162", "pr287", "pr414", "pr549", "pr1218", "pr1334", "pr1394", "pr1493", "pr1477", "pr1529")


@pytest.mark.parametrize("name", [*SYSTEMS, *OTHERS, "tiny"])
def test_a_resolved_recipe_survives_toml(name: str) -> None:
    config = resolve(load_recipe(name), steps=7)
    sections = tomllib.loads(to_toml(config.to_dict()))
    assert RunConfig.from_dict(name, sections) == config
    assert resolve(Recipe(name=name, model=sections["model"], sections=sections)) == config


def test_published_settings_are_in_the_recipes() -> None:
    assert set(SYSTEMS) < set(recipe_names())
    pr634 = resolve(load_recipe("pr634"))
    assert (pr634.optimizer.layout, pr634.optimizer.small_projections) == ("banks", "adam")
    assert (pr634.train.batch_tokens, pr634.train.max_seconds, pr634.schedule.warmdown) == (
        786_432,
        586.0,
        3500,
    )
    pr344 = resolve(load_recipe("pr344"))
    assert (pr344.optimizer.matrix_lr, pr344.optimizer.adam_weight_decay) == (0.03, 0.0)
    assert resolve(load_recipe("pr333")).qat.mlp_bits == 5
    assert resolve(load_recipe("pr849")).qat.rounding == "soft"


@pytest.mark.parametrize("name", SYSTEMS[1:])
def test_as_run_recovers_the_inert_quantisation(name: str) -> None:
    meant, run = resolve(load_recipe(name)), resolve(load_recipe(name), {"train.as_run": "true"})
    assert meant.qat.enabled
    assert not run.qat.enabled
    assert run.train.table_precision == "bfloat16"
    overridden = resolve(load_recipe(name), {"train.as_run": "true", "qat.enabled": "true"})
    assert overridden.qat.enabled


def test_overrides_are_typed_and_reach_every_section() -> None:
    config = resolve(
        load_recipe("pr849"),
        {
            "train.seed": "5",
            "optimizer.matrix_lr": "0.1",
            "qat.layer_bits": "blocks.0.*=6, blocks.1.mlp.*=0",
            "model.xsa_last_n": "2",
            "schedule.stretch": "off",
            "scoring.seq_len": "1024",
        },
        steps=30,
    )
    assert (config.train.seed, config.optimizer.matrix_lr, config.model.xsa_last_n) == (5, 0.1, 2)
    assert config.qat.layer_bits == ("blocks.0.*=6", "blocks.1.mlp.*=0")
    assert config.schedule.stretch is False
    assert config.other["scoring"]["seq_len"] == "1024"
    assert (config.train.steps, config.train.max_seconds) == (30, 0.0)
    assert resolve(load_recipe("pr849"), steps=30, max_seconds=9).train.max_seconds == 9


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.sed", "1", "the settings of train are"),
        ("nothing.x", "1", "there is no section .nothing."),
        ("seed", "1", "there is no section .seed."),
        ("train.seed", "many", "whole number"),
        ("train.seed", "1.5", "whole number"),
        ("optimizer.matrix_lr", "nan", "finite number"),
        ("qat.rounding", "hard", "ste or soft"),
        ("qat.enabled", "perhaps", "true or false"),
        ("qat.layer_bits", "blocks.0", "pattern=bits"),
        ("model.depth", "3", "the settings of model are"),
        ("train.batch_tokens", "1000", "multiple of train.spans"),
        ("averaging.swa_every", "0", "averaging.swa_every above 0"),
    ],
)
def test_unusable_settings_are_named(key: str, value: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve(load_recipe("pr634"), {key: value})


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("scale", ["0.25", "64x2", "96x5", "512x11"])
def test_scaling_keeps_features(name: str, scale: str) -> None:
    full = load_recipe(name).model_config()
    small = scale_model(full, scale)
    for feature in ("bigram_buckets", "trigram_buckets", "xsa_last_n", "rope_dims", "smear_gate", "ln_scale"):
        assert bool(getattr(full, feature)) == bool(getattr(small, feature)), feature
    for same in (
        "activation",
        "leaky_slope",
        "value_residual",
        "attention_gate",
        "xsa_form",
        "rope_train_len",
    ):
        assert getattr(full, same) == getattr(small, same)
    assert bool(full.value_embed_layers) == bool(small.value_embed_layers)
    assert full.num_heads // full.num_kv_heads == small.num_heads // small.num_kv_heads
    assert small.mlp_hidden / small.model_dim == pytest.approx(full.mlp_hidden / full.model_dim, rel=0.15)
    if scale == "512x11" and full.num_layers == 11:
        assert small == full


def test_a_scale_takes_the_batch_with_it_unless_told_otherwise() -> None:
    recipe = load_recipe("pr849")
    full, small = resolve(recipe), resolve(recipe, scale="64x3")
    assert (full.train.batch_tokens, small.train.batch_tokens) == (786_432, 8 * 2048)
    assert small.train.seq_len == full.train.seq_len
    assert resolve(recipe, scale="256x6").train.batch_tokens == 7 * 8 * 2048  # 786,432 * (1/4 * 6/11) = 107,241
    assert resolve(recipe, scale="512x11").train.batch_tokens == 786_432
    assert resolve(recipe, scale="2.0").train.batch_tokens == 786_432
    one_span = resolve(recipe, {"train.spans": "1", "train.seq_len": "256"}, scale="64x3")
    assert one_span.train.batch_tokens == 13 * 256  # 3,351 tokens by the model's size
    given = resolve(recipe, {"train.batch_tokens": "32768"}, scale="64x3")
    assert given.train.batch_tokens == 32_768


@pytest.mark.parametrize("scale", ["0", "big", "50x2", "64x1", "-1", "1x1x1"])
def test_unusable_scales_are_refused(scale: str) -> None:
    with pytest.raises(InputError, match="scale"):
        scale_model(load_recipe("pr849").model_config(), scale)


def test_every_section_has_defaults() -> None:
    for section in SECTIONS.values():
        section()


def test_scaling_keeps_the_repeated_run_of_an_order() -> None:
    published = load_recipe("pr1493").model_config()
    assert scale_model(published, "128x11").layer_order == published.layer_order
    assert scale_model(published, "128x4").layer_order == (0, 1, 2, 1, 2, 1, 2, 3)
    assert scale_model(load_recipe("pr1334").model_config(), "128x5").layer_order == (0, 1, 2, 1, 2, 3, 4)
    other = load_recipe("pr1493").model_config(layer_order="0,2,1,3,4,5,6,7,8,9,10,0")
    with pytest.raises(InputError, match="cannot scale"):
        scale_model(other, "128x4")


def test_a_recipe_lies_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "pr1394"\n[model]\nnum_heads = 4\n[optimizer]\nmatrix_lr = 0.5\n')
    mine, base = resolve(load_recipe(str(tmp_path / "mine.toml"))), resolve(load_recipe("pr1394"))
    assert (mine.model.num_heads, mine.optimizer.matrix_lr) == (4, 0.5)
    assert mine.model.layer_order == base.model.layer_order
    assert mine.optimizer.scalar_lr == base.optimizer.scalar_lr
    (tmp_path / "lost.toml").write_text('base = "pr0"\n[model]\n')
    with pytest.raises(InputError, match="names the base 'pr0'"):
        load_recipe(str(tmp_path / "lost.toml"))
