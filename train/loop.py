"""The training loop: steps, schedules, QAT, averages, checkpoints, signals, and the weights at the end."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_json
from evalkit.plumbing.log import LOG
from evalkit.plumbing.progress import StatusLine, format_seconds
from evalkit.plumbing.ranks import Ranks
from evalkit.train.averaging import WeightAverages
from evalkit.train.config import AverageKind, RunConfig
from evalkit.train.data import TrainingTokens
from evalkit.train.files import load_tensors, plain_weights, save_tensors
from evalkit.train.folder import TrainingFolder
from evalkit.train.init import initial_weights
from evalkit.train.metrics import MetricsLog, draw_losses
from evalkit.train.objective import Objective
from evalkit.train.optimizers.optimizer import Optimizer
from evalkit.train.parameters import DTYPES, pack, role_of, unpack
from evalkit.train.qat import grid_distance, kept_distance, pull_to_grid, soft_alpha
from evalkit.train.schedules import Clock, muon_momentum
from evalkit.train.signals import StopSignals
from evalkit.train.validation import Validation, Validator


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Attributes:
        folder: the run folder.
        status: ``done``, or ``interrupted`` by a signal; then a checkpoint is there, and no weights.
        steps: optimizer steps done.
        tokens: predicted tokens trained on.
        seconds: training clock.
        train_nats: last step's training loss, nats per token.
        exported: kind of weights in ``model.pt``.
        validation: validation loss of every kind of weights; empty without validation shards.
        grid_distance: root mean square distance of the exported weights to the QAT grid, in steps; None
            without QAT.
    """

    folder: TrainingFolder
    status: str
    steps: int
    tokens: int
    seconds: float
    train_nats: float
    exported: AverageKind
    validation: dict[AverageKind, Validation]
    grid_distance: float | None = None


@dataclass(frozen=True, kw_only=True)
class LoopStart:
    """When a run began to visit its blocks in the model's order.

    Attributes:
        step: the first such step, counted from 0.
        ruled_by: the budget that said so, ``steps`` or ``clock``.
    """

    step: int
    ruled_by: str


