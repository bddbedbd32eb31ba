"""The streaming forecaster: keys and values are kept, so that a token costs one forward pass and not seq_len / stride.

This is another estimator than the sliding window, with its own number: what a layer keeps of a token was computed with
that token's whole context, so information reaches further back than one window, and the model meets states that it was
not trained on. It is as legal as the sliding window, since every row depends on earlier tokens alone.

The stream is cut into blocks. A block attends to itself (causally), to the last tokens before it, and to the first
tokens of the stream, which models use as a place to attend to when they have nothing to attend to ("attention sinks",
Xiao et al., 2023). Distances never leave the range of a window: sinks are moved along so that they stand right before
the oldest token kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evalkit.model.attention import AttentionContext, has_flash
from evalkit.model.cache import Cache
from evalkit.model.gpt import GPT, LEFT_CONTEXT
from evalkit.model.rope import rotary_tables, rotate
from evalkit.plumbing.settings import require
from evalkit.prequential.forecaster import Nats, Tokens
from evalkit.prequential.sliding import nats_of, one_thread_each
from evalkit.prequential.wavefront import Lane, LaneCache


@dataclass(frozen=True, kw_only=True)
class StreamingConfig:
    """How much is kept, and how much is computed at a time.

    Attributes:
        seq_len: inputs that a position sees at most, itself and sinks included, in tokens; also the length that
            length-dependent features of the model are told.
        block: positions computed at a time; a position sees at least ``seq_len - block`` tokens.
        sinks: first tokens of the stream that stay visible.
        device: ``cpu`` or ``cuda``.
        dtype: ``float32`` or ``bfloat16``.
        threads: CPU threads; 0 means as many as torch uses.
    """

    seq_len: int = 2048
    block: int = 256
    sinks: int = 4
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 0

    def __post_init__(self) -> None:
        require(self.sinks >= 0, "streaming.sinks", self.sinks, "0 or more")
        fits = 1 <= self.block <= self.seq_len - self.sinks
        expected = f"1 to the window of {self.seq_len} less {self.sinks} sinks"
        require(fits, "streaming.block", self.block, expected)


class StreamingForecaster:
    """Scores a stream block by block with a rolling cache; learns nothing but keeps keys and values."""

    def __init__(self, model: GPT, config: StreamingConfig) -> None:
        self.config = config
        self.device = torch.device(config.device)
        self.model = model.to(self.device).to_compute_dtype(getattr(torch, config.dtype))
        self.vocab_size = model.config.vocab_size
        self._caches = [RollingCache(model, config, self.device) for _ in model.config.passes]
        self._next_block = 0

    def score(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return the nats of positions ``[start, stop)``, float64."""
        return nats_of(self.logits(tokens, start, stop), tokens, start, stop, self.device)

    def distribution(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return log-probabilities of every token, float64 ``[stop - start, vocab_size]``."""
        rows = [torch.log_softmax(logits.double(), -1).cpu().numpy() for *_, logits in self.logits(tokens, start, stop)]
        return np.concatenate(rows)

    def next_logits(self, prefix: Tokens) -> Tensor:
        """Return the logits of the token after ``prefix``, ``[1, vocab_size]``."""
        position = len(prefix)
        *_, (_, _, logits) = self.logits(np.append(prefix, 0), position, position + 1)
        return logits[-1:]

    def logits(self, tokens: Tokens, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield ``(first, last, logits)`` for pieces of ``[start, stop)``, in order."""
        for cache in self._caches:
            cache.rewind()
        size = self.config.block
        first_block, last_block = (start - 1) // size, (stop - 2) // size
        # Complete blocks that no observe has kept yet are computed again.
        blocks = range(min(self._next_block, first_block), last_block + 1)
        for block, logits in zip(blocks, self._run(tokens, blocks), strict=True):
            if block >= first_block:
                first, last = max(start, block * size + 1), min((block + 1) * size + 1, stop)
                yield first, last, logits[first - 1 - block * size : last - 1 - block * size]

    def observe(self, tokens: Tokens, start: int, stop: int) -> None:
        """Keep the keys and values of the blocks that are complete."""
        complete = (stop - 1) // self.config.block
        for cache in self._caches:
            cache.keep(complete - self._next_block)
        self._next_block = complete

    def _run(self, tokens: Tokens, blocks: range) -> Iterator[Tensor]:
        """Yield the logits of blocks that follow one another; on a CPU, threads take a block each, in a wavefront."""
        if self.device.type != "cpu":
            yield from (self._compute(tokens, block, self._caches) for block in blocks)
            return
        lanes: list[Lane] = []
        for _ in blocks:
            lanes.append(Lane(lanes[-1] if lanes else None))

        def compute(block: int, lane: Lane) -> Tensor:
            caches = [LaneCache(cache, lane, number) for number, cache in enumerate(self._caches)]
            try:
                return self._compute(tokens, block, caches)
            finally:
                lane.finish()

        with one_thread_each(self.config.threads) as threads, ThreadPoolExecutor(threads) as pool:
            yield from pool.map(compute, blocks, lanes)

    @torch.no_grad()
    def _compute(self, tokens: Tokens, block: int, caches: Sequence[Cache]) -> Tensor:
        """Return the logits of every row of a block, ``[block, vocab_size]``; rows past the tokens are padding."""
        size = self.config.block
        begin = block * size
        left = min(begin, LEFT_CONTEXT)
        ids = np.zeros((1, left + size), dtype=np.int64)
        # The last token handed over is only ever a target here, so it is not fed.
        visible = np.asarray(tokens[begin - left : min(begin + size, len(tokens) - 1)], dtype=np.int64)
        ids[0, : len(visible)] = visible
        padded = torch.from_numpy(ids).to(self.device)
        positions = torch.arange(begin, begin + size, dtype=torch.float64)
        cos, sin = rotary_tables(self.model.config, self.config.seq_len, self.device, positions)
        x0 = self.model.embed(padded, first_row=left)
        flash = has_flash(self.device, x0.dtype, self.model.config.head_dim)
        context = AttentionContext(cos=cos, sin=sin, fed_length=self.config.seq_len, flash=flash)
        hidden = self.model.run_blocks(x0, padded[:, left:], context, caches=caches)
        logits: Tensor = self.model.head(hidden)[0]
        return logits


class RollingCache:
    """Keys and values of one pass through a block: the sinks, and the last tokens before the block that is computed.

    Keys lie in one buffer, rotated to their positions in the stream. A block's keys are written behind the last; the
    slots before the oldest key that is visible take the sinks, for as long as the block is computed.
    """

    def __init__(self, model: GPT, config: StreamingConfig, device: torch.device) -> None:
        self._model_config = model.config
        self._config = config
        self._device = device
        self._window = config.seq_len - config.block - config.sinks
        heads, width = model.config.num_kv_heads, model.config.head_dim
        capacity = config.sinks + 2 * (self._window + config.seq_len)
        self._buffer = torch.zeros(2, 1, heads, capacity, width, dtype=getattr(torch, config.dtype), device=device)
        self._sinks = torch.zeros(2, 1, heads, config.sinks, width, dtype=self._buffer.dtype, device=device)
        self._end = config.sinks  # slot behind the last kept key
        self._kept = 0  # tokens of the stream that are kept or were
        self._pending = 0  # tokens written behind ``_end`` since the last ``keep``
        self._covered: tuple[int, Tensor] | None = None  # first slot that sinks lie on, and what lay there

    def rewind(self) -> None:
        """Forget what was written since the last :meth:`keep`."""
        self._uncover()
        self._pending = 0

    def keep(self, blocks: int) -> None:
        """Keep the first ``blocks`` blocks written since the last time, and forget the others."""
        self._uncover()
        added = blocks * self._config.block
        self._end += added
        self._kept += added
        self._pending = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a block's keys and values, ``[1, K, block, D]``; return those that it may attend to."""
        self._uncover()
        size, sinks = self._config.block, self._config.sinks
        if self._end + self._pending + size > self._buffer.shape[3]:
            self._make_room(size)
        begin = self._end + self._pending
        self._buffer[0, :, :, begin : begin + size] = keys
        self._buffer[1, :, :, begin : begin + size] = values
        before = self._kept + self._pending  # tokens of the stream before this block
        if before == 0:
            take = min(sinks, size)
            self._sinks[0, :, :, :take], self._sinks[1, :, :, :take] = keys[:, :, :take], values[:, :, :take]
        self._pending += size
        if before <= self._window + sinks:
            # Nothing has been dropped: the sinks are where they were.
            first = begin - before
        else:
            first = begin - self._window - sinks
            self._place_sinks(first, shift=before - self._window - sinks)
        visible = self._buffer[:, :, :, first : begin + size]
        return visible[0], visible[1]

    def _place_sinks(self, first: int, *, shift: int) -> None:
        """Put the sinks into the slots from ``first`` on, rotated ``shift`` positions further."""
        sinks = self._config.sinks
        if not sinks:
            return
        moved = torch.full((1,), float(shift), dtype=torch.float64)
        cos, sin = rotary_tables(self._model_config, self._config.seq_len, self._device, moved)
        dtype = self._buffer.dtype
        # Turning by the shift in float32: sinks are rotated from the original each time, so errors do not add up.
        self._covered = first, self._buffer[:, :, :, first : first + sinks].clone()
        turned = rotate(self._sinks[0].float(), cos, sin).to(dtype)
        self._buffer[0, :, :, first : first + sinks] = turned
        self._buffer[1, :, :, first : first + sinks] = self._sinks[1]

    def _uncover(self) -> None:
        """Put back the keys that sinks were laid over: a span that is scored again needs them."""
        if self._covered is not None:
            first, original = self._covered
            self._buffer[:, :, :, first : first + self._config.sinks] = original
            self._covered = None

    def _make_room(self, size: int) -> None:
        """Move what may still be seen to the front, of a larger buffer if a long span is pending."""
        last = self._end + self._pending
        span = min(self._window + self._config.sinks + self._pending, last)
        moved = self._buffer[:, :, :, last - span : last].clone()
        if span + size > self._buffer.shape[3]:
            *outer, capacity, width = self._buffer.shape
            self._buffer = self._buffer.new_zeros(*outer, max(2 * capacity, span + size), width)
        self._buffer[:, :, :, :span] = moved
        self._end = span - self._pending
