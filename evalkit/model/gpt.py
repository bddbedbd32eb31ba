"""A GPT whose features a frozen configuration switches on, each by itself.

A token's way to its logits, and the features that it may meet there:

- embedding: bigram and trigram hash tables, a smear with a learned factor, the norm, a table of token pairs that only
  test-time training fills, a smear gate;
- the order of the blocks, which may repeat some: U-Net skips from the first half of the visits to the second, added or
  blended in by gates;
- a block (:mod:`evalkit.model.block`): residual mixing with the first hidden state, a scale by depth, attention
  (:mod:`evalkit.model.attention`: partial RoPE, grouped queries, exclusive self-attention, value embeddings, value
  residual, output gates), an MLP with a squared (leaky) relu, an injection of the first hidden state; one after the
  other, jointly, or in two lanes;
- head: the norm, a tied or an untied matrix, a soft cap.

Each is described in :class:`evalkit.model.config.ModelConfig`. B batch, T or rows tokens, d model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.model.attention import AttentionContext, has_flash, rms_norm
from evalkit.model.block import Block, Lanes, Routes, Visit
from evalkit.model.cache import Cache, KVCache
from evalkit.model.config import ModelConfig
from evalkit.model.embedding import ScaledEmbedding, SmearGate, WindowSmear
from evalkit.model.hashing import ngram_rows, pair_rows
from evalkit.model.regions import EAGER, Regions
from evalkit.model.rope import rotary_tables

LEFT_CONTEXT = 3
"""Tokens before a row that its embedding depends on: two for the trigram hash, one more through the smear gate."""


def head_name(config: ModelConfig) -> str:
    """Return the name of the module whose weight the head multiplies by."""
    return "tok_emb" if config.tie_embeddings else "lm_head"


# The parts of a forward pass that are compiled one by one; see :mod:`evalkit.model.regions`.


def run_embedding(model: GPT, ids: Tensor, first_row: int) -> Tensor:
    """See :meth:`GPT.embed`."""
    return model.embed(ids, first_row=first_row)


def run_module(module: nn.Module, *inputs: Any) -> Tensor:
    """Call a module: a block, or the value embedding."""
    result: Tensor = module(*inputs)
    return result


def run_lanes(block: Block, lanes: Lanes, x0: Tensor, visit: Visit, routes: Routes | None) -> Lanes:
    """See :meth:`Block.forward_lanes`."""
    return block.forward_lanes(lanes, x0, visit, routes)


def run_head(model: GPT, x: Tensor) -> Tensor:
    """See :meth:`GPT.head`."""
    return model.head(x)


def add_skip(x: Tensor, skip: Tensor, weight: Tensor, gate: Tensor | None) -> Tensor:
    """Add an encoder's output ``[B, rows, d]`` to the stream by a weight ``[d]``, or blend it in by a gate ``[d]``."""
    weighted = weight.to(x.dtype) * skip
    if gate is None:
        return x + weighted
    gate = torch.sigmoid(gate.to(x.dtype))
    return gate * x + (1 - gate) * weighted


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
            self.bigram = ScaledEmbedding(config.bigram_buckets, config.bigram_dim, d, scale=0.05)
        if config.trigram_buckets:
            self.trigram = ScaledEmbedding(config.trigram_buckets, config.trigram_dim, d, scale=0.03)
        if config.smear_gate:
            self.smear = SmearGate(d)
        if config.smear_width:
            self.smear_gate = WindowSmear(config.smear_width, config.smear_reset_token)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.pair_buckets:
            self.pair = nn.Embedding(config.pair_buckets, d, _weight=torch.zeros(config.pair_buckets, d))
        if config.value_embed_layers:
            self.ve_shared = ScaledEmbedding(config.vocab_size, config.value_embed_dim, config.kv_dim, scale=0.1)
            self.ve_layer_scales = nn.ParameterList(torch.ones(1) for _ in config.value_embed_layers)
        if config.num_skips:
            self.skip_weights = nn.Parameter(torch.ones(config.num_skips, d))
            if config.skip_gates:
                self.skip_gates = nn.Parameter(torch.zeros(config.num_skips, d))
        if config.parallel_form in ("lanes", "lanes_dead_skips"):
            self.lane_merge = nn.Parameter(torch.tensor(0.5))
        if config.is_routed:
            self.parallel_resid_lambdas = nn.Parameter(torch.full((config.num_layers, 2), 1.1))
            self.parallel_post_lambdas = nn.Parameter(torch.ones(config.num_layers, 2, 2))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(d, config.vocab_size, bias=False)
        self._rope_cache: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self._scale_cache: dict[torch.device, list[Tensor]] = {}

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
        how: Regions = EAGER,
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
            how: whether embedding, blocks and head run as they are written, or compiled.

        Returns:
            float32 ``[B, T - first_row, vocab_size]``.
        """
        x = self.hidden(ids, first_row=first_row, cache=cache, fed_length=fed_length, how=how)
        return how(run_head)(self, x)

    def hidden(
        self,
        ids: Tensor,
        *,
        first_row: int = 0,
        cache: KVCache | None = None,
        fed_length: int | None = None,
        how: Regions = EAGER,
    ) -> Tensor:
        """Return the last hidden states before the final norm, ``[B, T - first_row, d]``; see :meth:`forward`."""
        computed = cache.length if cache is not None else 0
        fed_length = fed_length or ids.shape[1]
        x0 = how(run_embedding)(self, ids, computed)
        cos, sin = self._rotary(fed_length, ids.device)
        partial = first_row > computed or cache is not None
        context = AttentionContext(
            cos=cos[computed : ids.shape[1]],
            sin=sin[computed : ids.shape[1]],
            fed_length=fed_length,
            flash=partial and has_flash(ids.device, x0.dtype, self.config.head_dim),
        )
        x = self.run_blocks(
            x0,
            ids[:, computed:],
            context,
            first_query=first_row - computed,
            caches=cache.passes if cache is not None else None,
            how=how,
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
        how: Regions = EAGER,
    ) -> Tensor:
        """Visit the blocks, in their order, with some rows.

        Args:
            x0: first hidden states of the rows, ``[B, rows, d]``.
            ids: the rows' tokens, ``[B, rows]``.
            context: rotary tables of the rows, and what else the visits share.
            first_query: rows before it are not needed from the last visit.
            caches: keys and values of earlier rows, one for each visit.
            how: see :meth:`forward`.

        Returns:
            ``[B, rows - first_query, d]``.
        """
        config = self.config
        if config.value_embed_layers:
            context.value_embedding = how(run_module)(self.ve_shared, ids)
        scales = self._norm_scales(x0.device) if how.compiled and config.ln_scale else None
        # Views, so that no part meets the same tensor twice: a compilation for that serves nothing else.
        x: Tensor = x0.view_as(x0)  # the stream
        lane: Tensor | None = None  # the MLP's lane, once it has split off
        skips: list[Tensor] = []
        for number, layer in enumerate(config.passes):
            block = cast(Block, self.blocks[layer])
            row = number - config.encoder_passes
            splits = config.has_lanes and lane is None and layer >= config.parallel_start
            splits = splits and (row >= 0 or config.is_routed)
            if splits and config.parallel_form == "routed_late_skip":
                lane = x
            if 0 <= row < config.num_skips and skips:
                skip = skips.pop()
                if lane is None or config.parallel_form != "lanes_dead_skips":
                    gate = self.skip_gates[row] if config.skip_gates else None
                    x = how(add_skip)(x, skip, self.skip_weights[row], gate)
            if splits and lane is None:
                lane = x
            visit = Visit(
                context=context,
                value_embedding_scale=self._value_embedding_scale(layer),
                first_query=first_query if number == len(config.passes) - 1 else 0,
                cache=caches[number] if caches is not None else None,
                norm_scale=scales[layer] if scales is not None else None,
            )
            if lane is None:
                x = how(run_module)(block, x, x0, visit)
            else:
                x, lane = how(run_lanes)(block, (x, lane), x0, visit, self._routes(layer, x.dtype))
            if row < 0 and config.num_skips:
                skips.append(x.view_as(x))
        return x if lane is None else self._merge(x, lane)

    def _routes(self, layer: int, dtype: torch.dtype) -> Routes | None:
        if not self.config.is_routed:
            return None
        return self.parallel_resid_lambdas[layer].to(dtype), self.parallel_post_lambdas[layer].to(dtype)

    def _merge(self, x: Tensor, lane: Tensor) -> Tensor:
        """Return one stream of two lanes: their mean, or a learned blend."""
        weight = 0.5 if self.config.is_routed else self.lane_merge.to(x.dtype)
        return weight * x + (1 - weight) * lane

    def embed(self, ids: Tensor, *, first_row: int = 0) -> Tensor:
        """Return x0 of rows ``first_row ..``: embeddings, hash features, norm and smear gate, ``[B, rows, d]``."""
        config = self.config
        left = max(first_row - LEFT_CONTEXT, 0)
        ids = ids[:, left:]
        e = self.tok_emb(ids).to(self.compute_dtype)
        if config.bigram_buckets:
            e = e + self.bigram(ngram_rows(ids, 2, config.bigram_buckets))
        if config.trigram_buckets:
            e = e + self.trigram(ngram_rows(ids, 3, config.trigram_buckets))
        if config.smear_width:
            e = self.smear_gate(e, ids, self.smear_lambda)
        x = rms_norm(e)
        if config.pair_buckets:
            x = x + self.pair(pair_rows(ids, config.pair_buckets)).to(x.dtype)
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

    def logits_from(self, ids: Tensor, first_row: int, how: Regions = EAGER) -> Tensor:
        """Return the logits of rows ``first_row ..``; see :meth:`forward`."""
        return self.forward(ids, first_row=first_row, how=how)

    def step(self, ids: Tensor, state: Stepping | None) -> tuple[Tensor, Stepping]:
        """Return the logits of the token after ``ids``, float32 ``[B, 1, vocab_size]``, and what later steps need.

        Args:
            ids: the window's tokens since ``state``, ``[B, n]``.
            state: changed in place; None at the window's first token.
        """
        state = state or Stepping(ids[:, :0], KVCache(len(self.config.passes)))
        state.ids = torch.cat([state.ids, ids], dim=1)
        last = state.ids.shape[1] - 1
        fed_length = max(self.fed_length, last + 1)
        return self.forward(state.ids, first_row=last, cache=state.cache, fed_length=fed_length), state

    def _value_embedding_scale(self, layer: int) -> Tensor | None:
        if layer not in self.config.value_embed_layers:
            return None
        scale: Tensor = self.ve_layer_scales[self.config.value_embed_layers.index(layer)]
        return scale

    def _norm_scales(self, device: torch.device) -> list[Tensor]:
        """Return each block's factor of its normed inputs as a tensor without dimensions."""
        if device not in self._scale_cache:
            with torch.inference_mode(False):
                blocks = cast(Sequence[Block], self.blocks)
                self._scale_cache[device] = [torch.tensor(block.norm_scale, device=device) for block in blocks]
        return self._scale_cache[device]

    def _rotary(self, fed_length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        key = (fed_length, device)
        if key not in self._rope_cache:
            with torch.inference_mode(False):  # gradients may be wanted from the same model later
                self._rope_cache[key] = rotary_tables(self.config, fed_length, device)
        return self._rope_cache[key]
