"""The GPT that holds the challenge baseline and the five published systems.

The forward pass follows section 2 of the model fact sheet; a reader can take a token from its embedding through the
hash tables, the smear gate and the blocks to its logits in this file and :mod:`evalkit.model.attention`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.model.attention import Attention, AttentionContext, Cache, LayerCache, rms_norm
from evalkit.model.config import ModelConfig
from evalkit.model.hashing import bigram_rows, trigram_rows
from evalkit.model.rope import rotary_tables

LEFT_CONTEXT = 3
"""Tokens before a row that its embedding depends on: two for the trigram hash, one more through the smear gate."""


def head_name(config: ModelConfig) -> str:
    """Return the name of the module whose weight the head multiplies by."""
    return "tok_emb" if config.tie_embeddings else "lm_head"


class HashEmbedding(nn.Module):
    """A table indexed by a hash of the last tokens, projected to the model's width and scaled."""

    def __init__(self, buckets: int, dim: int, model_dim: int, scale: float) -> None:
        super().__init__()
        self.buckets = buckets
        self.embed = nn.Embedding(buckets, dim)
        self.proj = nn.Linear(dim, model_dim, bias=False)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, rows: Tensor) -> Tensor:
        """Return ``[B, T, model_dim]`` for table rows ``[B, T]``."""
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


class ValueEmbedding(nn.Module):
    """One token table, shared by the layers that add it to their values."""

    def __init__(self, vocab_size: int, dim: int, kv_dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim)
        self.proj = nn.Linear(dim, kv_dim, bias=False)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, ids: Tensor) -> Tensor:
        """Return ``[B, T, K * D]`` for token ids ``[B, T]``."""
        projected: Tensor = self.proj(self.embed(ids).to(self.proj.weight.dtype))
        return self.scale.to(self.proj.weight.dtype) * projected


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
    """One layer: residual mixing with x0, attention, MLP, and PR849's x0 injection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        d = config.model_dim
        self.norm_scale = 1.0 / math.sqrt(layer + 1) if config.ln_scale else 1.0
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(d))
        self.mlp_scale = nn.Parameter(torch.ones(d))
        self.resid_mix = nn.Parameter(torch.stack([torch.ones(d), torch.zeros(d)]))
        self.lambda_v: nn.Parameter | None = None
        if config.value_residual == "x0":
            self.lambda_v = nn.Parameter(torch.zeros(1))

    def _norm(self, h: Tensor) -> Tensor:
        n = rms_norm(h)
        return n if self.norm_scale == 1.0 else n * self.norm_scale

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        context: AttentionContext,
        *,
        value_embedding_scale: Tensor | None,
        first_query: int = 0,
        cache: Cache | None = None,
    ) -> Tensor:
        """Return the block's output for rows ``first_query ..``, ``[B, T - first_query, d]``."""
        mix = self.resid_mix.to(x.dtype)
        h: Tensor = mix[0] * x + mix[1] * x0
        attended = self.attn(
            self._norm(h),
            context,
            value_embedding_scale=value_embedding_scale,
            first_query=first_query,
            cache=cache,
        )
        h = h[:, first_query:] + self.attn_scale.to(x.dtype) * attended
        h = h + self.mlp_scale.to(x.dtype) * self.mlp(self._norm(h))
        if self.lambda_v is not None:
            h = h + self.lambda_v.to(x.dtype) * x0[:, first_query:]
        return h


class KVCache:
    """Keys and values of every layer for the rows of a window that have been computed."""

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerCache() for _ in range(num_layers)]
        self.length = 0

    def truncate(self, rows: int) -> None:
        """Forget all but the first ``rows`` rows."""
        for layer in self.layers:
            layer.truncate(rows)
        self.length = min(self.length, rows)


@dataclass
class Stepping:
    """A window that is computed token by token: its tokens so far, ``[B, T]``, and their keys and values."""

    ids: Tensor
    cache: KVCache


