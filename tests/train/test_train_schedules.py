import pytest

from evalkit.recipes import load_recipe
from evalkit.train.config import OptimizerConfig, ScheduleConfig
from evalkit.train.resolve import resolve
from evalkit.train.schedules import Clock, StepTimer, muon_momentum, warmdown_scale


def test_warmdown_is_linear_to_zero() -> None:
    schedule = ScheduleConfig(warmdown=100)
    assert warmdown_scale(schedule, 100, 100) == 1.0
    assert warmdown_scale(schedule, 25, 100) == 0.25
    assert warmdown_scale(schedule, 0, 100) == 0.0
    assert warmdown_scale(schedule, 5, 0) == 1.0
    cosine = ScheduleConfig(shape="cosine")
    assert warmdown_scale(cosine, 50, 100) == pytest.approx(0.5)


def test_one_slow_step_does_not_move_the_pace() -> None:
    timer = StepTimer()
    for seconds in (60.0, 0.1, 0.1, *[0.1] * 5, 30.0, 0.1):
        timer.add(seconds)
    assert timer.seconds_per_step() == pytest.approx(0.1)


def test_wall_clock_warmdown_estimates_what_is_left() -> None:
    clock = Clock(resolve(load_recipe("pr592"), {"schedule.stretch": "false"}, max_seconds=600))
    assert clock.lr_scale(0) == 1.0
    clock.advance(20 * 0.12, 20)
    # 600 s at 0.12 s a step are 5,000 steps, of which the last 3,500 decay.
    clock.seconds = 0.12 * 1000
    assert clock.lr_scale(1000) == 1.0
    clock.seconds = 0.12 * 3250
    assert clock.lr_scale(3250) == pytest.approx(0.5)
    clock.seconds = 600.0
    assert clock.lr_scale(5000) == 0.0
    assert clock.over(5000)


def test_a_slow_first_step_does_not_start_the_decay() -> None:
    clock = Clock(resolve(load_recipe("pr634")))
    clock.advance(5.8, 1)
    for step in range(1, 60):
        clock.advance(0.0878, 1)
        assert clock.lr_scale(step) == 1.0


def test_horizons_stretch_to_the_length_of_the_run() -> None:
    config = resolve(load_recipe("pr592"), steps=300)
    clock = Clock(config)
    assert clock.stretch(0) == pytest.approx(300 / 4973)
    warmdown = 3500 * 300 / 4973
    assert clock.lr_scale(int(300 - warmdown) - 1) == 1.0
    assert clock.lr_scale(200) == pytest.approx(100 / warmdown)
    fixed = Clock(resolve(load_recipe("pr592"), {"schedule.stretch": "false"}, steps=300))
    assert fixed.lr_scale(0) == pytest.approx(300 / 3500)


def test_extrapolation_is_replaced_by_measurement() -> None:
    clock = Clock(resolve(load_recipe("pr592")))
    clock.advance(2.0, 20)
    clock.extrapolate(1)
    clock.extrapolate(1)
    assert clock.seconds == pytest.approx(2.2)
    clock.advance(0.9, 3)
    assert clock.seconds == pytest.approx(2.9)


def test_momentum_rises_along_a_line() -> None:
    config = resolve(load_recipe("pr592")).optimizer
    assert muon_momentum(config, 0, 1.0) == pytest.approx(0.92)
    assert muon_momentum(config, 750, 1.0) == pytest.approx(0.955)
    assert muon_momentum(config, 5000, 1.0) == pytest.approx(0.99)
    assert muon_momentum(config, 75, 0.1) == pytest.approx(0.955)


def test_momentum_remembers_a_part_of_the_run() -> None:
    def momentum(stretch: float, value: float, *, stretched: bool = True) -> float:
        config = OptimizerConfig(momentum=value, momentum_warmup=0, stretch_momentum=stretched)
        return muon_momentum(config, 5, stretch)

    assert momentum(1.0, 0.99) == pytest.approx(0.99)
    assert momentum(0.5, 0.99) == pytest.approx(49.5 / 50.5)
    assert momentum(0.05, 0.99) == pytest.approx(0.9)  # no shorter than 9 steps,
    assert momentum(0.05, 0.8) == pytest.approx(0.8)  # unless it is
    assert momentum(2.0, 0.0) == 0.0
    assert momentum(0.05, 0.99, stretched=False) == 0.99
