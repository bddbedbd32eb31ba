"""The sliding-window forecaster: a frozen network that sees at most ``seq_len`` tokens before each position.

With ``document_token`` its windows end where a document ends, which is another estimator: a document's first tokens are
scored with nothing before them, as a model meets them that is used on one text, and a document that fits into a window
costs one forward pass, since all its positions have the whole document before them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from evalkit.model.config import ModelConfig
from evalkit.model.gpt import GPT
from evalkit.model.kernels import AttentionKernel, fastest_attention
from evalkit.network.network import Network
from evalkit.plumbing.hardware import require_device
from evalkit.plumbing.log import LOG
from evalkit.plumbing.ranks import Ranks
from evalkit.plumbing.settings import require
from evalkit.prequential.forecaster import Nats, Tokens
from evalkit.prequential.transfer import HostCopy, mapped_ahead, to_device
from evalkit.prequential.windows import WindowSpan, document_start, plan_documents, plan_windows, window_of

_CPU_LOGITS = 1 << 22
"""Logits held of one batch on a CPU, where a model is not computed by one thread a window: 16 MiB."""

_CPU_BATCH = 32
"""Windows at a time on a CPU, where a model is not computed by one thread a window, if their logits fit."""

_FULL_BATCH_TOKENS = 1 << 19
"""Tokens of a batch that fills any GPU; larger ones are no faster."""

_SHARE_OF_MEMORY = 0.7
"""Part of a GPU's free memory that a batch may take: compiled code lays its memory out in another way."""

SPAN_WINDOWS = 4096
"""Windows of a span on a GPU: many batches, so that there is always a next one."""

_GPU_LOGITS = 1 << 28
"""Logits held of one batch of documents on a GPU: 1 GiB."""

MAX_SEQ_LEN = 1 << 17
"""Longest window in tokens: shorter streams are padded to it, so a slip of the keyboard would ask for all memory."""


@dataclass(frozen=True, kw_only=True)
class SlidingConfig:
    """How the windows are laid and computed.

    Attributes:
        seq_len: inputs of a window, in tokens. Shorter windows are padded on the right to this length, since some
            models' logits depend on the length that is fed.
        stride: distance between windows, in tokens.
        batch_windows: windows computed at a time on a GPU; 0 takes as many as fill it. A CPU takes one window a thread,
            which is as fast and makes the scores independent of batches, spans and the number of threads, bit for bit.
        device: ``cpu`` or ``cuda``.
        dtype: ``float32`` or ``bfloat16``: the matrices; the head is float32 and the losses float64 always. ``own``
            leaves a user's module as its factory made it.
        compile: have ``torch.compile`` fuse the forward pass of batches, whose shapes never change.
        threads: CPU threads; 0 means as many as torch uses.
        document_token: the token that opens a document, none of which is seen from another; None takes the stream as
            one text. Windows are then laid in each document anew.
    """

    seq_len: int = 2048
    stride: int = 64
    batch_windows: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    threads: int = 0
    document_token: int | None = None

    def __post_init__(self) -> None:
        require(1 <= self.seq_len <= MAX_SEQ_LEN, "--seq-len", self.seq_len, f"1 to {MAX_SEQ_LEN} tokens")
        fits = 1 <= self.stride <= self.seq_len
        require(fits, "--stride", self.stride, f"1 to --seq-len, which is {self.seq_len}")
        require(self.batch_windows >= 0, "--batch-windows", self.batch_windows, "0 (as many as fit) or more")
        known = self.dtype in ("float32", "bfloat16", "own")
        require(known, "--dtype", repr(self.dtype), "float32 or bfloat16")
        require(self.threads >= 0, "--threads", self.threads, "0 (all) or more")
        require_device(self.device)


@dataclass
class _Stepping:
    """A window that is being extended token by token."""

    window_start: int
    inputs: npt.NDArray[np.int64]
    state: Any


