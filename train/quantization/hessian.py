"""Input statistics of linear layers: the ``x x^T`` that GPTQ weighs its errors with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from evalkit.model.gpt import GPT, head_name
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.progress import tracked

_ROWS_PER_PRODUCT = 8192  # bounds the float32 copy of a layer's input


def shared_input_groups(names: Iterable[str]) -> list[list[str]]:
    """Group names of query, key and value projections of the same block, which read the same input.

    Returns:
        Lists of module names; a module that shares with no other is a list of one. Order of first appearance.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\bc_[qkv]$", "c_qkv", name), []).append(name)
    return list(groups.values())


class HessianCollector:
    """Sums ``x x^T`` over the inputs of named modules while a model runs; use as a context manager.

    Memory is one float32 matrix ``[in_features, in_features]`` per group, whatever the number of tokens. Products are
    made in float32 with autocast off. Modules that share an input share one matrix.

    Example::

        with HessianCollector(model, shared_input_groups(names)) as collector:
            for batch in batches:
                model(batch)
        collector.all_reduce()
        hessians = collector.hessians()
    """

    def __init__(self, model: nn.Module, groups: Sequence[Sequence[str]]) -> None:
        modules = dict(model.named_modules())
        self._groups = [list(group) for group in groups]
        self._sums: list[Tensor | None] = [None] * len(self._groups)
        self._tokens = [0] * len(self._groups)
        self._observed: dict[str, int] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._leaders: list[nn.Module] = []
        for group in self._groups:
            for name in group:
                if name not in modules:
                    raise InputError(f"the model has no module named {name!r} to calibrate")
            if group:
                self._leaders.append(modules[group[0]])
            else:
                raise InputError("a group of modules to calibrate is empty")

    def __enter__(self) -> HessianCollector:
        for index, module in enumerate(self._leaders):
            self._handles.append(module.register_forward_pre_hook(self._hook(index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def observe(self, name: str, x: Tensor) -> None:
        """Add inputs ``[..., in_features]`` of a matrix that no module multiplies by, such as a tied head."""
        if name not in self._observed:
            self._observed[name] = len(self._groups)
            self._groups.append([name])
            self._sums.append(None)
            self._tokens.append(0)
        self._add(self._observed[name], x)

    def _hook(self, index: int):  # type: ignore[no-untyped-def]
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._add(index, inputs[0])

        return add

    @torch.no_grad()
    def _add(self, index: int, x: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1])
        total = self._sums[index]
        if total is None:
            total = torch.zeros(x.shape[-1], x.shape[-1], dtype=torch.float32, device=x.device)
            self._sums[index] = total
        with torch.autocast(device_type=x.device.type, enabled=False):
            for part in flat.split(_ROWS_PER_PRODUCT):
                rows = part.float()
                total.addmm_(rows.T, rows)
        self._tokens[index] += flat.shape[0]

    def all_reduce(self) -> None:
        """Sum over the ranks of an initialised ``torch.distributed``; does nothing in a single process."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        for index, total in enumerate(self._sums):
            if total is None:
                raise InputError(f"no input reached {self._groups[index][0]!r} on this rank")
            torch.distributed.all_reduce(total)
            count = torch.tensor([self._tokens[index]], dtype=torch.int64, device=total.device)
            torch.distributed.all_reduce(count)
            self._tokens[index] = int(count)

    def tokens(self) -> Mapping[str, int]:
        """Return the number of input vectors that each module saw."""
        return {n: t for group, t in zip(self._groups, self._tokens, strict=True) for n in group}

    def hessians(self) -> dict[str, Tensor]:
        """Return the mean of ``x x^T`` by module name, float32 ``[in_features, in_features]``.

        Modules of one group get the same tensor object.

        Raises:
            InputError: a module saw no input.
        """
        result = {}
        for group, total, count in zip(self._groups, self._sums, self._tokens, strict=True):
            if total is None or count == 0:
                raise InputError(f"no input reached {group[0]!r} during calibration")
            mean = total / count
            for name in group:
                result[name] = mean
        return result


def collect_hessians(model: GPT, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the mean of x x^T of every matrix's input, by module name; that of the head under the table it reads."""
    head = head_name(model.config)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != head]
    with torch.no_grad(), HessianCollector(model, shared_input_groups(names)) as collector:
        for batch in tracked(batches, "calibrate", unit="tokens", size=Tensor.numel):
            collector.observe(head, model.head_input(model.hidden(batch)))
    return collector.hessians()
