import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_helpers import SMALL

from evalkit.recipes import load_recipe
from evalkit.train.config import QatConfig, RunConfig
from evalkit.train.folder import load_run
from evalkit.train.objective import Objective
from evalkit.train.parameters import pack, unpack
from evalkit.train.qat import (
    bits_of,
    crown_q_penalty,
    fake_quantise,
    grid_distance,
    kept_distance,
    pull_to_grid,
    round_to_grid,
    row_clip,
    soft_alpha,
    soft_quantise,
    soft_round,
    step_size,
    straight_through,
)
from evalkit.train.resolve import resolve
from evalkit.train.run import train_model

MLP = "blocks.0.mlp.fc.weight"


def matrix(seed: int = 0, rows: int = 6, columns: int = 40) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.2


@pytest.mark.parametrize(("bits", "top"), [(5, 15), (6, 31)])
def test_straight_through_lies_on_the_export_grid_with_an_exact_gradient(bits: int, top: int) -> None:
    w = matrix().requires_grad_()
    config = QatConfig()
    q = straight_through(w, bits, config)
    step = w.detach().abs().amax(1, keepdim=True) / top
    integers = torch.round(w.detach() / step).clamp(-top, top)
    assert torch.equal(q.detach(), integers * step)
    upstream = torch.randn(w.shape)
    q.backward(upstream)
    assert torch.equal(w.grad, upstream)


@pytest.mark.parametrize("quantile", [0.9, 0.9995, 0.999, 1.0])
def test_row_clip_is_the_quantile(quantile: float) -> None:
    w = matrix(columns=512)
    expected = torch.quantile(w.abs(), quantile, dim=1, keepdim=True)
    clip = row_clip(w, QatConfig(row_clip="quantile", quantile=quantile))
    assert torch.allclose(clip, expected, rtol=1e-5)


def test_the_clip_floor_fixes_the_step_of_small_rows() -> None:
    w = torch.stack([torch.linspace(-0.5, 0.5, 9), torch.linspace(-2.0, 2.0, 9)])
    assert step_size(w, 6, QatConfig(clip_floor=1.0)).flatten().tolist() == pytest.approx([1 / 31, 2 / 31])
    assert step_size(w, 6, QatConfig()).flatten().tolist() == pytest.approx([0.5 / 31, 2 / 31])
    zeros = torch.zeros(2, 4)
    assert not straight_through(zeros, 6, QatConfig()).any()


@settings(deadline=None, max_examples=50)
@given(st.floats(-30, 30), st.floats(0.01, 200))
def test_soft_round_stays_between_its_neighbours(y: float, alpha: float) -> None:
    value = soft_round(torch.tensor(y, dtype=torch.float64), torch.tensor(alpha, dtype=torch.float64)).item()
    assert math.floor(y) - 1e-9 <= value <= math.floor(y) + 1 + 1e-9


def test_soft_round_goes_from_the_identity_to_rounding() -> None:
    y = torch.linspace(-3.2, 3.3, 1001, dtype=torch.float64)
    y = y[(y - y.floor() - 0.5).abs() > 1e-2]
    soft = [(soft_round(y, torch.tensor(a, dtype=torch.float64)) - torch.round(y)).abs().max() for a in (4, 64, 1024)]
    assert soft[0] > soft[1] > soft[2]
    assert soft[2] < 1e-8
    assert torch.allclose(soft_round(y, torch.tensor(1e-3, dtype=torch.float64)), y, atol=1e-6)


def test_soft_quantisation_equals_rounding_in_the_limit_and_differentiates_everything() -> None:
    config = QatConfig(rounding="soft")
    w = matrix().double()
    soft = soft_quantise(w, 5, torch.tensor(1e5, dtype=torch.float64), config)
    assert torch.allclose(soft, round_to_grid(w, 5, config), atol=1e-9)
    w = matrix(1, 2, 5).double().requires_grad_()
    alpha = torch.tensor(2.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: soft_quantise(x, 5, alpha, config), (w,), atol=1e-5)


def test_alpha_anneals_over_the_qat_phase() -> None:
    assert [soft_alpha(QatConfig(), progress) for progress in (0.0, 0.5, 1.0)] == [1.0, 8.5, 16.0]


def test_widths_follow_roles_and_exceptions() -> None:
    config = QatConfig(mlp_bits=5, attention_bits=6, layer_bits=("blocks.1.*=4", "blocks.1.mlp.proj.*=0"))
    assert bits_of("blocks.0.mlp.fc.weight", config) == 5
    assert bits_of("blocks.0.attn.c_k.weight", config) == 6
    assert bits_of("blocks.1.attn.c_k.weight", config) == 4
    assert bits_of("blocks.1.mlp.proj.weight", config) == 0
    for untouched in ("bigram.proj.weight", "tok_emb.weight", "blocks.1.attn_scale"):
        assert bits_of(untouched, config) == 0
    assert bits_of("bigram.proj.weight", QatConfig(projection_bits=6)) == 6


