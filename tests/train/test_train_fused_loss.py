import pytest
import torch
import torch.nn.functional as F

from evalkit.model.gpt import GPT
from evalkit.recipes import load_recipe
from evalkit.train.fused_loss import softcapped_cross_entropy
from evalkit.train.init import initial_weights
from evalkit.train.objective import Objective
from evalkit.train.resolve import resolve


@pytest.mark.parametrize("cap", [30.0, 2.0, 0.0])
@pytest.mark.parametrize(("rows", "chunk"), [(64, 64), (65, 16), (7, 100), (1, 1)])
def test_fused_loss_and_gradients_agree_with_the_plain_ones(cap: float, rows: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 24, generator=generator).requires_grad_()
    weight = (0.7 * torch.randn(50, 24, generator=generator)).requires_grad_()
    targets = torch.randint(0, 50, (rows,), generator=generator)
    logits = x.double() @ weight.double().mT
    plain = F.cross_entropy(cap * torch.tanh(logits / cap) if cap else logits, targets)
    fused = softcapped_cross_entropy(x, weight, targets, cap, chunk)
    assert abs(fused.item() - plain.item()) < 1e-6 * plain.item()
    # The loss is one term of what is differentiated, so the incoming gradient is not 1.
    expected = torch.autograd.grad(3.0 * plain, (x, weight))
    found = torch.autograd.grad(3.0 * fused, (x, weight))
    for ours, reference in zip(found, expected, strict=True):
        assert (ours - reference).abs().max() < 1e-6 * max(1.0, reference.abs().max().item())


def test_extreme_logits_stay_finite() -> None:
    x, weight = torch.full((2, 4), 1e4, requires_grad=True), torch.eye(4)[:3] * 1e4
    for cap in (30.0, 0.0):
        loss = softcapped_cross_entropy(x, weight, torch.tensor([0, 2]), cap)
        [gradient] = torch.autograd.grad(loss, x)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_no_step_holds_the_logits_of_a_batch() -> None:
    rows, vocabulary = 600, 4000
    x, weight = torch.randn(rows, 8, requires_grad=True), torch.randn(vocabulary, 8, requires_grad=True)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            largest.extend(t.numel() for t in (result if isinstance(result, tuple) else (result,))
                           if isinstance(t, torch.Tensor))  # fmt: skip
            return result

    with Watch():
        softcapped_cross_entropy(x, weight, torch.zeros(rows, dtype=torch.long), 30.0).backward()
    assert max(largest) < rows * vocabulary / 2


@pytest.mark.parametrize("tied", [True, False])
def test_the_objective_is_the_models_own_cross_entropy(tied: bool) -> None:
    overrides = {"model.vocab_size": 64, "model.tie_embeddings": tied, "train.precision": "float32"}
    config = resolve(load_recipe("tiny"), overrides, scale="32x3")
    weights = initial_weights(config.model, config.init, seed=0)
    weights = {name: value + 0.1 * torch.randn_like(value) for name, value in weights.items()}
    model = GPT(config.model)
    model.load_state_dict(weights)
    ids = torch.randint(0, 64, (3, 21))
    direct = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    masters = {name: value.clone().requires_grad_() for name, value in weights.items()}
    objective = Objective(config, torch.device("cpu"), compiled=False)
    nats, _ = objective(masters, ids[:, :-1], ids[:, 1:], quantised=False, alpha=torch.tensor(1.0))
    assert nats.item() == pytest.approx(direct.item(), abs=1e-6)
    each = objective.nats(masters, ids[:, :-1], ids[:, 1:])
    assert each.shape == (3, 20)
    assert each.mean().item() == pytest.approx(direct.item(), abs=1e-6)
    direct.backward()
    nats.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(masters[name].grad, parameter.grad, atol=1e-6), name  # type: ignore[arg-type]
