import copy

import pytest
import torch
from torch import nn

from evalkit.plumbing.adamw import AdamGroup, AdamW
from evalkit.plumbing.ranks import Ranks
from evalkit.recipes import load_recipe
from evalkit.train.config import OptimizerConfig
from evalkit.train.init import initial_weights
from evalkit.train.objective import Objective
from evalkit.train.optimizers.muon import Muon, muon_direction
from evalkit.train.optimizers.newton_schulz import POLAR_EXPRESS, aspect_scale, newton_schulz
from evalkit.train.optimizers.optimizer import Optimizer, owner_of
from evalkit.train.parameters import BANKS, pack, unpack
from evalkit.train.resolve import resolve

SINGULAR_VALUE_BAND = (0.68, 1.21)
"""Where five exact iterations put singular values. The upper end holds for all of them, the lower one for those that
were at least 0.005 after normalisation: smaller ones are still on their way up. bfloat16 adds a few hundredths."""
ALONE = Ranks()


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96), (5, 48, 64)])
def test_newton_schulz_puts_singular_values_into_the_band(shape: tuple[int, ...]) -> None:
    g = gaussian(*shape)
    low, high = SINGULAR_VALUE_BAND
    exact = torch.linalg.svdvals(newton_schulz(g.double(), 5, torch.float64))
    normalised = torch.linalg.svdvals(g.double()) / g.double().norm(dim=(-2, -1), keepdim=True).squeeze(-1)
    assert (exact[normalised > 0.01] > low).all()
    assert (exact < high).all()
    rounded = torch.linalg.svdvals(newton_schulz(g, 5).double())
    assert (rounded[normalised > 0.02] > low - 0.05).all()
    assert (rounded < high + 0.05).all()


def test_the_band_is_that_of_the_polynomial() -> None:
    from evalkit.train.optimizers.newton_schulz import COEFFICIENTS

    a, b, c = COEFFICIENTS
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    large = x >= 0.005
    for _ in range(5):
        x = a * x + b * x**3 + c * x**5
    low, high = SINGULAR_VALUE_BAND
    assert low <= x[large].min() <= low + 0.01
    assert high - 0.01 <= x.max() <= high


def test_newton_schulz_keeps_singular_vectors_zeros_and_batches() -> None:
    g = gaussian(3, 24, 40).double()
    result = newton_schulz(g, 5, torch.float64)
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    inner = u.mT @ result @ vt.mT
    assert (inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-8
    assert torch.allclose(newton_schulz(g[1], 5, torch.float64), result[1])
    assert not newton_schulz(torch.zeros(4, 6), 5).any()


def test_polar_express_is_its_own_recursion() -> None:
    # Each polynomial is the best odd one of degree 5 for the interval that the one before leaves: it strays from 1 by
    # as much at the lower end as anywhere in it.
    low, high = 1e-3, 1.0
    for a, b, c in POLAR_EXPRESS:
        x = torch.linspace(low, high, 100_001, dtype=torch.float64)
        y = a * x + b * x**3 + c * x**5
        assert y.min().item() == pytest.approx(y[0].item(), abs=1e-12)
        assert y.max().item() == pytest.approx(2 - y[0].item(), abs=1e-12)
        assert y.max().item() == pytest.approx(y[-1].item(), abs=1e-12)
        low, high = y[0].item(), 2 - y[0].item()


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (5, 48, 64)])
def test_polar_express_comes_nearer_to_one(shape: tuple[int, ...]) -> None:
    g = gaussian(*shape)
    values = torch.linalg.svdvals(newton_schulz(g.double(), 5, torch.float64, "polar_express"))
    normalised = torch.linalg.svdvals(g.double()) / g.double().norm(dim=(-2, -1), keepdim=True).squeeze(-1)
    assert ((values - 1).abs()[normalised > 2e-3] < 0.13).all()
    more = torch.linalg.svdvals(newton_schulz(g.double(), 9, torch.float64, "polar_express"))
    assert ((more - 1).abs()[normalised > 2e-3] < 1e-4).all()


