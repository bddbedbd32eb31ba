"""A block of the GPT: residual mixing, attention and MLP, in one stream or in two lanes.

Letters: x is the residual stream, x0 what it was after the embedding, h a lane, n an input after its norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.model.attention import Attention, AttentionContext, rms_norm
from evalkit.model.cache import Cache
from evalkit.model.config import ModelConfig

Lanes = tuple[Tensor, Tensor]
"""The lane that attention reads and the one that the MLP reads, ``[B, rows, d]`` each."""

Routes = tuple[Tensor, Tensor]
"""What a block keeps of each lane, ``[2]``, and what each part of it sends to each lane, ``[2 parts, 2 lanes]``."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What one visit of a block is told.

    Attributes:
        context: what all visits share.
        value_embedding_scale: factor of the value embedding in this block, or None if it has none.
        first_query: rows before it serve as keys and values only.
        cache: keys and values of earlier rows.
        norm_scale: the block's factor of normed inputs as a tensor without dimensions, so that compiled blocks share
            their code; None takes the block's own number.
    """

    context: AttentionContext
    value_embedding_scale: Tensor | None
    first_query: int
    cache: Cache | None
    norm_scale: Tensor | None = None


class MLP(nn.Module):
    """Two matrices around a squared (leaky) relu."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.negative_slope = 0.0 if config.activation == "relu2" else config.leaky_slope
        self.fc = nn.Linear(config.model_dim, config.mlp_hidden, bias=False)
        self.proj = nn.Linear(config.mlp_hidden, config.model_dim, bias=False)

    def forward(self, n: Tensor) -> Tensor:
        """Map ``[B, T, d]`` to ``[B, T, d]``."""
        z = self.fc(n)
        z = F.leaky_relu(z, self.negative_slope) if self.negative_slope else F.relu(z)
        out: Tensor = self.proj(z.square())
        return out


class Block(nn.Module):
    """One layer: residual mixing with x0, attention, MLP, and an injection of x0."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        d = config.model_dim
        self.norm_scale = 1.0 / math.sqrt(layer + 1) if config.ln_scale else 1.0
        self.joint = config.parallel_form == "joint" and layer >= config.parallel_start
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(d))
        self.mlp_scale = nn.Parameter(torch.ones(d))
        self.resid_mix = nn.Parameter(torch.ones(2, d))
        self.resid_mix.data[1].zero_()
        self.lambda_v: nn.Parameter | None = None
        if config.value_residual == "x0":
            self.lambda_v = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, x0: Tensor, visit: Visit) -> Tensor:
        """Return the block's output for the rows that ``visit`` asks for, ``[B, rows, d]``."""
        h = self._mix(x, x0)
        attended = self._attend(h, visit)
        h = h[:, visit.first_query :]
        if self.joint:
            return h + attended + self._feed_forward(h, visit)
        h = h + attended
        h = h + self._feed_forward(h, visit)
        if self.lambda_v is not None:
            h = h + self.lambda_v.to(x.dtype) * x0[:, visit.first_query :]
        return h

    def forward_lanes(self, lanes: Lanes, x0: Tensor, visit: Visit, routes: Routes | None) -> Lanes:
        """Return what the block makes of two lanes: attention reads the first, the MLP reads the second.

        Without routes each lane gets its own part's output. With them, rho and p, lane k becomes
        rho_k lane_k + p_0k attention + p_1k MLP, and the first lane is carried on as it was before the mixing with x0.
        """
        h = self._mix(lanes[0], x0)
        attended = self._attend(h, visit)
        first, second = ((h if routes is None else lanes[0])[:, visit.first_query :], lanes[1][:, visit.first_query :])
        fed = self._feed_forward(second, visit)
        if routes is None:
            return first + attended, second + fed
        rho, p = routes
        return (
            rho[0] * first + p[0, 0] * attended + p[1, 0] * fed,
            rho[1] * second + p[0, 1] * attended + p[1, 1] * fed,
        )

    def _mix(self, x: Tensor, x0: Tensor) -> Tensor:
        mix = self.resid_mix.to(x.dtype)
        return mix[0] * x + mix[1] * x0

    def _attend(self, h: Tensor, visit: Visit) -> Tensor:
        attended: Tensor = self.attn(
            self._norm(h, visit),
            visit.context,
            value_embedding_scale=visit.value_embedding_scale,
            first_query=visit.first_query,
            cache=visit.cache,
        )
        return self.attn_scale.to(h.dtype) * attended

    def _feed_forward(self, h: Tensor, visit: Visit) -> Tensor:
        fed: Tensor = self.mlp(self._norm(h, visit))
        return self.mlp_scale.to(h.dtype) * fed

    def _norm(self, h: Tensor, visit: Visit) -> Tensor:
        n = rms_norm(h)
        if visit.norm_scale is not None:
            return n * visit.norm_scale
        return n if self.norm_scale == 1.0 else n * self.norm_scale
