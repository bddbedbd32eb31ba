"""A recipe at a smaller size, with every feature still on."""

from __future__ import annotations

import dataclasses
import re

from evalkit.model.config import ModelConfig
from evalkit.plumbing.errors import InputError

_MIN_HEAD_DIM = 16
_MULTIPLE = 16


def parse_scale(text: str, config: ModelConfig) -> tuple[int, int]:
    """Return width and depth for ``0.25`` (of both) or ``128x4``.

    Raises:
        InputError: the text is neither, or the size is unusable.
    """
    sized = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if sized:
        width, depth = int(sized[1]), int(sized[2])
    else:
        try:
            fraction = float(text)
        except ValueError:
            fraction = 0.0
        if not 0.0 < fraction <= 4.0:
            raise InputError(
                f"scale {text!r} is unusable; expected a fraction such as 0.25 or WIDTHxDEPTH such as 128x4"
            )
        width, depth = _rounded(config.model_dim * fraction), max(2, round(config.num_layers * fraction))
    if width < _MIN_HEAD_DIM or width % _MULTIPLE or depth < 2:
        raise InputError(
            f"scale {text!r} asks for width {width} and {depth} layers; expected a multiple of {_MULTIPLE} "
            "and at least 2 layers"
        )
    return width, depth


def scale_model(config: ModelConfig, scale: str) -> ModelConfig:
    """Return ``config`` at another width and depth.

    Ratios are kept where they can be: MLP to width, query to key heads, rotated to all head dimensions,
    tables to width, the share of layers with exclusive self-attention, the share that is visited several
    times. Layers with value embeddings keep their distance from the last layer. No feature that is on is switched off.

    Raises:
        InputError: the scale is unusable; see :func:`parse_scale`.
    """
    width, depth = parse_scale(scale, config)
    ratio = width / config.model_dim
    group = config.num_heads // config.num_kv_heads
    heads = config.num_heads
    while heads > group and (width % heads or width // heads < _MIN_HEAD_DIM or (width // heads) % 2):
        heads -= group
    head_dim = width // heads
    rope_dims = 0
    if config.rope_dims:
        # Two rotated dimensions leave NTK's exponent dims / (dims - 2) undefined, hence four.
        rope_dims = min(max(4, 2 * round(config.rope_dims * head_dim / config.head_dim / 2)), head_dim)
    if config.xsa_last_n >= config.num_layers:
        xsa_last_n = depth
    else:
        xsa_last_n = min(depth, -(-config.xsa_last_n * depth // config.num_layers))
    from_end = sorted({max(depth - (config.num_layers - layer), 0) for layer in config.value_embed_layers})
    return dataclasses.replace(
        config,
        num_layers=depth,
        model_dim=width,
        num_heads=heads,
        num_kv_heads=heads // group,
        mlp_hidden=_rounded(config.mlp_hidden * ratio),
        rope_dims=rope_dims,
        xsa_last_n=xsa_last_n,
        value_embed_layers=tuple(from_end),
        layer_order=scale_order(config.layer_order, config.num_layers, depth),
        skip_rows=max(1, round(config.skip_rows * depth / config.num_layers)) if config.skip_rows else 0,
        parallel_start=min(round(config.parallel_start * depth / config.num_layers), depth - 1),
        smear_width=min(config.smear_width, width),
        attention_gate_width=min(config.attention_gate_width, width),
        value_embed_dim=_rounded(config.value_embed_dim * ratio),
        bigram_buckets=_table_rows(config.bigram_buckets, ratio),
        bigram_dim=_rounded(config.bigram_dim * ratio),
        trigram_buckets=_table_rows(config.trigram_buckets, ratio),
        trigram_dim=_rounded(config.trigram_dim * ratio),
    )


def scale_batch(batch_tokens: int, windows: int, seq_len: int, full: ModelConfig, scaled: ModelConfig) -> int:
    """Return the tokens of a step for a model at another size: as many for a weight of the blocks as before, at most.

    Args:
        batch_tokens: of the full-size model.
        windows: the step has at least so many, and a multiple of them: one for each micro-batch.
        seq_len: tokens of a window.
        full: the full-size model.
        scaled: the model that is trained.
    """
    ratio = min(scaled.model_dim**2 * scaled.num_layers / (full.model_dim**2 * full.num_layers), 1.0)
    smallest = max(windows * seq_len, 1)
    return min(max(1, round(batch_tokens * ratio / smallest)) * smallest, max(batch_tokens, smallest))


def scale_order(order: tuple[int, ...], layers: int, depth: int) -> tuple[int, ...]:
    """Return an order with one repeated run of blocks for another number of blocks.

    Raises:
        InputError: the order is of another kind.
    """
    if not order or depth == layers:
        return order
    repeated = [layer for layer in order if order.count(layer) > 1] or [0]
    first, last = min(repeated), max(repeated)
    visits = order.count(first)
    if order != _repeated(first, last, visits, layers):
        raise InputError(
            "train: --scale cannot scale model.layer_order, since it is not 0, 1, 2, ... with one run of blocks "
            f"repeated; scale the width alone (WIDTHx{layers}), or start from a recipe without an order"
        )
    scaled_first = first * depth // layers
    return _repeated(scaled_first, max(scaled_first, -(-(last + 1) * depth // layers) - 1), visits, depth)


def _repeated(first: int, last: int, visits: int, layers: int) -> tuple[int, ...]:
    """Return 0 .. layers - 1 with the run from ``first`` to ``last`` visited so many times."""
    return (*range(first), *[*range(first, last + 1)] * visits, *range(last + 1, layers))


def _rounded(value: float) -> int:
    return max(_MULTIPLE, _MULTIPLE * round(value / _MULTIPLE))


def _table_rows(rows: int, ratio: float) -> int:
    return max(64, round(rows * ratio)) if rows else 0
