"""What is added to the token embedding, and what smears it: hash tables, smear gates, value embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ScaledEmbedding(nn.Module):
    """A table, projected to another width and scaled: hash features (by a hash of the last tokens), value embeddings.

    The value table is shared by the layers that add it to their values.
    """

    def __init__(self, entries: int, dim: int, width: int, scale: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(entries, dim)
        self.proj = nn.Linear(dim, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, rows: Tensor) -> Tensor:
        """Return ``[B, T, width]`` for table rows ``[B, T]``."""
        projected: Tensor = self.proj(self.embed(rows).to(self.proj.weight.dtype))
        return self.scale.to(self.proj.weight.dtype) * projected


class SmearGate(nn.Module):
    """x_j <- (1 - g) x_j + g x_{j-1}, with g = sigmoid(gate) for every dimension and x_{-1} = 0."""

    def __init__(self, model_dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(model_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Mix ``[B, T, d]`` with itself shifted by one row."""
        g = torch.sigmoid(self.gate.to(x.dtype))
        return (1 - g) * x + g * F.pad(x, (0, 0, 1, -1))


class WindowSmear(nn.Module):
    """x_j <- x_j + lambda sigmoid(W x_j[:w]) x_{j-1}; nothing for the first row and for a token that resets."""

    def __init__(self, width: int, reset_token: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.reset_token = reset_token

    def forward(self, x: Tensor, ids: Tensor, factor: Tensor) -> Tensor:
        """Add to ``[B, T, d]`` itself shifted by one row; ``ids`` are the rows' tokens, ``factor`` is lambda."""
        gate = factor.to(x.dtype) * torch.sigmoid(F.linear(x[..., : self.weight.shape[1]], self.weight.to(x.dtype)))
        gate = gate.masked_fill((ids == self.reset_token).unsqueeze(-1), 0.0)
        return x + gate * F.pad(x, (0, 0, 1, -1))