@contextmanager
def _tensor_float(device: torch.device) -> Iterator[None]:
    """Have a GPU multiply float32 matrices (the head's) in its shorter format, and leave the setting as it was."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Trainer:
    """One run on one rank.

    Args:
        config: the resolved recipe, in which :func:`evalkit.train.automatic.settle` has left nothing at ``auto``.
        stream: training tokens.
        validator: scores the validation stream, or None.
        ranks: the processes that train together.
        folder: where to write.
        now: returns seconds; what budgets in seconds are measured with.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        stream: TrainingTokens,
        validator: Validator | None,
        ranks: Ranks,
        folder: TrainingFolder,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        train = config.train
        if train.spans % ranks.count:
            raise InputError(f"train.spans is {train.spans}; expected a multiple of the {ranks.count} processes")
        stream.require(train.span_tokens)
        self.config, self._stream, self._validator = config, stream, validator
        self._ranks, self._folder, self._now = ranks, folder, now
        self._objective = Objective(config, ranks.device, compiled=train.compile == "on")
        packed = pack(
            config.model,
            initial_weights(config.model, config.init, seed=train.seed),
            banks=config.optimizer.layout == "banks",
        )
        self.masters = {name: nn.Parameter(self._placed(name, value)) for name, value in packed.items()}
        self.optimizer = Optimizer(self.masters, config.optimizer, ranks)
        self.averages = WeightAverages(self.masters, config.averaging)
        self.clock = Clock(config)
        self.step = 0
        self.qat_start_step: int | None = None
        self.loop_start: LoopStart | None = None
        self.train_nats = math.nan
        self._signals = StopSignals()
        self._interrupted = False
        self._progress = StatusLine(enabled=ranks.is_first)
        self._log = MetricsLog(None, resumed_step=0)
        self._saved_at_seconds = 0.0
        self._announces = False

    def _placed(self, name: str, value: Tensor) -> Tensor:
        dtype = DTYPES[self.config.train.table_precision] if role_of(name) == "table" else torch.float32
        return value.to(self._ranks.device, dtype)

    # One step.

    def forward_backward(self, step: int, *, quantised: bool, alpha: float, looped: bool = True) -> Tensor:
        """Accumulate the gradients of this rank's spans of step ``step``; return its mean loss in nats."""
        train = self.config.train
        announced_since = time.perf_counter() if self._announces else None
        self._announces = False
        mine = train.spans // self._ranks.count
        sharpness = torch.full((), alpha, device=self._ranks.device)  # by a kernel: a copy would wait for the GPU
        total = torch.zeros((), device=self._ranks.device)
        for turn in range(mine):
            ids, targets = self._stream.span(
                step,
                turn * self._ranks.count + self._ranks.rank,
                spans=train.spans,
                span_tokens=train.span_tokens,
                seq_len=train.seq_len,
            )
            with _tensor_float(self._ranks.device):
                nats, penalty = self._objective(
                    self.masters,
                    self._sent(ids),
                    self._sent(targets),
                    quantised=quantised,
                    alpha=sharpness,
                    looped=looped,
                )
                ((nats + penalty) / mine).backward()
            total += nats.detach() / mine
            if announced_since is not None and turn == 0:
                float(total)  # a GPU has done the work only then
                self._announce(time.perf_counter() - announced_since)
        return total

    def _sent(self, tokens: Tensor) -> Tensor:
        """Return tokens on the device, without waiting for them: only pinned memory can be copied meanwhile."""
        if self._ranks.device.type != "cuda":
            return tokens.to(self._ranks.device)
        return tokens.pin_memory().to(self._ranks.device, non_blocking=True)

    def _announce(self, seconds: float) -> None:
        """Say what a step is and how long the run may take, once a first micro-batch has taken ``seconds``."""
        train, ranks = self.config.train, self._ranks
        mine = train.spans // ranks.count
        each = f" on each of {ranks.count} processes" if ranks.count > 1 else ""
        left = (train.steps - self.step) * mine * seconds
        ends = f"{train.steps - self.step:,} steps about {format_seconds(left)}"
        if train.max_seconds:
            clock = train.max_seconds - self.clock.seconds
            ends = f"the run {format_seconds(min(left, clock))} by its {'steps' if left < clock else 'clock'}"
        LOG.info(
            "a step has %s tokens: %s micro-batches of %s%s; the first took %.1f s, so a step takes about %s and %s",
            f"{train.batch_tokens:,}",
            mine,
            f"{train.span_tokens:,}",
            each,
            seconds,
            f"{mine * seconds:.1f} s",
            ends,
        )

    def warm_up(self, steps: int) -> None:
        """Take ``steps`` real steps, in every way that the run will, and undo them in weights and optimizers."""
        masters = {name: value.detach().clone() for name, value in self.masters.items()}
        state = copy.deepcopy(self.optimizer.state_dict())
        for step in range(steps):
            late = step >= steps // 2
            # QAT may begin before the blocks repeat, or after; a run that has both begins most often with the latter.
            quantised = self.config.qat.enabled and late
            looped = late or not self._loops_late
            self.optimizer.zero_grad()
            self.forward_backward(step, quantised=quantised, alpha=self.config.qat.soft_alpha_start, looped=looped)
            self.optimizer.step(lr_scale=1.0, momentum=self.config.optimizer.momentum)
        self._load_masters(masters)
        self.optimizer.load_state_dict(state)
        self.optimizer.zero_grad()

    def _warm_up_steps(self) -> int:
        """Return how many steps are taken and undone at first: a CPU has graphs to compile, but no kernels to warm."""
        wanted = self.config.train.warmup_steps
        if self._ranks.device.type != "cpu":
            return wanted
        graphs = 2 if self._loops_late or self.config.qat.enabled else 1
        return min(wanted, graphs) if self._objective.compiled else 0

    def train_step(self) -> tuple[Tensor, Tensor]:
        """Take one step; return this rank's loss in nats and the gradient norm."""
        config, clock = self.config, self.clock
        scale, stretch = clock.lr_scale(self.step), clock.stretch(self.step)
        if self.qat_start_step is None and self._qat_due(scale):
            self.qat_start_step = self.step
            self._log.write(step=self.step, event="qat_start", lr_scale=scale)
        if self.loop_start is None and self.clock.fraction(self.step) >= config.schedule.loop_start:
            self.loop_start = LoopStart(step=self.step, ruled_by=clock.ruled_by(self.step))
            if self._loops_late:
                self._log.write(step=self.step, event="loop_start", ruled_by=self.loop_start.ruled_by)
        quantised = self.qat_start_step is not None
        before, after = self._qat_progress(0), self._qat_progress(1)
        alpha = soft_alpha(config.qat, before)
        self.optimizer.zero_grad()
        nats = self.forward_backward(self.step, quantised=quantised, alpha=alpha, looped=self._looped)
        norm = self.optimizer.step(lr_scale=scale, momentum=muon_momentum(config.optimizer, self.step, stretch))
        if quantised and config.qat.grid_pull:
            pull_to_grid(unpack(config.model, self._detached()), kept_distance(before, after, config.qat), config.qat)
        self.step += 1
        self.averages.update(self.masters, step=self.step, lr_scale=scale, stretch=stretch)
        return nats, norm

    @property
    def _loops_late(self) -> bool:
        """Whether the blocks' order is switched on part-way."""
        return bool(self.config.model.layer_order) and self.config.schedule.loop_start > 0

    @property
    def _looped(self) -> bool:
        return self.loop_start is not None or not self._loops_late

    def _qat_due(self, scale: float) -> bool:
        qat = self.config.qat
        by_scale = qat.start_scale > 0 and scale < qat.start_scale
        by_time = qat.start_fraction > 0 and self.clock.fraction(self.step) >= qat.start_fraction
        return qat.enabled and (by_scale or by_time)

    def _qat_progress(self, ahead: int) -> float:
        """Return how much of QAT's part of the run is over, in [0, 1], when ``ahead`` more steps are done."""
        remaining = self.clock.remaining_steps(self.step)
        if self.qat_start_step is None or remaining is None:
            return 0.0
        done = self.step - self.qat_start_step
        return (done + ahead) / (done + max(remaining, 1.0))

    # The run.

    def run(self, *, resume: bool) -> TrainResult:
        """Train until a budget is used up or a signal arrives.

        Args:
            resume: the folder has a checkpoint to go on from.

        Raises:
            InputError: the loss is not finite, or the disk is full. The last checkpoint is intact.
        """
        if resume:
            self.load_checkpoint()
        path = self._folder.metrics if self._ranks.is_first else None
        self._log = MetricsLog(path, resumed_step=self.step)
        if resume:
            self._log.write(step=self.step, event="resume")
        warmup = self._warm_up_steps()
        if warmup and not self.clock.over(self.step):
            self.warm_up(warmup)
        self._announces = self._ranks.is_first and not self.clock.over(self.step)
        with self._signals:
            self._loop()
        self._progress.close(keep=True)
        if self._interrupted:
            self.save_checkpoint()
            return self._result("interrupted", {})
        return self._finish()

    def _loop(self) -> None:
        train, clock = self.config.train, self.clock
        synced_step, since = self.step, self._now()
        single = self._ranks.count == 1 and self._ranks.device.type == "cpu"
        while not clock.over(self.step) and not self._interrupted:
            nats, norm = self.train_step()
            left = clock.remaining_steps(self.step)
            near_end = left is not None and left < 2 * train.sync_every
            due = self.step % train.sync_every == 0 or self.step >= train.steps
            if not (single or due or near_end):
                clock.extrapolate(1)
                continue
            # All ranks agree here on the loss, the clock and signals; between these points they do not talk.
            self._ranks.mean_(nats)
            self.train_nats, grad_norm = float(nats), float(norm)
            seconds, interrupted = self._ranks.largest(self._now() - since, float(self._signals.received))
            self._interrupted = interrupted > 0
            self._require_finite(self.train_nats, grad_norm)
            clock.advance(seconds, self.step - synced_step)
            self._report(grad_norm)
            if train.validate_every and self.step % train.validate_every == 0 and not clock.over(self.step):
                self._validate("raw", self.masters, looped=self._looped)
            if self._checkpoint_due():
                self.save_checkpoint()
            synced_step, since = self.step, self._now()

    def _require_finite(self, nats: float, norm: float) -> None:
        if not (math.isfinite(nats) and math.isfinite(norm)):
            saved = "the last checkpoint is intact" if self._folder.checkpoint.exists() else "nothing was saved"
            raise InputError(
                f"the training loss or its gradient is not finite at step {self.step} (loss {nats}, gradient "
                f"norm {norm}); {saved}; lower the learning rates or set optimizer.clip_norm"
            )

    def _report(self, grad_norm: float) -> None:
        train, clock = self.config.train, self.clock
        pace = clock.timer.seconds_per_step()
        speed = train.batch_tokens / pace if pace else None
        factor = self._validator.bits_per_byte_factor if self._validator is not None else None
        bpb = self.train_nats * factor if factor is not None else None
        if self.step % train.log_every == 0 or clock.over(self.step):
            self._log.write(
                step=self.step,
                train_nats=self.train_nats,
                bpb_estimate=bpb,
                grad_norm=grad_norm,
                lr_scale=clock.lr_scale(self.step - 1),
                quantised=self.qat_start_step is not None,
                seconds=round(clock.seconds, 3),
                tokens_per_second=speed,
            )
        left = clock.remaining_steps(self.step)
        ends = f", {left * pace:.0f} s left" if left is not None and pace else ""
        bits = f" (about {bpb:.4f} bits per byte)" if bpb is not None else ""
        rate = f", {speed:,.0f} tokens/s" if speed else ""
        self._progress.show(f"step {self.step}: {self.train_nats:.4f} nats per token{bits}{rate}{ends}")

    def _checkpoint_due(self) -> bool:
        train = self.config.train
        by_step = train.checkpoint_every > 0 and self.step % train.checkpoint_every == 0
        waited = self.clock.seconds - self._saved_at_seconds
        return by_step or (train.checkpoint_seconds > 0 and waited >= train.checkpoint_seconds)

    def _validate(self, kind: AverageKind, masters: Mapping[str, Tensor], *, looped: bool = True) -> Validation | None:
        if self._validator is None:
            return None
        outcome = self._validator.run(self._objective, masters, looped=looped)
        self._log.write(
            step=self.step,
            event="validation",
            weights=kind,
            val_nats=outcome.val_loss,
            val_bpb=outcome.val_bpb,
        )
        return outcome

    def _finish(self) -> TrainResult:
        """Save the end state, validate every kind of weights and write them, the recipe's as ``model.pt``."""
        self.save_checkpoint()
        kinds: dict[AverageKind, Mapping[str, Tensor]] = {"raw": self.masters, **self.averages.available()}
        losses: dict[AverageKind, Validation] = {}
        for kind, masters in kinds.items():
            outcome = self._validate(kind, masters)
            if outcome is not None:
                losses[kind] = outcome
        exported = self.averages.exported_kind()
        distance: float | None = None
        if self.config.qat.enabled:
            distance = grid_distance(unpack(self.config.model, kinds[exported]), self.config.qat)
            self._log.write(step=self.step, event="grid_distance", steps=distance)
        result = self._result("done", losses, distance)
        if self._ranks.is_first:
            for kind, masters in kinds.items():
                target = self._folder.model if kind == exported else self._folder.path / f"{kind}.pt"
                save_tensors(target, plain_weights(unpack(self.config.model, masters)))
            draw_losses(self._folder.metrics, self._folder.path / "loss.png")
            write_json(self._folder.summary, self._summary(result))
        self._ranks.barrier()
        return result

    def _result(self, status: str, losses: dict[AverageKind, Validation], distance: float | None = None) -> TrainResult:
        return TrainResult(
            folder=self._folder,
            status=status,
            steps=self.step,
            tokens=self.step * self.config.train.batch_tokens,
            seconds=self.clock.seconds,
            train_nats=self.train_nats,
            exported=self.averages.exported_kind(),
            validation=losses,
            grid_distance=distance,
        )

    def _summary(self, result: TrainResult) -> dict[str, Any]:
        pace = self.clock.timer.seconds_per_step()
        return {
            "status": result.status,
            "recipe": self.config.recipe,
            "steps": result.steps,
            "tokens": result.tokens,
            "seconds": result.seconds,
            "tokens_per_second": self.config.train.batch_tokens / pace if pace else None,
            "parameters": sum(value.numel() for value in self.masters.values()),
            "train_nats": result.train_nats,
            "exported": result.exported,
            "swa_samples": self.averages.swa_samples,
            "loop_start": dataclasses.asdict(self.loop_start) if self.loop_start and self._loops_late else None,
            "validation": {
                kind: {"val_nats": loss.val_loss, "val_bpb": loss.val_bpb} for kind, loss in result.validation.items()
            },
            "grid_distance": result.grid_distance,
            "processes": self._ranks.count,
            "device": str(self._ranks.device),
            "versions": {"torch": torch.__version__},
        }

    # State.

    def save_checkpoint(self) -> None:
        """Replace the checkpoint by the present state (a collective call; the first rank writes)."""
        state = {
            "format": "evalkit-checkpoint",
            "version": 1,
            "step": self.step,
            "seconds": self.clock.seconds,
            "timer": self.clock.timer.state_dict(),
            "train_nats": self.train_nats,
            "qat_start_step": self.qat_start_step,
            "loop_start": self.loop_start and dataclasses.asdict(self.loop_start),
            "masters": self._detached(),
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if self._ranks.is_first:
            save_tensors(self._folder.checkpoint, state)
        self._ranks.barrier()
        self._saved_at_seconds = self.clock.seconds

    def load_checkpoint(self) -> None:
        """Continue from the folder's checkpoint.

        Raises:
            InputError: the file is damaged or no checkpoint.
        """
        state = load_tensors(self._folder.checkpoint)
        if not isinstance(state, dict) or state.get("format") != "evalkit-checkpoint":
            raise InputError(f"{self._folder.checkpoint} is not a checkpoint of a training run")
        self._load_masters(state["masters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averages.load_state_dict(state["averages"])
        self.step = int(state["step"])
        self.clock.seconds = self._saved_at_seconds = float(state["seconds"])
        self.clock.timer.load_state_dict(state["timer"])
        self.qat_start_step = state["qat_start_step"]
        started = state.get("loop_start")
        self.loop_start = LoopStart(**started) if started else None
        self.train_nats = float(state["train_nats"])
        torch.set_rng_state(state["rng"])

    def _detached(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.masters.items()}

    def _load_masters(self, masters: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.masters.items():
                value.copy_(masters[name])
