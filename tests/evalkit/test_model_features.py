"""The order of blocks, skips, lanes and gates: what each computes, and that caches see every visit of a block."""

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest
import torch

from evalkit.artifact.infer import infer_from_shapes, resolve_config
from evalkit.model.attention import AttentionContext
from evalkit.model.block import Visit
from evalkit.model.cache import KVCache
from evalkit.model.config import ModelConfig
from evalkit.model.embedding import WindowSmear
from evalkit.model.gpt import GPT, add_skip
from evalkit.model.hashing import pair_rows
from evalkit.model.rope import rotary_tables
from evalkit.plumbing.errors import InputError
from evalkit.recipes import load_recipe

SMALL: dict[str, Any] = {
    "vocab_size": 40, "num_layers": 4, "model_dim": 24, "num_heads": 2, "num_kv_heads": 1, "mlp_hidden": 32,
    "rope_dims": 8, "rope_train_len": 0, "xsa_last_n": 4, "ln_scale": True, "skip_gates": True,
    "layer_order": (0, 1, 2, 1, 2, 1, 2, 3),
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "none": {},
    "joint": {"parallel_form": "joint", "parallel_start": 2},
    "lanes": {"parallel_form": "lanes", "parallel_start": 2},
    "dead skips": {"parallel_form": "lanes_dead_skips", "parallel_start": 1},
    "routed": {"parallel_form": "routed", "parallel_start": 2},
    "routed, late skip": {"parallel_form": "routed_late_skip", "parallel_start": 3},
    "window gate": {"attention_gate": "window", "attention_gate_width": 24, "attention_gate_scale": 0.5},
    "query gate": {
        "attention_gate": "window_doubled", "attention_gate_width": 12, "attention_gate_source": "query",
    },
    "window smear": {"smear_width": 12, "smear_reset_token": 1},
    "pair table": {"pair_buckets": 50},
}  # fmt: skip
OFF: dict[str, dict[str, Any]] = {
    "joint": {"parallel_form": "none"},
    "lanes": {"parallel_form": "none"},
    "dead skips": {"parallel_form": "lanes"},
    "routed": {"parallel_form": "none"},
    "routed, late skip": {"parallel_form": "routed"},
    "window gate": {"attention_gate_scale": 1.0},
    "query gate": {"attention_gate_source": "input"},
    "window smear": {"smear_reset_token": -1},
    "pair table": {"pair_buckets": 0},
    "none": {"layer_order": ()},
}


def build(**changes: Any) -> GPT:
    model = GPT(ModelConfig(**SMALL | changes)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(sum((i + 1) * ord(c) for i, c in enumerate(name)))
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim < 2))
    return model


@pytest.fixture
def ids() -> torch.Tensor:
    ids = torch.randint(2, 40, (1, 20), generator=torch.Generator().manual_seed(4))
    ids[0, [0, 7]] = 1
    return ids