def test_crown_q_is_the_noise_penalty() -> None:
    w = matrix()
    config = QatConfig(crown_q=0.3, mlp_bits=5)
    step = (w.abs().amax(1, keepdim=True) / 15).double()
    expected = 0.3 / 12 * (w.double().square() * step.square())
    assert crown_q_penalty({MLP: w}, config).item() == pytest.approx(expected.sum().item(), rel=1e-5)
    mean = QatConfig(crown_q=0.3, mlp_bits=5, crown_q_reduction="mean")
    assert crown_q_penalty({MLP: w}, mean).item() == pytest.approx(expected.mean().item(), rel=1e-5)
    # The step carries no gradient: d/dw = crown_q / 6 w step^2, at the largest entry too.
    w = w.requires_grad_()
    crown_q_penalty({MLP: w}, config).backward()
    assert torch.allclose(w.grad, (0.3 / 6 * w.detach().double() * step.square()).float(), rtol=1e-4, atol=1e-9)


def test_pull_shrinks_distances_in_place() -> None:
    config = QatConfig()
    w = {MLP: matrix(), "tok_emb.weight": matrix(1)}
    before, grid, table = grid_distance(w, config), round_to_grid(w[MLP], 6, config), w["tok_emb.weight"].clone()
    pull_to_grid(w, 0.5, config)
    assert grid_distance(w, config) == pytest.approx(before / 2, rel=1e-3)
    assert torch.equal(round_to_grid(w[MLP], 6, config), grid)
    assert torch.equal(w["tok_emb.weight"], table)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_distances_follow_their_course_in_a_run_of_any_length(power: float) -> None:
    config = QatConfig(grid_pull=power)
    for steps in (8, 100, 1000):
        factors = [kept_distance(step / steps, (step + 1) / steps, config) for step in range(steps)]
        for quarter in (1, 2, 3, 4):
            assert math.prod(factors[: quarter * steps // 4]) == pytest.approx(1 - (quarter / 4) ** power)


def config_for(layout: str, rounding: str, **more: str) -> RunConfig:
    keys = {
        "optimizer.layout": layout,
        "qat.rounding": rounding,
        "qat.mlp_bits": "4",
        "qat.attention_bits": "4",
        "qat.crown_q": "0",
        "qat.start_scale": "0.9",
        "averaging.export": "raw",
    }
    return resolve(load_recipe("tiny"), SMALL | keys | {k.replace("__", "."): v for k, v in more.items()}, scale="32x2")


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 64, (4, 33), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("layout", ["matrices", "banks"])
@pytest.mark.parametrize("rounding", ["ste", "soft"])
def test_the_flag_changes_loss_and_gradients_in_both_layouts(layout: str, rounding: str) -> None:
    from evalkit.model.gpt import GPT

    config = config_for(layout, rounding)
    state = {
        n: torch.randn(v.shape, generator=torch.Generator().manual_seed(3)) * 0.3
        for n, v in GPT(config.model).state_dict().items()
    }
    objective = Objective(config, torch.device("cpu"), compiled=False)
    results = []
    for quantised in (False, True):
        masters = {n: v.requires_grad_() for n, v in pack(config.model, state, banks=layout == "banks").items()}
        loss, _ = objective(masters, *batch(), quantised=quantised, alpha=torch.tensor(8.0))
        loss.backward()
        results.append((loss.item(), unpack(config.model, {n: v.grad for n, v in masters.items()})))
    assert abs(results[0][0] - results[1][0]) > 1e-4
    for name, gradient in results[0][1].items():
        if ".mlp." in name or ".attn.c_" in name:
            assert not torch.equal(gradient, results[1][1][name]), name
    # By hand: the same loss from weights that were quantised beforehand.
    by_hand = fake_quantise(state, torch.tensor(8.0), config.qat)
    loss, _ = objective(
        pack(config.model, by_hand, banks=layout == "banks"),
        *batch(),
        quantised=False,
        alpha=torch.tensor(0.0),
    )
    assert loss.item() == pytest.approx(results[1][0], abs=1e-6)


SHALLOW = {"model__num_layers": "1", "model__value_embed_layers": "0"}  # each layer takes seconds to trace
STEPS = {"train__steps": "40", "train__max_seconds": "0", "train__spans": "1"}
AVERAGES = {"averaging__swa_every": "30", "averaging__swa_source": "raw"}


def distances(data: Path, folder: Path, layout: str, rounding: str, **more: str) -> dict[str, float]:
    """Train, and return the distance to the grid of every kind of weights."""
    config = config_for(layout, rounding, **{"qat__start_scale": "0.3"} | STEPS | AVERAGES | more)
    train_model(config, data=data, tokenizer=None, out=folder)
    return {kind: grid_distance(load_run(folder, kind).weights, config.qat) for kind in ("raw", "ema", "swa")}


@pytest.fixture(scope="module")
def distances_without(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return distances(data, tmp_path_factory.mktemp("off"), "banks", "ste", qat__enabled="false")


@pytest.mark.parametrize(
    ("layout", "rounding", "mode"),
    [
        ("banks", "ste", "eager"),
        ("banks", "soft", "eager"),
        ("matrices", "ste", "eager"),
        ("matrices", "soft", "eager"),
        ("banks", "ste", "traced"),
        ("banks", "soft", "traced"),
    ],
)
def test_late_qat_leaves_weights_near_the_grid(
    layout: str,
    rounding: str,
    mode: str,
    data: Path,
    tmp_path: Path,
    distances_without: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The raw weights end on the grid, and averages of them, which hold older weights too, come near it."""
    more = {}
    if mode == "traced":  # the graphs that torch.compile takes, run by torch: inductor would take g++ a minute
        more = {"train__compile": "on", "train__warmup_steps": "0"} | SHALLOW
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    on = distances(data, tmp_path / "run", layout, rounding, **more)
    for kind, off in distances_without.items():
        assert off == pytest.approx(1 / math.sqrt(12), abs=0.015)
        assert on[kind] < 0.75 * off, kind
    assert on["raw"] < 1e-5


def test_soft_rounding_alone_moves_weights_towards_the_grid(
    data: Path, tmp_path: Path, distances_without: dict[str, float]
) -> None:
    on = distances(data, tmp_path / "run", "banks", "soft", qat__grid_pull="0", qat__start_scale="0.9")
    assert on["raw"] < 0.95 * distances_without["raw"]


def test_straight_through_lowers_the_loss_of_rounded_weights(data: Path, tmp_path: Path) -> None:
    losses = []
    for enabled in ("true", "false"):
        config = config_for(
            "banks",
            "ste",
            qat__enabled=enabled,
            qat__mlp_bits="3",
            qat__attention_bits="3",
            qat__grid_pull="0",
            **STEPS,
        )
        folder = tmp_path / enabled
        train_model(config, data=data, tokenizer=None, out=folder)
        weights = load_run(folder).weights
        rounded = {
            n: round_to_grid(w, b, config.qat) if (b := bits_of(n, config.qat)) else w for n, w in weights.items()
        }
        objective = Objective(config, torch.device("cpu"), compiled=False)
        from evalkit.train.data import load_validation

        tokens = torch.from_numpy(load_validation(sorted(data.glob("*val*")), vocab_size=64, limit=960))
        losses.append(objective.nats(rounded, tokens[:-1].view(-1, 32), tokens[1:].view(-1, 32)).mean().item())
    assert losses[0] < losses[1] - 0.01


def test_a_compiled_step_follows_the_flag_and_the_sharpness(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced is the point: forward and backward as graphs, left to torch to run, since g++ takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    from evalkit.model.gpt import GPT

    config = config_for("banks", "soft", **SHALLOW)
    state = {
        n: torch.randn(v.shape, generator=torch.Generator().manual_seed(3)) * 0.3
        for n, v in GPT(config.model).state_dict().items()
    }
    eager, compiled = (Objective(config, torch.device("cpu"), compiled=c) for c in (False, True))
    masters = pack(config.model, state, banks=True)
    losses = []
    # Off, on, off again, and on with another sharpness: no value may be baked in.
    for quantised, alpha in ((False, 1.0), (True, 8.0), (False, 8.0), (True, 2.0)):
        pair = [
            o(masters, *batch(), quantised=quantised, alpha=torch.tensor(alpha))[0].item() for o in (eager, compiled)
        ]
        assert pair[0] == pytest.approx(pair[1], abs=0.02)
        losses.append(pair[1])
    assert losses[0] == losses[2]
    assert len({round(loss, 4) for loss in losses}) == 3


def test_distance_of_even_weights() -> None:
    w = {MLP: torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (50, 400)).astype(np.float32))}
    assert grid_distance(w, QatConfig()) == pytest.approx(1 / math.sqrt(12), abs=0.01)
    assert math.isnan(grid_distance({"tok_emb.weight": w[MLP]}, QatConfig()))
