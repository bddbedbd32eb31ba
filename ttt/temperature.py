"""PR849's adaptive temperature: sharpen the distribution where it is already certain. Normalised, so legal."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def temper(logits: Tensor, temperature: float) -> Tensor:
    """Return ``logits / tau`` with tau = clamp(1 - (1 - temperature)(1 - H / ln V), 0.9, 1.05) at each row.

    Args:
        logits: ``[..., V]``.
        temperature: tau where the entropy H of softmax(logits) is 0; 1 changes nothing.
    """
    if temperature == 1.0:
        return logits
    p = torch.softmax(logits, dim=-1)
    entropy = -(p * torch.log(p + 1e-10)).sum(dim=-1, keepdim=True)
    tau = 1.0 - (1.0 - temperature) * (1.0 - entropy / math.log(logits.shape[-1]))
    return logits / tau.clamp(0.9, 1.05)