def test_an_empty_model_has_the_names_and_shapes_and_imports_no_compiler() -> None:
    code = (
        "import sys\n"
        "from evalkit.model.empty import empty_model\n"
        "from evalkit.model.gpt import GPT\n"
        "from evalkit.recipes import load_recipe, recipe_names\n"
        "models = {name: empty_model(load_recipe(name).model_config(vocab_size=64)) for name in recipe_names()}\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "assert all(p.is_meta for model in models.values() for p in model.parameters())\n"
        "shapes = lambda model: {name: value.shape for name, value in model.state_dict().items()}\n"
        "assert shapes(models['tiny']) == shapes(GPT(load_recipe('tiny').model_config(vocab_size=64)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("form", FORMS)
def test_a_cache_and_skipped_rows_do_not_change_the_logits(form: str, ids: torch.Tensor) -> None:
    model = build(**FORMS[form])
    whole = model(ids)
    torch.testing.assert_close(model(ids, first_row=13), whole[:, 13:], rtol=1e-4, atol=1e-4)
    cache = KVCache(len(model.config.passes))
    for stop in range(1, 21):
        step = model(ids[:, :stop], first_row=stop - 1, cache=cache, fed_length=20)
        torch.testing.assert_close(step, whole[:, stop - 1 : stop], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_logits_depend_on_earlier_tokens_alone(form: str, ids: torch.Tensor) -> None:
    model, changed = build(**FORMS[form]), ids.clone()
    changed[0, 9:] = (changed[0, 9:] - 2 + 5) % 38 + 2
    assert torch.equal(model(changed)[:, :9], model(ids)[:, :9])
    assert not torch.equal(model(changed)[:, 9:], model(ids)[:, 9:])


@pytest.mark.parametrize("form", FORMS)
def test_switching_a_feature_off_changes_the_logits(form: str, ids: torch.Tensor) -> None:
    with_it = build(**FORMS[form])
    changes = OFF[form] | {"skip_rows": with_it.config.num_skips}
    without = GPT(dataclasses.replace(with_it.config, **changes))
    without.load_state_dict({n: v for n, v in with_it.state_dict().items() if n in without.state_dict()})
    assert (without(ids) - with_it(ids)).abs().max() > 1e-3


def routed(model: GPT, ids: torch.Tensor, *, late: bool) -> torch.Tensor:
    """Two lanes with routing, written out from the formulas; late: the skip of the splitting pass reaches lane 0 alone.

    A and F, a block's scaled attention and MLP, are the model's own: what is new here is how they are put together.
    """
    config = model.config
    cos, sin = rotary_tables(config, ids.shape[1], ids.device)
    context = AttentionContext(cos=cos, sin=sin, fed_length=ids.shape[1])
    visit = Visit(context=context, value_embedding_scale=None, first_query=0, cache=None)
    gates, weights = torch.sigmoid(model.skip_gates), model.skip_weights
    rho, p = model.parallel_resid_lambdas, model.parallel_post_lambdas
    x0 = model.embed(ids)

    def mixed(i: int, x: torch.Tensor) -> torch.Tensor:
        m = model.blocks[i].resid_mix
        return m[0] * x + m[1] * x0

    def blended(x: torch.Tensor, row: int) -> torch.Tensor:
        return gates[row] * x + (1 - gates[row]) * weights[row] * pushed.pop() if pushed else x

    x, pushed, lanes = x0, [], None
    for number, i in enumerate(config.passes):
        block, row = model.blocks[i], number - config.encoder_passes
        if lanes is None and i >= config.parallel_start and late:
            lanes = [x, x]
        if row >= 0 and lanes is None:
            x = blended(x, row)
        elif row >= 0:
            lanes[0] = blended(lanes[0], row)
        if lanes is None and i >= config.parallel_start:
            lanes = [x, x]
        if lanes is None:
            h = mixed(i, x)
            h = h + block._attend(h, visit)
            x = h + block._feed_forward(h, visit)
        else:
            a, f = block._attend(mixed(i, lanes[0]), visit), block._feed_forward(lanes[1], visit)
            lanes = [rho[i, k] * lanes[k] + p[i, 0, k] * a + p[i, 1, k] * f for k in (0, 1)]
        if row < 0:
            pushed.append(x)
    assert lanes is not None
    return model.head((lanes[0] + lanes[1]) / 2)


@pytest.mark.parametrize("form", ["routed", "routed_late_skip"])
def test_routed_lanes_are_those_of_the_formulas(form: str, ids: torch.Tensor) -> None:
    # Block 2 splits at the second skip, block 3 takes the third one into lane 0.
    model = build(parallel_form=form, parallel_start=2, layer_order=(0, 1, 0, 1, 2, 3))
    expected = {late: routed(model, ids, late=late) for late in (False, True)}
    torch.testing.assert_close(model(ids), expected[form == "routed_late_skip"], rtol=1e-5, atol=1e-5)
    assert (expected[True] - expected[False]).abs().max() > 1e-2


def test_gated_skips_blend_and_plain_ones_add(ids: torch.Tensor) -> None:
    x, popped = torch.full((1, 1, 24), 2.0), torch.full((1, 1, 24), 4.0)
    for gate, expected in ((torch.tensor(0.0), 3.0), (torch.tensor(2.0), 2.238406), (None, 6.0)):
        assert add_skip(x, popped, torch.tensor(1.0), gate).unique().item() == pytest.approx(expected, abs=1e-6)
    assert not torch.equal(build(skip_gates=False)(ids), build()(ids))


@pytest.mark.parametrize(
    ("recipe", "encoder", "decoder"),
    [
        ("pr1218", [0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10]),
        ("pr1334", [0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9, 10]),
        ("pr1394", [0, 1, 2, 3, 4, 5, 4], [5, 4, 5, 6, 7, 8, 9, 10]),
        ("pr1493", [0, 1, 2, 3, 4, 5, 3, 4], [5, 3, 4, 5, 6, 7, 8, 9, 10]),
    ],
)
def test_the_order_of_published_recipes(recipe: str, encoder: list[int], decoder: list[int]) -> None:
    config = load_recipe(recipe).model_config()
    assert list(config.passes) == encoder + decoder
    assert config.encoder_passes == len(encoder)
    assert config.num_skips == {"pr1218": 5, "pr1334": 5, "pr1394": 7, "pr1493": 8}[recipe]


def test_the_pair_hash() -> None:
    assert pair_rows(torch.tensor([[1, 5]]), 16384).tolist() == [[1, 2044]]
    assert pair_rows(torch.tensor([[8191, 8191]]), 16384)[0, 1].item() == 14344


def test_the_window_smear_adds_the_predecessor_but_not_across_a_reset() -> None:
    smear = WindowSmear(2, reset_token=1)
    x = torch.arange(8.0).reshape(1, 4, 2)
    with torch.no_grad():
        smear.weight.copy_(torch.tensor([[0.1, -0.2]]))
        result = smear(x, torch.tensor([[5, 6, 1, 7]]), torch.tensor([0.5]))
    for row in range(4):
        gate = 0.0 if row in (0, 2) else 0.5 / (1 + math.exp(-(0.1 * x[0, row, 0] - 0.2 * x[0, row, 1])))
        expected = x[0, row] + (gate * x[0, row - 1] if row else 0.0)
        torch.testing.assert_close(result[0, row], expected)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "pair table"])
