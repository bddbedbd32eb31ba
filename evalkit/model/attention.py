"""Self-attention: grouped queries, exclusive self-attention, value embeddings, value residual, gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.model.config import ModelConfig
from evalkit.model.rope import rotate

RMS_EPS = 1.1920928955078125e-07
"""float32 machine epsilon, what torch's rms_norm adds to the mean square by default."""


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square of the last dimension; no learned weight."""
    return F.rms_norm(x, (x.shape[-1],), eps=RMS_EPS)


class Cache(Protocol):
    """Keys and values of one layer for rows that came before."""

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append rows, ``[B, K, T, D]`` each, and return all rows that the new ones may attend to."""
        ...


class LayerCache:
    """Keys and values of one layer, ``[B, K, T, D]`` each, for rows that need not be computed again."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append rows and return all rows."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values

    def truncate(self, rows: int) -> None:
        """Forget all but the first ``rows`` rows."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[:, :, :rows], self.values[:, :, :rows]


@dataclass
class AttentionContext:
    """What the layers of one forward pass share.

    Attributes:
        cos: cosines of the rows being computed, ``[rows, R / 2]``.
        sin: like ``cos``.
        fed_length: length of the window in tokens, padding included.
        first_values: layer 0's values, ``[B, K, rows, D]``, once layer 0 has run.
        value_embedding: scaled value embedding, ``[B, rows, K * D]``, or None.
    """

    cos: Tensor
    sin: Tensor
    fed_length: int
    first_values: Tensor | None = None
    value_embedding: Tensor | None = None


class Attention(nn.Module):
    """Causal softmax attention of one layer.

    Shapes: B batch, T rows, d model width, H query heads, K key and value heads, D head width.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        d, kv = config.model_dim, config.kv_dim
        self.c_q = nn.Linear(d, d, bias=False)
        self.c_k = nn.Linear(d, kv, bias=False)
        self.c_v = nn.Linear(d, kv, bias=False)
        self.proj = nn.Linear(d, d, bias=False)
        self.q_gain = nn.Parameter(torch.full((config.num_heads,), 1.5))
        self.blends_first_values = config.value_residual == "first_layer" and layer > 0
        if self.blends_first_values:
            self.vr_lambda = nn.Parameter(torch.tensor([0.5, 0.5]))
        self.attn_gate: nn.Linear | nn.Parameter | None = None
        if config.attention_gate == "sigmoid":
            self.attn_gate = nn.Linear(d, config.num_heads, bias=True)
        elif config.attention_gate == "scalar":
            self.attn_gate = nn.Parameter(torch.ones(config.num_heads))

    def forward(
        self,
        n: Tensor,
        context: AttentionContext,
        *,
        value_embedding_scale: Tensor | None = None,
        first_query: int = 0,
        cache: Cache | None = None,
    ) -> Tensor:
        """Attend from rows ``first_query ..`` of ``n`` to all rows up to each of them.

        Args:
            n: normed input, ``[B, T, d]``.
            context: what the layers share.
            value_embedding_scale: factor of the value embedding in this layer, or None if it has none.
            first_query: rows before it serve as keys and values only.
            cache: keys and values of earlier rows; the new rows are appended.

        Returns:
            ``[B, T - first_query, d]``.
        """
        config = self.config
        batch, rows, _ = n.shape
        queried = n[:, first_query:] if first_query else n
        q = self._heads(self.c_q(queried), config.num_heads)
        k = self._heads(self.c_k(n), config.num_kv_heads)
        v_flat = self.c_v(n)
        if value_embedding_scale is not None and context.value_embedding is not None:
            v_flat = v_flat + value_embedding_scale.to(n.dtype) * context.value_embedding
        own_values = self._heads(v_flat, config.num_kv_heads)

        cos, sin = context.cos.to(n.dtype), context.sin.to(n.dtype)
        gain = self.q_gain.to(n.dtype).view(1, -1, 1, 1)
        q = rotate(rms_norm(q), cos[first_query:], sin[first_query:]) * gain
        k = rotate(rms_norm(k), cos, sin)

        v = own_values
        if config.value_residual == "first_layer":
            if context.first_values is None:
                context.first_values = own_values
            if self.blends_first_values:
                blend = self.vr_lambda.to(n.dtype)
                v = blend[0] * context.first_values + blend[1] * own_values
        if cache is not None:
            k, v = cache.extend(k, v)

        y = self._attend(q, k, v)
        if config.uses_xsa(self.layer):
            y = self._exclude_own_value(y, own_values[:, :, first_query:], context.fed_length)
        y = self._gate(y, queried)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(batch, rows - first_query, config.model_dim))
        return out

    def _heads(self, flat: Tensor, heads: int) -> Tensor:
        split: Tensor = flat.unflatten(-1, (heads, self.config.head_dim))
        return split.transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = self.config.num_kv_heads != self.config.num_heads
        queries, keys = q.shape[2], k.shape[2]
        if queries == keys:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)

    def _exclude_own_value(self, y: Tensor, own: Tensor, fed_length: int) -> Tensor:
        """Exclusive self-attention: take the position's own value out of what it attends to."""
        groups = self.config.num_heads // self.config.num_kv_heads
        y_grouped: Tensor = y.unflatten(1, (self.config.num_kv_heads, groups))
        own = own.unsqueeze(2)
        if self.config.xsa_form == "mean":
            return (y_grouped - own / fed_length).flatten(1, 2)
        unit = F.normalize(own.float(), dim=-1, eps=1e-12)
        along = (y_grouped.float() * unit).sum(dim=-1, keepdim=True)
        return (y_grouped - (along * unit).to(y.dtype)).flatten(1, 2)

    def _gate(self, y: Tensor, n: Tensor) -> Tensor:
        if isinstance(self.attn_gate, nn.Linear):
            return y * torch.sigmoid(self.attn_gate(n)).transpose(1, 2).unsqueeze(-1)
        if self.attn_gate is not None:
            return y * self.attn_gate.to(y.dtype).view(1, -1, 1, 1)
        return y
