"""Soft cap and cross-entropy of the head in one pass over chunks of rows, without the logits of a whole batch.

Logits ``[tokens, vocabulary]`` in float32 are the largest tensors of a training step, and the cap, the softmax and
their derivatives each read and write them. Here a chunk's logits live until its losses and gradients are known, and
what is kept for the backward pass has the size of the head's inputs and of its weight.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Logits of a chunk: as many as fit a core's cache, or as keep a GPU busy."""

_SMALLEST_CHUNK = 128  # rows, below which products are slow


def softcapped_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, cap: float, chunk: int = 0) -> Tensor:
    """Return the mean of ``-ln softmax(cap tanh(x weight^T / cap))`` at the targets, in nats.

    Args:
        x: what the head reads, float32 ``[N, d]``.
        weight: of the head, float32 ``[V, d]``.
        targets: int64 ``[N]``.
        cap: soft cap of the logits; 0 for none.
        chunk: rows at a time; 0 chooses by device.
    """
    rows = chunk or _chunk_rows(weight)
    loss: Tensor = _SoftcappedCrossEntropy.apply(x, weight, targets, cap, rows)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def softcapped_nats(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """Return the loss of every row, float32 ``[N]``, without gradients; arguments as above."""
    nats = torch.empty(len(x), device=x.device)
    chunk = _chunk_rows(weight)
    for start in range(0, len(x), chunk):
        logits = x[start : start + chunk] @ weight.mT
        logits = cap * torch.tanh(logits / cap) if cap else logits
        nats[start : start + chunk] = F.cross_entropy(logits, targets[start : start + chunk], reduction="none")
    return nats


def _chunk_rows(weight: Tensor) -> int:
    elements = _CHUNK_ELEMENTS.get(weight.device.type, _CHUNK_ELEMENTS["cpu"])
    return max(_SMALLEST_CHUNK, elements // weight.shape[0])


class _SoftcappedCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, while a chunk's probabilities are there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, cap: float, chunk: int) -> Tensor:
        """Return the mean loss; keep its gradients."""
        count = x.shape[0]
        total = x.new_zeros(())
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        for start in range(0, count, chunk):
            rows, wanted = x[start : start + chunk], targets[start : start + chunk, None]
            logits = rows @ weight.mT
            slope = None
            if cap:
                logits = logits.div_(cap).tanh_()
                slope = 1.0 - logits.square()
                logits = logits.mul_(cap)
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            total += (normaliser - logits.gather(1, wanted)).sum()
            grad = logits.sub_(normaliser).exp_()
            grad.scatter_add_(1, wanted, torch.full_like(normaliser, -1.0))
            if slope is not None:
                grad = grad.mul_(slope)
            grad = grad.div_(count)
            torch.mm(grad, weight, out=grad_x[start : start + chunk])
            grad_weight.addmm_(grad.mT, rows)
        ctx.save_for_backward(grad_x, grad_weight)
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the kept gradients, times that of the loss."""
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * grads[0], grad_weight * grads[0], None, None, None
