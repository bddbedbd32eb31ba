"""Optimisation steps on scored tokens: byte-weighted loss, clipping, Polyak averaging."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.network.network import Network
from evalkit.plumbing.adamw import AdamGroup, AdamW
from evalkit.plumbing.errors import EvalkitError, InputError
from evalkit.plumbing.ranks import Ranks
from evalkit.prequential.sliding import one_thread_each
from evalkit.ttt.config import TTTConfig
from evalkit.ttt.parameters import Parameterisation


class TrainingError(EvalkitError):
    """A loss or a gradient is not finite."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training sequence.

    Attributes:
        inputs: token ids, int64 ``[T]``.
        targets: the ids that follow, int64 ``[T]``.
        weights: weight of each target's loss, float32 ``[T]``: bytes, ones, or zero where nothing is to be learned.
    """

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


class Trainer:
    """Trains a parameterisation of a model, a batch of rows a step.

    On a CPU each row is a task of its own on one thread, and gradients are added in the order of the rows: the result
    does not depend on the number of threads.

    Args:
        network: supplies the forward pass, a torch module in float32; its parameters are overwritten.
        parameterisation: what learns.
        config: optimizer, clipping and averaging.
        dtype: ``float32``, or ``bfloat16`` to run matrix products in that (weights and losses stay float32).
        threads: CPU threads; 0 for all.
        ranks: the processes that share the rows of a step; each takes the same step.
        compile: compile the passes of full batches on a GPU, whose shapes never change.
    """

    def __init__(
        self,
        network: Network,
        parameterisation: Parameterisation,
        config: TTTConfig,
        *,
        dtype: str,
        threads: int = 0,
        ranks: Ranks | None = None,
        compile: bool = False,
    ) -> None:
        self.network = network
        self._compiled = network.compiled() if compile else None
        self.module = network.require_module("--ttt")
        self.config = config
        self.parameterisation = parameterisation
        self.device = next(self.module.parameters()).device
        self._autocast = dtype == "bfloat16"
        self._threads = threads
        self._ranks = ranks or Ranks()
        self.reset()

    def reset(self) -> None:
        """Go back to the start: weights, average and optimizer."""
        initial = self.parameterisation.trained
        self.trained = {name: tensor.clone().requires_grad_() for name, tensor in initial.items()}
        self.average = {name: tensor.clone() for name, tensor in initial.items()}
        self.steps = 0
        parameters = list(self.trained.values())
        config = self.config
        if config.optimizer == "adamw":
            self._optimizer: AdamW | torch.optim.SGD = AdamW([AdamGroup(parameters=parameters, lr=1.0)])
        else:
            self._optimizer = torch.optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum)

    def step(self, rows: list[Row], rate: float, where: str) -> float:
        """Take one optimizer step on the weighted mean loss of some rows; ``where`` names them in error messages.

        Returns:
            The loss before the step, nats per unit of weight; 0 if every weight is 0, in which case nothing moves.

        Raises:
            TrainingError: the loss or the gradient is not finite.
        """
        total = float(sum(float(row.weights.sum(dtype=np.float64)) for row in rows))
        if total == 0.0:
            return 0.0
        loss, gradients = self._gradients(rows, total)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        if not np.isfinite(loss) or not bool(torch.isfinite(norm)):
            raise TrainingError(
                f"test-time training diverged {where}: loss {loss:.4g}, gradient norm {float(norm):.4g}; lower "
                f"ttt.learning_rate (now {self.config.learning_rate:g}). The scores so far are kept."
            )
        if self.config.grad_clip:
            factor = torch.clamp(self.config.grad_clip / (norm + 1e-6), max=1.0)
            for gradient in gradients:
                gradient.mul_(factor)
        for parameter, gradient in zip(self.trained.values(), gradients, strict=True):
            parameter.grad = gradient
        if isinstance(self._optimizer, AdamW):
            self._optimizer.step(lr_scale=rate)
        else:
            self._optimizer.param_groups[0]["lr"] = rate
            self._optimizer.step()
        for parameter in self.trained.values():
            parameter.grad = None
        self.steps += 1
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.average[name].lerp_(parameter, 1.0 - self.config.polyak_decay)
        return loss

    def scoring_weights(self) -> dict[str, Tensor]:
        """Return the model's weights that the Polyak average stands for."""
        with torch.no_grad():
            return self.parameterisation.weights(self.average)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, average and optimizer as arrays."""
        optimizer = self._optimizer.state_dict()["state"]
        return {
            "trained": {name: _array(tensor) for name, tensor in self.trained.items()},
            "average": {name: _array(tensor) for name, tensor in self.average.items()},
            "optimizer": {
                str(i): {key: _array(value) for key, value in entry.items() if isinstance(value, Tensor)}
                for i, entry in optimizer.items()
            },
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.reset()
        with torch.no_grad():
            for name in self.trained:
                self.trained[name].copy_(torch.from_numpy(state["trained"][name]))
                self.average[name].copy_(torch.from_numpy(state["average"][name]))
        restored = {
            int(i): {key: torch.from_numpy(np.array(value)) for key, value in entry.items()}
            for i, entry in state["optimizer"].items()
        }
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": restored})
        self.steps = int(state["steps"])

    def _gradients(self, rows: list[Row], total: float) -> tuple[float, list[Tensor]]:
        """Return the loss and the gradient of each trained tensor."""
        # The model holds the weights as leaves, so that threads share it without swapping anything; what the trained
        # tensors owe to the weights' gradients is pulled back once, at the end.
        with torch.enable_grad():
            weights = self.parameterisation.weights(self.trained)
        leaves = self._load(weights)
        loss, gradients = self._sum_over_rows(rows, total, leaves)
        with torch.enable_grad():
            pulled = _gradients_of(list(weights.values()), list(self.trained.values()), gradients)
        return loss, [gradient.clone() for gradient in pulled]

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> list[Tensor]:
        parameters = dict(self.module.named_parameters())
        for name, value in weights.items():
            parameters[name].copy_(value)
            parameters[name].requires_grad_()
        return [parameters[name] for name in weights]

    def _sum_over_rows(self, rows: list[Row], total: float, leaves: list[Tensor]) -> tuple[float, list[Tensor]]:
        if self.device.type == "cpu":
            batches = [[row] for row in rows]
        else:
            slices = [self._ranks.slice(len(rows), rank) for rank in range(self._ranks.count)]
            batches = [rows[own.start : own.stop] for own in slices if own]
        loss = 0.0
        sums: list[Tensor] = []
        for more, parts in self._shared(batches, total, leaves):
            loss += more
            if not sums:
                # Copies of one layout and alignment, wherever the parts come from: products that follow depend on both.
                sums = [part.clone(memory_format=torch.contiguous_format) for part in parts]
                continue
            for sum_, part in zip(sums, parts, strict=True):
                sum_.add_(part)
        return loss, sums

    def _shared(
        self, batches: list[list[Row]], total: float, leaves: list[Tensor]
    ) -> Iterator[tuple[float, list[Tensor]]]:
        """Yield loss and gradients of each batch, in order, whichever rank computes it."""
        if self._ranks.count == 1:
            yield from self._run(batches, total, leaves)
            return
        sizes = [leaf.numel() for leaf in leaves]
        like = torch.empty(0, 1 + sum(sizes), device=self.device)
        # A few batches at a time: every one comes back with the gradient of all weights.
        round_size = self._ranks.count * (self._threads or torch.get_num_threads())
        for i in range(0, len(batches), round_size):
            group = batches[i : i + round_size]

            def compute(own: range, group: list[list[Row]] = group) -> Iterator[Tensor]:
                for loss, gradients in self._run(group[own.start : own.stop], total, leaves):
                    yield torch.cat([gradients[0].new_tensor([loss]), *(g.flatten() for g in gradients)])[None]

            for row in self._ranks.share([1] * len(group), compute, like):
                flat = row[0, 1:].split(sizes)
                yield float(row[0, 0]), [part.view_as(leaf) for part, leaf in zip(flat, leaves, strict=True)]

    def _run(
        self, batches: list[list[Row]], total: float, leaves: list[Tensor]
    ) -> Iterator[tuple[float, list[Tensor]]]:
        def work(batch: list[Row]) -> tuple[float, list[Tensor]]:
            return self._batch_gradients(batch, total, leaves)

        if self.device.type != "cpu" or not self.network.thread_safe:
            yield from map(work, batches)
            return
        with one_thread_each(self._threads) as threads, ThreadPoolExecutor(threads) as pool:
            yield from pool.map(work, batches)

    def _batch_gradients(self, rows: list[Row], total: float, leaves: list[Tensor]) -> tuple[float, list[Tensor]]:
        inputs = torch.from_numpy(np.stack([row.inputs for row in rows])).to(self.device)
        targets = torch.from_numpy(np.stack([row.targets for row in rows])).to(self.device)
        weights = torch.from_numpy(np.stack([row.weights for row in rows])).to(self.device)
        first_row = min(int(np.flatnonzero(row.weights)[0]) if row.weights.any() else 0 for row in rows)
        network = self.network
        if self._compiled is not None and len(rows) == self.config.batch_sequences:
            network, first_row = self._compiled, 0
        with torch.enable_grad():
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
                logits = network.logits(inputs, first_row)
            if not logits.requires_grad:
                raise InputError(
                    f"{self.network.name} cannot be trained: its logits carry no gradient of the weights that learn; "
                    f"leave out --ttt, or choose others with ttt.trainable"
                )
            losses = F.cross_entropy(logits.flatten(0, 1), targets[:, first_row:].flatten(), reduction="none")
            loss = (losses * weights[:, first_row:].flatten()).sum() / total
            return float(loss.detach()), _gradients_of([loss], leaves)


def _gradients_of(outputs: list[Tensor], inputs: list[Tensor], owed: list[Tensor] | None = None) -> list[Tensor]:
    """Return what each input owes to the outputs' gradients (1 by default), zeros where it has no part in them."""
    return list(torch.autograd.grad(outputs, inputs, owed, allow_unused=True, materialize_grads=True))


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    return np.array(tensor.detach().cpu().numpy())