@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
def test_row_normalised_muon_agrees_with_the_formula(shape: tuple[int, int]) -> None:
    w = nn.Parameter(gaussian(*shape))
    muon = Muon({"w": w}, OptimizerConfig(row_normalise=True, matrix_weight_decay=0.1, ns_precision="float32"), ALONE)
    expected, buffer = gaussian(*shape).double(), torch.zeros(*shape, dtype=torch.float64)
    for step, momentum in enumerate((0.5, 0.9, 0.95)):
        w.grad = gaussian(*shape, seed=step + 10) * torch.logspace(-3, 3, shape[0])[:, None]
        w.grad[3] = 0
        muon.step(lr=0.02, momentum=momentum)
        buffer = momentum * buffer + w.grad.double()
        update = w.grad.double() + momentum * buffer
        update = update / update.norm(dim=1, keepdim=True).clamp_min(1e-7)
        x = update / update.norm()
        x = x.mT if shape[0] > shape[1] else x
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        x = x.mT if shape[0] > shape[1] else x
        expected = (1 - 0.02 * 0.1) * expected - 0.02 * max(1.0, shape[0] / shape[1]) ** 0.5 * x
    assert (w.double() - expected).abs().max() < 1e-5
    assert muon.state_dict()["w"][3].abs().max() == 0


def test_rows_get_length_one() -> None:
    config = OptimizerConfig(row_normalise=True, nesterov=False, ns_precision="float32")
    g = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    seen = []

    def spy(update: torch.Tensor, *arguments: object) -> torch.Tensor:
        seen.append(update.clone())
        return update

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evalkit.train.optimizers.muon.newton_schulz", spy)
        muon_direction(g[None], torch.zeros(1, 2, 2), momentum=0.9, config=config)
    assert torch.allclose(seen[0][0], torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (32, 32)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_agrees_with_torch_at_constant_momentum(shape: tuple[int, int], nesterov: bool) -> None:
    mine, theirs = nn.Parameter(gaussian(*shape)), nn.Parameter(gaussian(*shape))
    muon = Muon(
        {"w": mine}, OptimizerConfig(nesterov=nesterov, matrix_weight_decay=0.04, ns_precision="bfloat16"), ALONE
    )
    oracle = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.04, momentum=0.95, nesterov=nesterov, adjust_lr_fn="original"
    )
    for step in range(12):
        mine.grad = gaussian(*shape, seed=step + 10)
        theirs.grad = mine.grad.clone()
        muon.step(lr=0.02, momentum=0.95)
        oracle.step()
    moved = (mine.detach() - gaussian(*shape)).norm()
    # Both round to bfloat16 inside Newton-Schulz, from inputs that differ by a factor.
    assert (mine - theirs).norm() < 0.02 * moved


def test_momentum_is_a_plain_sum() -> None:
    w, first, second = nn.Parameter(torch.zeros(8, 8)), gaussian(8, 8, seed=1), gaussian(8, 8, seed=2)
    muon = Muon({"w": w}, OptimizerConfig(matrix_weight_decay=0.0, ns_precision="bfloat16"), ALONE)
    w.grad = first
    muon.step(lr=0.1, momentum=0.5)
    w.grad = second
    muon.step(lr=0.1, momentum=0.9)
    assert torch.allclose(muon.state_dict()["w"], 0.9 * first + second)
    expected = (
        -0.1 * (newton_schulz(first + 0.5 * first, 5) + newton_schulz(second + 0.9 * (0.9 * first + second), 5)).float()
    )
    assert torch.allclose(w, expected, atol=2e-3)


def test_aspect_scale() -> None:
    assert [aspect_scale(1408, 512), aspect_scale(512, 128), aspect_scale(256, 512)] == pytest.approx(
        [1.658, 2.0, 1.0], abs=1e-3
    )


def test_who_owns_what() -> None:
    plain, parallel = resolve(load_recipe("pr849")).optimizer, resolve(load_recipe("pr634")).optimizer
    assert owner_of("blocks.0.attn.c_q.weight", plain) == "muon"
    assert owner_of("bigram.proj.weight", plain) == "muon"
    assert owner_of("bigram.proj.weight", parallel) == "projection"
    for name in ("tok_emb.weight", "bigram.embed.weight", "ve_shared.embed.weight"):
        assert owner_of(name, plain) == "table"
    for name in (
        "blocks.0.resid_mix",
        "skip_weights",
        "blocks.0.attn.attn_gate.weight",
        "bigram.scale",
        "smear.gate",
    ):
        assert owner_of(name, plain) == "vector"
    assert all(owner_of(name, parallel) == "bank" for name in BANKS)


