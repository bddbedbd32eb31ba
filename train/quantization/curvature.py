"""What an error in a tensor costs in loss, to second order, so that errors of different tensors can be weighed.

The Hessian of the loss is replaced by the Fisher information: the mean of squared gradients, with targets drawn from
the model itself. For a matrix it is taken to be the product of one factor for its inputs, the ``x x^T`` that GPTQ
uses, and one for each output, the mean squared gradient there (K-FAC, Martens and Grosse 2015, arXiv:1503.05671). A
table of embeddings has its entries' own mean squared gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.model.gpt import GPT
from evalkit.plumbing.progress import tracked
from evalkit.train.quantization.rows import weighted_row_error


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """The factors of the Fisher information of a loss in nats per token.

    Attributes:
        outputs: mean squared gradient of every output of a linear layer, float32 ``[out_features]`` by module name.
        entries: mean squared gradient of every entry of an embedding table, float32, by module name.
    """

    outputs: Mapping[str, Tensor]
    entries: Mapping[str, Tensor]

    def cost(self, name: str, error: Tensor, hessians: Mapping[str, Tensor]) -> float:
        """Return by how many nats per token an error ``[rows, cols]`` in a module's weight raises the loss.

        ``hessians`` is the mean of ``x x^T`` by module name.
        """
        if name in self.outputs:
            return 0.5 * float((self.outputs[name].double() * weighted_row_error(error, hessians[name])).sum())
        return 0.5 * float((self.entries[name].double() * error.double().square()).sum())

    def rows(self, name: str) -> Tensor:
        """Return the curvature of every row of a module's weight, float32 ``[rows]``; only ratios mean anything."""
        return self.outputs[name] if name in self.outputs else self.entries[name].mean(dim=1)

    def knows(self, name: str) -> bool:
        """Return whether the tensor of a module can be weighed."""
        return name in self.outputs or name in self.entries


def collect_curvature(model: GPT, batches: Sequence[Tensor]) -> Curvature:
    """Return the curvature at the model's weights, from batches of tokens, int64 ``[1, T]`` each.

    The model is unchanged but for gradients, which are cleared.
    """
    generator = torch.Generator().manual_seed(0)
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}
    linear = {n: m for n, m in modules.items() if isinstance(m, nn.Linear) and n != "lm_head"}
    tables = {n: m for n, m in modules.items() if n not in linear}
    outputs = {n: torch.zeros(m.out_features) for n, m in linear.items()}
    entries = {n: torch.zeros_like(m.weight, dtype=torch.float32) for n, m in tables.items()}  # type: ignore[arg-type]

    def watch(name: str):  # type: ignore[no-untyped-def]
        def add(gradient: Tensor) -> None:
            outputs[name] += gradient.detach().float().square().flatten(0, -2).sum(dim=0)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            out.register_hook(add)

        return hook

    required = {n: p.requires_grad for n, p in model.named_parameters()}
    handles = [module.register_forward_hook(watch(name)) for name, module in linear.items()]
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.removesuffix(".weight") in tables)
        with torch.enable_grad():
            for batch in tracked(batches, "measure the curvature", unit="tokens", size=Tensor.numel):
                logits = model(batch).flatten(0, 1)
                drawn = torch.multinomial(torch.softmax(logits.detach(), dim=-1), 1, generator=generator)[:, 0]
                F.cross_entropy(logits, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
                for name, table in tables.items():
                    if table.weight.grad is not None:
                        entries[name] += table.weight.grad.float().square()  # type: ignore[operator, union-attr]
                        table.weight.grad = None
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])
    tokens = sum(batch.numel() for batch in batches)
    return Curvature(
        outputs={n: value / tokens for n, value in outputs.items()},
        entries={n: value / tokens for n, value in entries.items()},
    )