class SlidingForecaster:
    """Scores every position with the first window that reaches it; learns nothing.

    Args:
        model: moved to the device and rounded to the type of the configuration; any model behind a
            :class:`~evalkit.network.network.Network`, or evalkit's own.
        config: windows and precision.
        ranks: the processes that share the windows; each of them gets all logits, in the order of the stream.
    """

    def __init__(self, model: GPT | Network, config: SlidingConfig, ranks: Ranks | None = None) -> None:
        self.config = config
        self.ranks = ranks or Ranks()
        self.device = torch.device(config.device)
        self.network = placed(model, config)
        self.vocab_size = self.network.vocab_size
        self.kernel: AttentionKernel | None = None
        if isinstance(own := self.network.model, GPT):
            self.kernel = fastest_attention(
                own.config, seq_len=config.seq_len, device=self.device, dtype=own.compute_dtype
            )
        self._compiled = self.network.compiled() if config.compile else self.network
        self._stepping: _Stepping | None = None

    @property
    def module(self) -> nn.Module:
        """The torch module, whose weights test-time training replaces.

        Raises:
            InputError: the model is no torch module.
        """
        return self.network.require_module("--ttt")

    def score(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return the nats of positions ``[start, stop)``, float64."""
        return nats_of(self.logits(tokens, start, stop), tokens, start, stop, self.device)

    def observe(self, tokens: Tokens, start: int, stop: int) -> None:
        """Learn nothing."""

    def report(self) -> dict[str, Any]:
        """Return which attention kernel was chosen, where there was a choice."""
        return {} if self.kernel is None else {"attention": str(self.kernel)}

    def distribution(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return log-probabilities of every token at positions ``[start, stop)``, float64 ``[n, vocab_size]``."""
        rows = np.empty((stop - start, self.vocab_size))
        for first, last, logits in self.logits(tokens, start, stop):
            rows[first - start : last - start] = torch.log_softmax(logits.double(), dim=-1).cpu().numpy()
        return rows

    def next_logits(self, prefix: Tokens) -> Tensor:
        """Return the logits that predict the token after ``prefix``, float32 ``[1, vocab_size]``.

        Positions asked for one after another share the keys and values of their window, as a decoder needs: its own
        floats differ from those of :meth:`logits` in the last digits, and are the same for encoder and decoder.
        """
        position = len(prefix)
        origin = self.context_start(prefix, position)
        window_start = window_of(position, self.config.seq_len, self.config.stride, origin=origin)
        inputs = np.asarray(prefix[window_start:], dtype=np.int64)
        if not self.network.can_step:
            window = WindowSpan(window_start, position, position + 1, origin)
            with torch.inference_mode(), self._attention():
                return self._compute(prefix, [window])
        cached, count, state = self._stepping, 0, None
        if cached is not None and cached.window_start == window_start:
            known = len(cached.inputs)  # fewer than now: a state cannot be taken back by a token
            if known < len(inputs) and np.array_equal(cached.inputs, inputs[:known]):
                count, state = known, cached.state
        new = torch.from_numpy(inputs[count:])[None].to(self.device)
        with torch.inference_mode(), self._attention(), one_thread_each(self.config.threads):
            logits, state = self.network.step(new, state)
        self._stepping = _Stepping(window_start, inputs, state)
        return logits

    def next_distribution(self, prefix: Tokens) -> Nats:
        """Return log-probabilities of the token after ``prefix``, float64 ``[vocab_size]``; see :meth:`next_logits`."""
        row: Nats = torch.log_softmax(self.next_logits(prefix)[0].double(), dim=-1).cpu().numpy()
        return row

    def forget(self) -> None:
        """Drop keys and values kept by :meth:`next_logits`: the weights have changed."""
        self._stepping = None

    def logits(self, tokens: Tokens, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield ``(first, last, logits)``: soft-capped logits, float32 ``[last - first, vocab_size]``, in order.

        ``logits[p - first]`` predicts ``tokens[p]`` from the tokens before it.
        """
        batches = list(self._batches(tokens, start, stop))
        if self.ranks.count == 1:
            for batch, logits in zip(batches, self._run(tokens, batches), strict=True):
                yield batch[0].start, batch[-1].stop, logits
            return
        like = torch.empty(0, self.vocab_size, device=self.device)
        # As many batches at a time as keep the threads busy and the gathered logits small.
        size = self.ranks.count * (4 * (self.config.threads or torch.get_num_threads()) if self._on_cpu else 1)
        for i in range(0, len(batches), size):
            group = batches[i : i + size]
            counts = [batch[-1].stop - batch[0].start for batch in group]
            pieces = self.ranks.share(counts, partial(self._run_slice, tokens, group), like)
            for batch, logits in zip(group, pieces, strict=True):
                yield batch[0].start, batch[-1].stop, logits

    def _run_slice(self, tokens: Tokens, batches: list[list[WindowSpan]], own: range) -> Iterator[Tensor]:
        return self._run(tokens, batches[own.start : own.stop])

    @property
    def _on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def _run(self, tokens: Tokens, batches: list[list[WindowSpan]]) -> Iterator[Tensor]:
        """Yield the logits of each batch, in order; on a CPU, threads take a batch each where the model allows it."""
        held = None
        if not self._on_cpu and batches:
            held = HeldTokens(tokens, batches[0][0].window_start, batches[-1][-1].stop - 1, self.device)

        def compute(batch: list[WindowSpan]) -> Tensor:
            with torch.inference_mode(), self._attention():
                return self._compute(tokens, batch, held)

        if self._in_threads:
            with one_thread_each(self.config.threads) as threads, ThreadPoolExecutor(threads) as pool:
                yield from mapped_ahead(pool, compute, batches, 2 * threads)
        else:
            yield from map(compute, batches)

    def window_logits(self, tokens: Tokens, windows: list[WindowSpan]) -> Tensor:
        """Return the logits of every row of some windows, float32 ``[len(windows), seq_len, vocab_size]``."""
        with (
            torch.inference_mode(),
            one_thread_each(self.config.threads) as threads,
            ThreadPoolExecutor(threads) as pool,
        ):

            def compute(window: WindowSpan) -> Tensor:
                with torch.inference_mode(), self._attention():
                    ids = gather_windows(tokens, [window], self.config.seq_len)
                    return self.network.logits(torch.from_numpy(ids).to(self.device))

            return torch.cat(list(pool.map(compute, windows)))

    def _compute(self, tokens: Tokens, batch: list[WindowSpan], held: HeldTokens | None = None) -> Tensor:
        """Return the logits of the positions that a batch of windows scores, ``[positions, vocab_size]``."""
        seq_len = self.config.seq_len if self.network.pads else _fed_length(batch[0])
        # All rows of a first window, the last stride of others: the same shapes wherever a span happens to end.
        first = batch[0].is_first
        first_row = 0 if first else self.config.seq_len - self.config.stride
        # A compilation is for one shape, which a stream's first window is not worth. What is left at the end of a span
        # is filled up with repetitions if that is less work than to compute it as the code is written.
        size = self._batch_size(first=first)
        alone = first and self.config.document_token is None
        full = 2 * len(batch) >= size and not alone and seq_len == self.config.seq_len
        network = self._compiled if full else self.network
        fed = batch + [batch[-1]] * (size - len(batch) if network is not self.network else 0)
        if held is not None:
            ids = held.windows(fed, seq_len)
        else:
            ids = to_device(gather_windows(tokens, fed, seq_len), self.device)
        logits = network.logits(ids, first_row)
        pieces = [
            logits[b, span.first_row - first_row : span.stop - 1 - span.window_start - first_row]
            for b, span in enumerate(batch)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _attention(self) -> AbstractContextManager[object]:
        return nullcontext() if self.kernel is None else self.kernel.active()

    @property
    def _in_threads(self) -> bool:
        """Whether windows are computed side by side, one thread each; else one batch after another, on all threads."""
        return self._on_cpu and self.network.thread_safe

    def _batch_size(self, *, first: bool) -> int:
        """Return how many windows are computed at a time: first ones, whose rows are all wanted, or later ones."""
        if self._in_threads:
            return 1
        most = self._filling_batch if not self._on_cpu else self.config.batch_windows or _CPU_BATCH
        if not self._on_cpu and not first:
            return most
        logits = _CPU_LOGITS if self._on_cpu else _GPU_LOGITS
        return max(1, min(most, logits // (self.config.seq_len * self.vocab_size)))

    @cached_property
    def _filling_batch(self) -> int:
        """Windows that fill a GPU, the same on every rank."""
        if self.config.batch_windows:
            return self.config.batch_windows
        if self.device.type != "cuda":
            return _CPU_BATCH
        free, each = self._memory()
        fitting = windows_that_fit(free, each, self.config.seq_len)
        LOG.debug("batch: %d windows of %.1f MB, with %.1f GB free", fitting, each / 1e6, free / 1e9)
        return -int(self.ranks.largest(-float(fitting))[0])

    def _memory(self) -> tuple[int, int]:
        """Return the bytes that are free on the GPU, and those that a window takes while it is computed."""
        count, seq_len = 2, self.config.seq_len
        ids = torch.zeros(count, seq_len, dtype=torch.int64, device=self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        with torch.inference_mode(), self._attention():
            self.network.logits(ids, seq_len - self.config.stride)
        taken = torch.cuda.max_memory_allocated(self.device) - before
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + unused, max(1, taken // count)

    def context_start(self, tokens: Tokens, position: int) -> int:
        """Return the index of the first token that ``position`` may depend on: the stream's, or its document's."""
        opening = self.config.document_token
        return 0 if opening is None else document_start(tokens, opening, position)

    def _windows(self, tokens: Tokens, start: int, stop: int) -> Iterator[WindowSpan]:
        seq_len, stride, opening = self.config.seq_len, self.config.stride, self.config.document_token
        if opening is None:
            return plan_windows(start, stop, seq_len, stride)
        return plan_documents(tokens, opening, start, stop, seq_len, stride)

    def _batches(self, tokens: Tokens, start: int, stop: int) -> Iterator[list[WindowSpan]]:
        """Group consecutive windows that can be computed together into batches."""
        batch: list[WindowSpan] = []
        for span in self._windows(tokens, start, stop):
            if batch and (
                len(batch) == self._batch_size(first=batch[0].is_first)
                or span.is_first != batch[0].is_first
                or (not self.network.pads and _fed_length(batch[0]) != _fed_length(span))
            ):
                yield batch
                batch = []
            batch.append(span)
        if batch:
            yield batch


class HeldTokens:
    """A piece of a stream, ``tokens[first:stop]``, on the device, from which windows are gathered there."""

    def __init__(self, tokens: Tokens, first: int, stop: int, device: torch.device) -> None:
        self._first, self._device = first, device
        self._tokens = to_device(np.array(tokens[first:stop], dtype=np.int64), device)

    def windows(self, windows: list[WindowSpan], seq_len: int) -> Tensor:
        """Return what :func:`gather_windows` does, on the device."""
        bounds = np.array([(span.window_start, span.stop - 1) for span in windows], dtype=np.int64) - self._first
        starts, stops = to_device(bounds, self._device).unbind(1)
        index = starts[:, None] + torch.arange(seq_len, device=self._device)
        inputs = self._tokens[index.clamp_max(len(self._tokens) - 1)]
        return inputs.masked_fill(index >= stops[:, None], 0)


def windows_that_fit(free: int, each: int, seq_len: int) -> int:
    """Return how many windows to compute at a time in ``free`` bytes of memory, of which each takes ``each``."""
    fitting = min(int(_SHARE_OF_MEMORY * free) // each, _FULL_BATCH_TOKENS // seq_len)
    return max(1, fitting - fitting % 8 if fitting > 8 else fitting)


@contextmanager
def compiled_meanwhile(model_config: ModelConfig, config: SlidingConfig) -> Iterator[None]:
    """Have the parts of a model compiled in another thread, with weights that mean nothing, for its own to be read.

    What is compiled serves every model of this configuration on this device.
    """

    def work() -> None:
        with torch.device("meta"):
            model = GPT(model_config)
        model.to_empty(device=config.device).requires_grad_(False)
        forecaster = SlidingForecaster(model, config)
        count = forecaster._batch_size(first=False)
        last = config.seq_len + count * config.stride
        tokens = np.zeros(last + 1, dtype=np.int64)
        for _ in forecaster.logits(tokens, config.seq_len + 1, last + 1):
            pass

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        yield
        done.result()


def nats_of(
    pieces: Iterator[tuple[int, int, Tensor]], tokens: Tokens, start: int, stop: int, device: torch.device
) -> Nats:
    """Return the nats of positions ``[start, stop)``, float64, from the logits of pieces of them.

    A GPU is waited for once, when all of its work has been handed over.
    """
    nll = np.empty(stop - start)
    losses = ((first, last, _losses(logits, tokens[first:last])) for first, last, logits in pieces)
    if device.type != "cpu":
        values = [loss for *_, loss in losses]
        return np.array(HostCopy(torch.cat(values)).wait()) if values else nll
    for first, last, loss in losses:
        nll[first - start : last - start] = loss.numpy()
    return nll


def placed(model: GPT | Network, config: SlidingConfig) -> Network:
    """Return a model on its device, in its type and in evaluation mode, behind the interface that is scored."""
    network = as_network(model)
    module = network.module
    if module is not None:
        module.to(config.device).eval()
        if isinstance(module, GPT):
            module.to_compute_dtype(torch.float32 if config.dtype == "own" else getattr(torch, config.dtype))
            module.fed_length = config.seq_len
        elif config.dtype != "own":
            module.to(getattr(torch, config.dtype))
    return network


def as_network(model: GPT | Network) -> Network:
    """Return a model behind the interface that is scored."""
    return Network(model=model, vocab_size=model.vocab_size) if isinstance(model, GPT) else model


def _fed_length(span: WindowSpan) -> int:
    """Return the inputs that a window needs for the positions that it scores."""
    return span.stop - 1 - span.window_start


@contextmanager
def one_thread_each(threads: int) -> Iterator[int]:
    """Let torch use one thread an operation for a while, and yield how many operations may run side by side.

    Windows are independent, so threads that each take a window never wait for one another, and no sum is ever split
    in a way that depends on how many of them there are.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads or before
    finally:
        torch.set_num_threads(before)


def gather_windows(tokens: Tokens, windows: list[WindowSpan], seq_len: int) -> npt.NDArray[np.int64]:
    """Return the inputs of each window, ``[len(windows), seq_len]``, padded on the right with id 0.

    A window takes no token at or past its last scored position: what it does not need, it does not get.
    """
    ids = np.zeros((len(windows), seq_len), dtype=np.int64)
    for b, span in enumerate(windows):
        ids[b, : span.stop - 1 - span.window_start] = tokens[span.window_start : span.stop - 1]
    return ids


def target_nll(logits: Tensor, targets: Tokens) -> Nats:
    """Return the nats of each target ``[n]`` under its row of logits ``[n, vocab_size]``, computed in float64."""
    nll: Nats = _losses(logits, targets).cpu().numpy()
    return nll


def _losses(logits: Tensor, targets: Tokens) -> Tensor:
    """Return what :func:`target_nll` does, float64 ``[n]``, on the device of the logits."""
    index = to_device(np.asarray(targets, dtype=np.int64), logits.device)[:, None]
    losses: Tensor = -torch.log_softmax(logits.double(), dim=-1).gather(1, index)[:, 0]
    return losses
