"""Schedules of the learning rate, Muon's momentum and every horizon, by steps or by the clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from evalkit.train.config import OptimizerConfig, RunConfig, ScheduleConfig

_IGNORED_STEPS = 3
_MIN_SAMPLES = 5
_WINDOW = 101
_SHORTEST_AGE = 9.0  # steps: a momentum of 0.9


class StepTimer:
    """Seconds a step takes: the median of recent steps, the first ones left out.

    A mean lets one slow step (compilation, a cold cache) lower the learning rate early, or even start late
    QAT at step 1; the median of a window does not move.
    """

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=_WINDOW)
        self._seen = 0

    def add(self, seconds: float) -> None:
        """Take in the duration of one step."""
        self._seen += 1
        if self._seen > _IGNORED_STEPS:
            self._samples.append(seconds)

    def seconds_per_step(self) -> float | None:
        """Return the estimate, or None while there are too few samples."""
        return median(self._samples) if len(self._samples) >= _MIN_SAMPLES else None

    def state_dict(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return {"samples": list(self._samples), "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`'s output."""
        self._samples = deque(state["samples"], maxlen=_WINDOW)
        self._seen = int(state["seen"])


class Clock:
    """Where a run is between its start and its budgets."""

    def __init__(self, config: RunConfig) -> None:
        self.steps = config.train.steps
        self.max_seconds = config.train.max_seconds
        self.schedule = config.schedule
        self.seconds = 0.0
        self.timer = StepTimer()
        self._extrapolated = 0.0

    def advance(self, seconds: float, steps: int) -> None:
        """Take in the measured duration of the last ``steps`` steps, in place of what was extrapolated."""
        self.seconds += seconds - self._extrapolated
        self._extrapolated = 0.0
        for _ in range(steps):
            self.timer.add(seconds / steps)

    def extrapolate(self, steps: int) -> None:
        """Advance by the estimated pace, which all ranks share, until the next measurement."""
        ahead = steps * (self.timer.seconds_per_step() or 0.0)
        self.seconds += ahead
        self._extrapolated += ahead

    def remaining_steps(self, step: int) -> float | None:
        """Return the steps left at step ``step`` (0-based), by the tighter budget; None if not known yet."""
        by_count = float(max(self.steps - step, 0))
        if not self.max_seconds:
            return by_count
        pace = self.timer.seconds_per_step()
        if pace is None:
            return None
        return min(by_count, max(self.max_seconds - self.seconds, 0.0) / max(pace, 1e-9))

    def total_steps(self, step: int) -> float | None:
        """Return the length of the run in steps, estimated under a clock budget; None if not known yet."""
        remaining = self.remaining_steps(step)
        return None if remaining is None else max(1.0, step + remaining)

    def fraction(self, step: int) -> float:
        """Return the part of the run that is over, by the tighter budget."""
        by_count = step / self.steps
        return max(by_count, self.seconds / self.max_seconds) if self.max_seconds else by_count

    def ruled_by(self, step: int) -> str:
        """Return which budget :meth:`fraction` refers to: ``clock`` or ``steps``."""
        return "clock" if self.fraction(step) > step / self.steps else "steps"

    def stretch(self, step: int) -> float:
        """Return the factor on every horizon."""
        total = self.total_steps(step)
        return total / self.schedule.reference_steps if self.schedule.stretch and total is not None else 1.0

    def lr_scale(self, step: int) -> float:
        """Return the factor on learning rates at step ``step`` (0-based): 1, then down to 0."""
        fraction = self.schedule.warmdown_fraction
        if fraction:
            return warmdown_scale(self.schedule, 1.0 - self.fraction(step), fraction)
        remaining = self.remaining_steps(step)
        if remaining is None:
            return 1.0
        return warmdown_scale(self.schedule, remaining, self.schedule.warmdown * self.stretch(step))

    def over(self, step: int) -> bool:
        """Return whether a run that has done ``step`` steps has used a budget up."""
        return step >= self.steps or (self.max_seconds > 0 and self.seconds >= self.max_seconds)


def warmdown_scale(schedule: ScheduleConfig, remaining: float, warmdown: float) -> float:
    """Return the learning-rate scale with ``remaining`` left and a warmdown of ``warmdown``, of one unit."""
    if warmdown <= 0 or remaining >= warmdown:
        return 1.0
    fraction = max(remaining, 0.0) / warmdown
    return fraction if schedule.shape == "linear" else 0.5 * (1 - math.cos(math.pi * fraction))


def muon_momentum(config: OptimizerConfig, step: int, stretch: float) -> float:
    """Return Muon's momentum at step ``step`` (0-based): a line from its start to its final value."""
    warmup = config.momentum_warmup * stretch
    f = min(step / warmup, 1.0) if warmup > 0 else 1.0
    momentum = (1 - f) * config.momentum_start + f * config.momentum
    if not config.stretch_momentum:
        return momentum
    age = momentum / (1 - momentum)
    stretched = max(age * stretch, min(age, _SHORTEST_AGE))
    return stretched / (1 + stretched)
