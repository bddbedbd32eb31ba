import pytest
import torch

from evalkit.train.averaging import WeightAverages
from evalkit.train.config import AveragingConfig


def test_ema_matches_float64_and_starts_from_the_initial_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    w = {"a": torch.randn(5, generator=generator)}
    averages = WeightAverages(w, AveragingConfig(ema_decay=0.9, export="ema"))
    expected = w["a"].double()
    for step in range(1, 30):
        w["a"] += torch.randn(5, generator=generator)
        averages.update(w, step=step, lr_scale=1.0, stretch=1.0)
        expected = 0.9 * expected + 0.1 * w["a"].double()
    assert torch.allclose(averages.available()["ema"]["a"].double(), expected, atol=1e-5)


def test_a_bfloat16_master_does_not_stall_the_ema() -> None:
    w = {"a": torch.ones(3, dtype=torch.bfloat16)}
    averages = WeightAverages(w, AveragingConfig(ema_decay=0.997, export="ema"))
    w["a"].fill_(1.5)
    for step in range(1, 2001):
        averages.update(w, step=step, lr_scale=1.0, stretch=1.0)
    mean = averages.available()["ema"]["a"]
    assert mean.dtype == torch.float32
    assert torch.allclose(mean, torch.full((3,), 1.5 - 0.5 * 0.997**2000), atol=1e-5)


@pytest.mark.parametrize("source", ["raw", "ema"])
def test_swa_is_the_mean_of_copies_below_the_threshold(source: str) -> None:
    config = AveragingConfig(ema_decay=0.5, swa_every=2, swa_start_scale=0.4, swa_source=source, export="swa")
    w = {"a": torch.zeros(2)}
    averages = WeightAverages(w, config)
    ema, samples = 0.0, []
    for step, scale in enumerate((1.0, 0.5, 0.39, 0.3, 0.2, 0.1), start=1):
        w["a"].fill_(float(step))
        averages.update(w, step=step, lr_scale=scale, stretch=1.0)
        ema = 0.5 * ema + 0.5 * step
        if scale < 0.4 and step % 2 == 0:
            samples.append(step if source == "raw" else ema)
    assert averages.swa_samples == len(samples) == 2
    assert averages.available()["swa"]["a"][0].item() == pytest.approx(sum(samples) / 2)
    assert w["a"][0].item() == 6.0
    assert averages.exported_kind() == "swa"


def test_swa_with_one_sample_falls_back_to_the_ema() -> None:
    config = AveragingConfig(ema_decay=0.5, swa_every=1, swa_start_scale=0.5, export="swa")
    w = {"a": torch.zeros(2)}
    averages = WeightAverages(w, config)
    averages.update(w, step=1, lr_scale=0.1, stretch=1.0)
    assert averages.exported_kind() == "ema"
    assert WeightAverages(w, AveragingConfig(swa_every=1, export="swa")).exported_kind() == "raw"


def test_horizons_stretch() -> None:
    config = AveragingConfig(ema_decay=0.9, swa_every=10, swa_start_scale=1.1, export="swa")
    w = {"a": torch.zeros(1)}
    averages = WeightAverages(w, config)
    w["a"].fill_(1.0)
    for step in range(1, 11):
        averages.update(w, step=step, lr_scale=1.0, stretch=0.2)
    assert averages.swa_samples == 5
    # Ten steps of a run a fifth as long as the reference weigh as much as fifty of the reference.
    assert averages.available()["ema"]["a"].item() == pytest.approx(1 - 0.9**50, abs=1e-5)