def trained(layout: str, steps: int = 4, **keys: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train a small model on random tokens, and return its weights and the gradient norms."""
    overrides = {
        "optimizer.layout": layout,
        "model.vocab_size": "64",
        "qat.enabled": "false",
        "train.precision": "float32",
        "optimizer.ns_precision": "bfloat16",
    }
    config = resolve(load_recipe("tiny"), overrides | {k.replace("__", "."): v for k, v in keys.items()}, scale="32x3")
    state = initial_weights(config.model, config.init, seed=0)
    packed = pack(config.model, state, banks=layout == "banks")
    masters = {name: nn.Parameter(value) for name, value in packed.items()}
    optimizer, objective = (
        Optimizer(masters, config.optimizer, ALONE),
        Objective(config, ALONE.device, compiled=False),
    )
    norms = []
    for step in range(steps):
        ids = torch.randint(0, 64, (4, 33), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        objective(masters, ids[:, :-1], ids[:, 1:], quantised=False, alpha=torch.tensor(1.0))[0].backward()
        norms.append(float(optimizer.step(lr_scale=1.0, momentum=0.9)))
    return {n: v.detach() for n, v in unpack(config.model, masters).items()}, norms


def test_banks_take_the_steps_of_single_matrices() -> None:
    banks, bank_norms = trained("banks")
    single, norms = trained("matrices")
    assert set(banks) == set(single)
    assert bank_norms == pytest.approx(norms, rel=1e-2)
    for name, value in single.items():
        assert torch.allclose(banks[name], value, atol=5e-3), name


def test_the_gradient_is_clipped_as_a_whole() -> None:
    _, norms = trained("matrices", steps=1, optimizer__clip_norm="0")
    free, _ = trained("matrices", steps=2, optimizer__clip_norm="0")
    loose, _ = trained("matrices", steps=2, optimizer__clip_norm=str(norms[0] * 1000))
    tight, _ = trained("matrices", steps=2, optimizer__clip_norm=str(norms[0] / 10), optimizer__adam_eps="1e-3")
    assert all(torch.equal(free[name], loose[name]) for name in free)
    assert any(not torch.equal(free[name], tight[name]) for name in free)


def test_vectors_are_decayed_only_on_request() -> None:
    config = OptimizerConfig(adam_weight_decay=0.5, scalar_lr=0.1)
    for decays in (False, True):
        gain, table = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, 4))
        chosen = OptimizerConfig(**{**vars(config), "decay_vectors": decays})
        optimizer = Optimizer({"blocks.0.attn_scale": gain, "tok_emb.weight": table}, chosen, ALONE)
        optimizer.step(lr_scale=1.0, momentum=0.9)
        assert gain[0].item() == pytest.approx(0.95 if decays else 1.0)
        assert OptimizerConfig(decay_vectors=decays, vector_weight_decay=0.2).vector_decay == (0.2 if decays else 0.0)
        assert table[0, 0].item() == pytest.approx(1 - 0.035 * 0.5)


def test_adam_takes_torchs_own_steps_and_its_state() -> None:
    """Bit for bit: two groups, changing rates, a parameter without a gradient, and a hand-over in the middle."""
    rng = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), (), (2, 2)]
    start = [torch.randn(shape, generator=rng) for shape in shapes]
    ours, oracle, later = ([nn.Parameter(value.clone()) for value in start] for _ in range(3))
    groups = [{"params": oracle[:2], "lr": 0.02, "weight_decay": 0.1}, {"params": oracle[2:], "lr": 0.3}]
    torchs = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.0)

    def adam(parameters: list[nn.Parameter]) -> AdamW:
        first = AdamGroup(parameters=parameters[:2], lr=0.02, weight_decay=0.1)
        return AdamW([first, AdamGroup(parameters=parameters[2:], lr=0.3)], betas=(0.8, 0.95), eps=1e-6)

    mine, resumed = adam(ours), adam(later)
    for step in range(6):
        scale = 1.0 - step / 7
        for own, other in zip(ours[:3], oracle[:3], strict=True):
            own.grad = torch.randn(own.shape, generator=rng)
            other.grad = own.grad.clone()
        for group, lr in zip(torchs.param_groups, (0.02, 0.3), strict=True):
            group["lr"] = lr * scale
        mine.step(lr_scale=scale)
        torchs.step()
        assert all(torch.equal(own, other) for own, other in zip(ours, oracle, strict=True))
        if step == 2:  # an older checkpoint holds torch's state
            for own, other in zip(later, oracle, strict=True):
                own.data.copy_(other)
            resumed.load_state_dict(copy.deepcopy(torchs.state_dict()))
        elif step > 2:
            for own, other in zip(later[:3], ours[:3], strict=True):
                own.grad = other.grad
            resumed.step(lr_scale=scale)
    assert all(torch.equal(own, other) for own, other in zip(later, ours, strict=True))
    for i, values in torchs.state_dict()["state"].items():
        assert all(torch.equal(values[name], mine.state_dict()["state"][i][name]) for name in values)
    resumed.load_state_dict({"state": {}, "param_groups": []})
    assert not any(value.any() for values in resumed.state_dict()["state"].values() for value in values.values())
