"""What the scorers ask of a network, and how any model gives it.

A model is called with token ids, int64 ``[B, T]``, and returns logits ``[B, T, V]`` before softmax; row t may depend on
``ids[:, : t + 1]`` only. A tuple or list whose first element is that tensor will do, and an object whose ``logits`` is.
These members are optional:

* ``vocab_size``: V, where it is not the tokenizer's;
* ``seq_len``: the window that the model is scored with unless ``--seq-len`` says otherwise;
* ``pad = False``: feed the last window as short as it is, in place of padding it on the right with id 0;
* ``logits_from(ids, first_row) -> [B, T - first_row, V]``: for speed, the rows from ``first_row`` on alone;
* ``step(ids, state) -> (logits [B, 1, V], state)``: for speed, what predicts the token after ``ids``, the tokens since
  ``state``, which is None at a window's first token; a state may be changed in place;
* ``thread_safe = True``: for speed on a CPU, several windows may be computed at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.legality.child import describe
from evalkit.model.gpt import GPT
from evalkit.model.regions import Compiled
from evalkit.network.declared import shown
from evalkit.plumbing.errors import EvalkitError, InputError


@dataclass(kw_only=True, eq=False)
class Network:
    """A model of any kind, checked.

    Attributes:
        model: what is called.
        vocab_size: V, the width that its logits must have.
        name: for messages.
    """

    model: Any
    vocab_size: int
    name: str = "the model"

    def __post_init__(self) -> None:
        self._from: Callable[..., Any] | None = getattr(self.model, "logits_from", None)
        self._whole: Callable[..., Any] = self.model
        self._step: Callable[..., Any] | None = getattr(self.model, "step", None)
        self.pads = bool(getattr(self.model, "pad", True))
        self.thread_safe = bool(getattr(self.model, "thread_safe", False))

    @property
    def module(self) -> nn.Module | None:
        """The model as a torch module, which has parameters; None where it is something else."""
        return self.model if isinstance(self.model, nn.Module) else None

    def require_module(self, option: str) -> nn.Module:
        """Return the torch module.

        Raises:
            InputError: the model is something else; ``option`` is said to need one.
        """
        if self.module is None or next(self.module.parameters(), None) is None:
            raise InputError(f"{self.name} is no torch module with weights, which {option} needs; leave it out")
        return self.module

    @property
    def can_step(self) -> bool:
        """Whether the model computes one token at a time."""
        return self._step is not None

    def compiled(self) -> Network:
        """Return this network with its forward pass compiled for the shapes that it will meet."""
        other = Network(model=self.model, vocab_size=self.vocab_size, name=self.name)
        if type(self.model) is GPT:  # a subclass may have a pass of its own
            other._from = partial(self.model.logits_from, how=Compiled())
        elif self._from is not None:
            other._from = torch.compile(self._from, dynamic=False)
        else:
            other._whole = torch.compile(self.model, dynamic=False)
        return other

    def logits(self, ids: Tensor, first_row: int = 0) -> Tensor:
        """Return the logits of rows ``first_row ..``, float32 ``[B, T - first_row, vocab_size]``.

        Args:
            ids: windows from their first token, int64 ``[B, T]``.
            first_row: rows before it are not wanted.

        Raises:
            InputError: the model raised, or returned something else.
        """
        if self._from is None:
            whole = self._checked(self._called(self._whole, ids), ids, ids.shape[1], "model(ids)")
            return whole[:, first_row:]
        returned = self._called(self._from, ids, first_row)
        return self._checked(returned, ids, ids.shape[1] - first_row, f"logits_from(ids, {first_row})")

    def step(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the logits of the token after ``ids``, float32 ``[B, vocab_size]``, and the new state.

        Raises:
            InputError: the model raised, or returned something else.
        """
        assert self._step is not None
        returned = self._called(self._step, ids, state)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise InputError(f"{self.name}: step(ids, state) returned {shown(returned)}; expected (logits, state)")
        return self._checked(returned[0], ids, 1, "step(ids, state)")[:, 0], returned[1]

    def _called(self, function: Callable[..., Any], ids: Tensor, *more: Any) -> Any:
        try:
            return function(ids, *more)
        except (EvalkitError, MemoryError):
            raise
        except Exception as error:
            reason = " ".join(describe(error).split())
            raise InputError(
                f"{self.name} failed on ids of shape {list(ids.shape)}: {reason}; if it takes fewer tokens at a time, "
                f"give its window with --seq-len"
            ) from error

    def _checked(self, returned: Any, ids: Tensor, rows: int, call: str) -> Tensor:
        logits = returned
        if isinstance(logits, tuple | list) and logits:
            logits = logits[0]
        elif not isinstance(logits, Tensor) and hasattr(logits, "logits"):
            logits = logits.logits
        expected = (ids.shape[0], rows, self.vocab_size)
        if not isinstance(logits, Tensor):
            raise InputError(
                f"{self.name}: {call} returned {shown(returned)}; expected logits, a tensor {list(expected)}"
            )
        if tuple(logits.shape) != expected:
            vocabulary = logits.ndim == 3 and tuple(logits.shape[:2]) == expected[:2]
            why = ": another vocabulary than the tokenizer's" if vocabulary else ""
            if vocabulary and logits.shape[2] > self.vocab_size:
                why += f"; if it is wider on purpose, let the model say vocab_size = {logits.shape[2]}"
            raise InputError(
                f"{self.name}: {call} returned a tensor of shape {list(logits.shape)} for ids of shape "
                f"{list(ids.shape)}; expected {list(expected)}{why}"
            )
        if not logits.is_floating_point():
            raise InputError(f"{self.name}: {call} returned {logits.dtype} numbers; expected floating-point logits")
        # a view of a weight asks for its gradient even where none are kept
        return logits.float() if torch.is_grad_enabled() else logits.detach().float()


def copied(network: Network) -> Network:
    """Return a network with a copy of the model.

    Raises:
        InputError: the model cannot be copied.
    """
    try:
        return replace(network, model=deepcopy(network.model))
    except Exception as error:
        raise InputError(f"{network.name} cannot be copied, which --ttt needs: {error}") from error


def require_numbers(logits: Tensor, name: str) -> None:
    """Raise an :class:`InputError` if some logits are NaN, or a row has no finite logit at all."""
    if bool(torch.isnan(logits).any()):
        row = int(torch.isnan(logits).flatten(0, -2).any(-1).nonzero()[0])
        raise InputError(f"{name} returned NaN in row {row} of its logits; expected numbers")
    if bool(torch.isposinf(logits).any()) or bool(torch.isneginf(logits).all(-1).any()):
        raise InputError(f"{name} returned infinite logits that no distribution can be made of")