def test_shapes_reveal_what_they_can(form: str) -> None:
    config = build(**FORMS[form]).config
    shapes = {name: tuple(value.shape) for name, value in build(**FORMS[form]).state_dict().items()}
    found = infer_from_shapes(shapes)
    assert all(getattr(config, name) == value for name, value in found.items() if name != "skip_rows")
    assert found["skip_rows"] == 4
    if "gate" in form:
        assert found["attention_gate"] == config.attention_gate


def test_an_order_for_another_number_of_blocks_is_refused() -> None:
    shapes = {name: tuple(value.shape) for name, value in build().state_dict().items()}
    with pytest.raises(InputError, match=r"--set model\.layer_order"):
        resolve_config(shapes, recipe=load_recipe("pr1394"))
    changes = {"layer_order": "0,1,2,1,2,1,2,3", "rope_dims": "8"}
    given = resolve_config(shapes, recipe=load_recipe("pr1394"), overrides=changes)
    assert given.config.passes == SMALL["layer_order"]
    assert given.origins["layer_order"] == "--set"
    with pytest.raises(InputError, match=r"model\.parallel_start is 7"):
        resolve_config(shapes, recipe=load_recipe("pr1493"), overrides=changes)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("layer_order", (0, 4)),
        ("layer_order", (0, -1)),
        ("layer_order", (0,) * 300),
        ("skip_rows", -1),
        ("skip_rows", 10**9),
        ("parallel_form", "both"),
        ("smear_width", 25),
        ("smear_reset_token", 40),
        ("attention_gate_width", 25),
        ("pair_buckets", -1),
    ],
)
def test_unusable_settings_are_named(setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"model.{setting}"):
        ModelConfig(**SMALL | {setting: value})
