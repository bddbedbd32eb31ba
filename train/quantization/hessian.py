"""Input statistics of linear layers: the ``x x^T`` that GPTQ weighs its errors with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from evalkit.model.gpt import GPT, head_name
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.progress import tracked


@torch.no_grad()
def collect_hessians(model: GPT, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the mean of ``x x^T`` over the inputs of every matrix, float32 ``[in_features, in_features]``.

    Queries, keys and values of a block read the same input and get the same tensor object. What the head reads comes
    under the name of its table, which may be the token table's.

    Args:
        model: unchanged.
        batches: tokens, int64 ``[1, T]`` each.

    Raises:
        InputError: no input reached a matrix.
    """
    head = head_name(model.config)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != head]
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        if name not in sums:
            sums[name], counts[name] = rows.new_zeros(rows.shape[1], rows.shape[1]), 0
        sums[name].addmm_(rows.T, rows)
        counts[name] += len(rows)

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: add(name, inputs[0])

    # One name for what the query, key and value projections of a block read.
    inputs = {name: re.sub(r"\bc_[qkv]$", "c_qkv", name) for name in names} | {head: head}
    watched = {shared: name for name, shared in inputs.items() if name != head}  # one module of those that share
    handles = [model.get_submodule(name).register_forward_pre_hook(hook(shared)) for shared, name in watched.items()]
    try:
        for batch in tracked(batches, "calibrate", unit="tokens", size=Tensor.numel):
            add(head, model.head_input(model.hidden(batch)))
    finally:
        for handle in handles:
            handle.remove()
    unreached = [name for name, shared in inputs.items() if shared not in sums]
    if unreached:
        raise InputError(f"no input reached {unreached[0]!r} during calibration")
    means = {name: total / counts[name] for name, total in sums.items()}
    return {name: means[shared] for name, shared in inputs.items()}
