"""Self-attention: grouped queries, exclusive self-attention, value embeddings, value residual, output gates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.model.cache import Cache
from evalkit.model.config import ModelConfig
from evalkit.model.rope import rotate

RMS_EPS = 1.1920928955078125e-07
"""float32 machine epsilon, what torch's rms_norm adds to the mean square by default."""


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square of the last dimension; no learned weight."""
    return F.rms_norm(x, (x.shape[-1],), eps=RMS_EPS)


@dataclass
class AttentionContext:
    """What the layers of one forward pass share.

    Attributes:
        cos: cosines of the rows being computed, ``[rows, R / 2]``.
        sin: like ``cos``.
        fed_length: length of the window in tokens, padding included.
        first_values: layer 0's values, ``[B, K, rows, D]``, once layer 0 has run.
        value_embedding: scaled value embedding, ``[B, rows, K * D]``, or None.
        flash: whether there is a flash attention kernel for the last rows alone (:func:`has_flash`).
    """

    cos: Tensor
    sin: Tensor
    fed_length: int
    first_values: Tensor | None = None
    value_embedding: Tensor | None = None
    flash: bool = False


class Attention(nn.Module):
    """Causal softmax attention of one layer.

    Shapes: B batch, T rows, d model width, H query heads, K key and value heads, D head width.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.is_exclusive = config.uses_xsa(layer)
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
        elif config.attention_gate == "window":
            self.attn_gate_w = nn.Parameter(torch.zeros(config.num_heads, config.attention_gate_width))
        elif config.attention_gate == "window_doubled":
            self.attn_gate_proj = nn.Linear(config.attention_gate_width, config.num_heads, bias=False)
            nn.init.zeros_(self.attn_gate_proj.weight)

    def forward(
        self,
        n: Tensor,
        context: AttentionContext,
        *,
        value_embedding_scale: Tensor | None = None,
        first_query: int = 0,
        cache: Cache | None = None,
    ) -> Tensor:
        """Attend from rows ``first_query ..`` of normed inputs ``n``, ``[B, T, d]``, to all rows up to each of them.

        The other arguments are those of :class:`evalkit.model.block.Visit`; new rows are appended to the cache. Returns
        ``[B, T - first_query, d]``.
        """
        config = self.config
        batch, rows, _ = n.shape
        queried = n[:, first_query:] if first_query else n
        q_flat = self.c_q(queried)
        q = self._heads(q_flat, config.num_heads)
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

        y = attend(q, k, v, on_gpu=q.device.type != "cpu", flash=context.flash)
        if self.is_exclusive:
            y = self._exclude_own_value(y, own_values[:, :, first_query:], context.fed_length)
        y = self._gate(y, queried, q_flat)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(batch, rows - first_query, config.model_dim))
        return out

    def _heads(self, flat: Tensor, heads: int) -> Tensor:
        split: Tensor = flat.unflatten(-1, (heads, self.config.head_dim))
        return split.transpose(1, 2)

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

    def _gate(self, y: Tensor, n: Tensor, q_flat: Tensor) -> Tensor:
        """Scale each head's output, ``[B, H, T, D]``; ``n`` and ``q_flat`` are the rows' inputs and queries."""
        config = self.config
        if isinstance(self.attn_gate, nn.Linear):
            return y * torch.sigmoid(self.attn_gate(n)).transpose(1, 2).unsqueeze(-1)
        if self.attn_gate is not None:
            return y * self.attn_gate.to(y.dtype).view(1, -1, 1, 1)
        if config.attention_gate in ("window", "window_doubled"):
            doubled = config.attention_gate == "window_doubled"
            weight = self.attn_gate_proj.weight if doubled else self.attn_gate_w
            source = (q_flat if config.attention_gate_source == "query" else n)[..., : config.attention_gate_width]
            gate = torch.sigmoid(config.attention_gate_scale * F.linear(source, weight.to(y.dtype)))
            return y * ((2 * gate if doubled else gate).transpose(1, 2).unsqueeze(-1))
        return y


def has_flash(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether a device has the flash attention kernel for heads of this type and width."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and head_dim % 8 == 0 and torch.cuda.get_device_capability(device) >= (8, 0)


def attend(q: Tensor, k: Tensor, v: Tensor, *, on_gpu: bool, flash: bool) -> Tensor:
    """Return softmax attention of queries that are the last rows of the keys, each to all keys up to its own.

    Args:
        q: ``[B, H, queries, D]``.
        k: ``[B, K, keys, D]``, K a divisor of H.
        v: like ``k``.
        on_gpu: ask for what a GPU has kernels for: no groups in float32.
        flash: leave fewer queries than keys to the flash attention kernel, which needs no mask for them.

    Returns:
        Like ``q``.
    """
    grouped = q.shape[1] != k.shape[1]
    queries, keys = q.shape[2], k.shape[2]
    if on_gpu and grouped and q.dtype == torch.float32 and not torch.is_autocast_enabled(q.device.type):
        # Only half precision has a kernel that knows groups; without one every weight of the attention is stored.
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    if queries == keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    if flash:
        # "Causal" is counted from the last key here, and from the first in scaled_dot_product_attention.
        y: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]
        return y
    mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