class GPT(nn.Module):
    """The model. Parameter names are those of the published state dicts.

    Attributes:
        fed_length: length that the windows of :meth:`step` are fed at when they are computed whole, since rotary tables
            may depend on it; 0 takes the tokens that are there.
    """

    fed_length = 0
    thread_safe = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d = config.model_dim
        self.tok_emb = nn.Embedding(config.vocab_size, d)
        if config.bigram_buckets:
            self.bigram = HashEmbedding(config.bigram_buckets, config.bigram_dim, d, scale=0.05)
        if config.trigram_buckets:
            self.trigram = HashEmbedding(config.trigram_buckets, config.trigram_dim, d, scale=0.03)
        if config.smear_gate:
            self.smear = SmearGate(d)
        if config.value_embed_layers:
            self.ve_shared = ValueEmbedding(config.vocab_size, config.value_embed_dim, config.kv_dim)
            self.ve_layer_scales = nn.ParameterList(torch.ones(1) for _ in config.value_embed_layers)
        if config.num_skips:
            self.skip_weights = nn.Parameter(torch.ones(config.num_skips, d))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(d, config.vocab_size, bias=False)
        self._rope_cache: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the matrices, and so of the residual stream."""
        return next(block.attn.c_q.weight.dtype for block in self.blocks)  # type: ignore[union-attr, return-value]

    def to_compute_dtype(self, dtype: torch.dtype) -> GPT:
        """Cast the matrices to ``dtype`` in place; tables, vectors and the head stay in float32."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not getattr(self, "lm_head", None):
                module.to(dtype)
        return self

    def forward(
        self,
        ids: Tensor,
        *,
        first_row: int = 0,
        cache: KVCache | None = None,
        fed_length: int | None = None,
    ) -> Tensor:
        """Return the soft-capped logits of rows ``first_row ..`` of a window.

        Without a cache all rows are computed, except that the last layer and the head skip rows before
        ``first_row``. With a cache, only rows from ``cache.length`` on are computed, and the cache grows by them.

        Args:
            ids: the window from its first row, ``[B, T]``.
            first_row: first row whose logits are wanted, at least ``cache.length``.
            cache: earlier rows of the same window.
            fed_length: length that rotary tables and the ``mean`` form of exclusive self-attention refer to; the
                length of ``ids`` unless a cache is used.

        Returns:
            float32 ``[B, T - first_row, vocab_size]``.
        """
        return self.head(self.hidden(ids, first_row=first_row, cache=cache, fed_length=fed_length))

    def hidden(
        self,
        ids: Tensor,
        *,
        first_row: int = 0,
        cache: KVCache | None = None,
        fed_length: int | None = None,
    ) -> Tensor:
        """Return the last hidden states before the final norm, ``[B, T - first_row, d]``; see :meth:`forward`."""
        computed = cache.length if cache is not None else 0
        fed_length = fed_length or ids.shape[1]
        x0 = self.embed(ids, first_row=computed)
        cos, sin = self._rotary(fed_length, ids.device)
        context = AttentionContext(
            cos=cos[computed : ids.shape[1]], sin=sin[computed : ids.shape[1]], fed_length=fed_length
        )
        x = self.run_blocks(
            x0,
            ids[:, computed:],
            context,
            first_query=first_row - computed,
            caches=cache.layers if cache is not None else None,
        )
        if cache is not None:
            cache.length = ids.shape[1]
        return x

    def run_blocks(
        self,
        x0: Tensor,
        ids: Tensor,
        context: AttentionContext,
        *,
        first_query: int = 0,
        caches: Sequence[Cache] | None = None,
    ) -> Tensor:
        """Run every layer over some rows.

        Args:
            x0: first hidden states of the rows, ``[B, rows, d]``.
            ids: the rows' tokens, ``[B, rows]``.
            context: rotary tables of the rows, and what else the layers share.
            first_query: rows before it are not needed from the last layer.
            caches: keys and values of earlier rows, one for each layer.

        Returns:
            ``[B, rows - first_query, d]``.
        """
        config = self.config
        if config.value_embed_layers:
            context.value_embedding = self.ve_shared(ids)
        x = x0
        skips: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if config.num_skips and layer >= config.num_encoder_layers and skips:
                weight = self.skip_weights[layer - config.num_encoder_layers].to(x.dtype)
                x = x + weight * skips.pop()
            x = block(
                x,
                x0,
                context,
                value_embedding_scale=self._value_embedding_scale(layer),
                first_query=first_query if layer == config.num_layers - 1 else 0,
                cache=caches[layer] if caches is not None else None,
            )
            if config.num_skips and layer < config.num_encoder_layers:
                skips.append(x)
        return x

    def embed(self, ids: Tensor, *, first_row: int = 0) -> Tensor:
        """Return x0 of rows ``first_row ..``: embeddings, hash features, norm and smear gate, ``[B, rows, d]``."""
        config = self.config
        left = max(first_row - LEFT_CONTEXT, 0)
        ids = ids[:, left:]
        e = self.tok_emb(ids).to(self.compute_dtype)
        if config.bigram_buckets:
            e = e + self.bigram(bigram_rows(ids, config.bigram_buckets))
        if config.trigram_buckets:
            e = e + self.trigram(trigram_rows(ids, config.trigram_buckets))
        x = rms_norm(e)
        if config.smear_gate:
            x = self.smear(x)
        return x[:, first_row - left :]

    def head_input(self, x: Tensor) -> Tensor:
        """Return what the head multiplies by its weight, float32 ``[..., d]``."""
        return rms_norm(x.float())

    def head(self, x: Tensor) -> Tensor:
        """Return soft-capped logits in float32, ``[..., vocab_size]``."""
        weight = self.tok_emb.weight if self.config.tie_embeddings else self.lm_head.weight
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(self.head_input(x), weight.float())
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.config.vocab_size

    def logits_from(self, ids: Tensor, first_row: int) -> Tensor:
        """Return the logits of rows ``first_row ..``; see :meth:`forward`."""
        return self.forward(ids, first_row=first_row)

    def step(self, ids: Tensor, state: Stepping | None) -> tuple[Tensor, Stepping]:
        """Return the logits of the token after ``ids``, float32 ``[B, 1, vocab_size]``, and what later steps need.

        Args:
            ids: the window's tokens since ``state``, ``[B, n]``.
            state: changed in place; None at the window's first token.
        """
        state = state or Stepping(ids[:, :0], KVCache(self.config.num_layers))
        state.ids = torch.cat([state.ids, ids], dim=1)
        last = state.ids.shape[1] - 1
        fed_length = max(self.fed_length, last + 1)
        return self.forward(state.ids, first_row=last, cache=state.cache, fed_length=fed_length), state

    def _value_embedding_scale(self, layer: int) -> Tensor | None:
        if layer not in self.config.value_embed_layers:
            return None
        scale: Tensor = self.ve_layer_scales[self.config.value_embed_layers.index(layer)]
        return scale

    def _rotary(self, fed_length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        key = (fed_length, device)
        if key not in self._rope_cache:
            with torch.inference_mode(False):  # gradients may be wanted from the same model later
                self._rope_cache[key] = rotary_tables(self.config, fed_length, device)
        return self._rope_cache[key]
