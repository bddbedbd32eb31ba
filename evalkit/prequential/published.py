"""PR849's mixer over a network's windows, as published. For comparison only: its scores are not code lengths."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evalkit.prequential.forecaster import Forecaster, Nats, Tokens, report_of
from evalkit.prequential.windows import WindowSpan, plan_windows


class WindowNetwork(Forecaster, Protocol):
    """A network that gives the logits of whole windows."""

    def window_logits(self, tokens: Tokens, windows: list[WindowSpan]) -> Tensor:
        """Return ``[len(windows), seq_len, vocab_size]``."""
        ...


class PublishedMixedForecaster:
    """Scores windows in batches; each batch moves the mixer's weights by the losses of all its positions.

    Args:
        network: gives the logits.
        mixer: :class:`evalkit.mixers.published.PublishedMixer`.
        seq_len: window in tokens.
        stride: distance between windows.
        batch_windows: windows in a batch; part of the definition, since weights move after every batch.
        chunk_tokens: positions between two updates of the counts.
    """

    def __init__(
        self, network: WindowNetwork, mixer: Any, *, seq_len: int, stride: int, batch_windows: int, chunk_tokens: int
    ) -> None:
        self.network = network
        self.mixer = mixer
        self.vocab_size = network.vocab_size
        self.preferred_span = chunk_tokens
        self._seq_len, self._stride, self._batch_windows = seq_len, stride, batch_windows
        self._chunk_tokens = chunk_tokens
        self._kept_weights = mixer.log_weights.copy()
        # The mixer scores with the network alone until it has counted 10,000 tokens, which it does a chunk at a time.
        self.warm_up_tokens = -(-mixer.warm_up_tokens // chunk_tokens) * chunk_tokens

    def next_boundary(self, start: int) -> int:
        """Return where the chunk of ``start`` stops."""
        return ((start - 1) // self._chunk_tokens + 1) * self._chunk_tokens + 1

    def score(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return what the published mixer calls the nats of positions ``[start, stop)``."""
        self.mixer.log_weights = self._kept_weights.copy()
        windows = list(plan_windows(start, stop, self._seq_len, self._stride))
        nll = []
        for i in range(0, len(windows), self._batch_windows):
            nll.append(self._score_batch(tokens, windows[i : i + self._batch_windows]))
        return np.concatenate(nll).astype(np.float64)

    def observe(self, tokens: Tokens, start: int, stop: int) -> None:
        """Keep the weights; count the chunk when it is complete; let the network learn."""
        self._kept_weights = self.mixer.log_weights.copy()
        if stop == self.next_boundary(start):
            self.mixer.observe_chunk(np.asarray(tokens[stop - 1 - self._chunk_tokens : stop]))
        self.network.observe(tokens, start, stop)

    def report(self) -> dict[str, Any]:
        """Return the mixer's weights, why its scores are not code lengths, and the network's report."""
        return {
            "mixer_report": {"experts": list(self.mixer.experts), "weights": self.mixer.weights},
            "illegal_because": self.mixer.illegal_because,
            **report_of(self.network),
        }

    def _score_batch(self, tokens: Tokens, windows: list[WindowSpan]) -> npt.NDArray[np.float32]:
        logits = self.network.window_logits(tokens, windows)
        rows = []
        for row_logits, window in zip(logits, windows, strict=True):
            count = window.stop - 1 - window.window_start
            inputs = np.asarray(tokens[window.window_start : window.stop - 1], dtype=np.int64)
            padded = np.concatenate([np.zeros(2, dtype=np.int64), inputs])
            contexts = np.stack([padded[:count], padded[1 : count + 1], inputs], axis=1)
            targets = np.asarray(tokens[window.window_start + 1 : window.stop], dtype=np.int64)
            log_p = torch.log_softmax(row_logits[:count], dim=-1)
            index = torch.from_numpy(targets).to(log_p.device)[:, None]
            nll = -log_p.gather(1, index)[:, 0].cpu().numpy()
            entropy = -(log_p.exp() * log_p).sum(dim=-1).cpu().numpy()
            rows.append((contexts, targets, nll, entropy, np.arange(count) >= window.first_row))
        batch: npt.NDArray[np.float32] = self.mixer.score_batch(*map(np.concatenate, zip(*rows, strict=True)))
        return batch
