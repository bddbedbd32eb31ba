"""PR849's mixer as it was published, for comparison only: its scores are not code lengths.

Not legal, for these reasons (each is reproduced on purpose):

* the sixth "expert" claims ``exp(-H)``, ``H`` the entropy of the network, for whatever token occurs: the mixture
  sums to ``1 + w (V exp(-H) - 1)`` over the vocabulary;
* trigram and 4-gram tables of unseen contexts sum to less than 1 (the maximum with 1 in the denominator);
* weights move by the mean loss over all positions of all windows of a batch, each token up to window / stride times;
* counts stand still within a chunk, and the token at a chunk's border is counted twice.

Order of calls, exactly: for every chunk, for every batch of its windows, ``score_batch`` once with every real
position of every window of the batch in order (it scores with the weights before the update, then updates them); after
the chunk's last batch ``observe_chunk`` once with the chunk's tokens and the first token of the next chunk.

Source: openai/parameter-golf PR 849; arithmetic in float32 as there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.integer[Any]]

TRIGRAM_ROWS, FOURGRAM_ROWS = 65536, 32768
_LARGEST_TABLES = 8 * 1024**3


def trigram_row(b: Tokens, c: Tokens) -> npt.NDArray[np.int64]:
    """Return the trigram table's row for contexts ``b, c`` (``c`` the latest token)."""
    return ((36313 * np.asarray(b, np.int64)) ^ (27191 * np.asarray(c, np.int64))) % TRIGRAM_ROWS


def fourgram_row(a: Tokens, b: Tokens, c: Tokens) -> npt.NDArray[np.int64]:
    """Return the 4-gram table's row for contexts ``a, b, c`` (``c`` the latest token)."""
    mixed = (48271 * np.asarray(a, np.int64)) ^ (36313 * np.asarray(b, np.int64)) ^ (27191 * np.asarray(c, np.int64))
    return mixed % FOURGRAM_ROWS


class _Table:
    """Counts of tokens by context, float32[rows, V]; ``row_of`` gives the row of a context's tokens.

    A token's probability is (count + smoothing) / (max(total, least) + V smoothing), in float32.
    """

    def __init__(
        self, row_of: Callable[..., npt.NDArray[np.int64]], rows: int, vocab_size: int, smoothing: float, least: int
    ) -> None:
        self.row_of = row_of
        self._counts = np.zeros((rows, vocab_size), dtype=np.float32)
        self._totals = np.zeros(rows, dtype=np.float32)
        self._smoothing, self._least = np.float32(smoothing), np.float32(least)

    def nll(self, row: Any, targets: Tokens) -> Any:
        """Return minus the log of the targets' probabilities."""
        least = np.maximum(self._totals[row], self._least) + self._smoothing * np.float32(self._counts.shape[1])
        return -np.log((self._counts[row, targets] + self._smoothing) / least)

    def add(self, row: Any, targets: Tokens) -> None:
        """Count the targets."""
        np.add.at(self._counts, (row, targets), np.float32(1))
        np.add.at(self._totals, row, np.float32(1))


class PublishedMixer:
    """The six experts and the Hedge of PR849, with its own constants and order of updates.

    Args:
        vocab_size: V; the published code uses the largest id in the scored stream plus one.
        eta: base learning rate; the step in use is ``eta / (1 + 1e-4 tokens counted)``.

    Attributes:
        log_weights: float32[6], unnormalised, in the order of ``experts``.
        tokens_counted: tokens given to ``observe_chunk`` so far, border tokens twice.
        experts: names of the experts.
        warm_up_tokens: tokens to count before anything but the network has a say.
        illegal_because: why no decoder can follow.
    """

    experts = ("neural", "unigram", "bigram", "trigram", "4-gram", "entropy")
    warm_up_tokens = 10000
    illegal_because = (
        "the published mixer's entropy expert claims probability exp(-H) for whatever token comes, so the mixture's "
        "probabilities sum to more than 1"
    )

    def __init__(self, vocab_size: int, eta: float = 0.1) -> None:
        if vocab_size < 2:
            raise ValueError(f"vocab_size is {vocab_size}; expected at least 2")
        if 4 * vocab_size * (TRIGRAM_ROWS + FOURGRAM_ROWS + vocab_size) > _LARGEST_TABLES:
            raise ValueError(f"the published tables would take more than 8 GiB at a vocabulary of {vocab_size}")
        self.vocab_size = vocab_size
        self.eta = eta
        self.log_weights = np.array([2, 0, 0, 0, 0, 0], dtype=np.float32)
        self.tokens_counted = 0
        self._unigram = np.zeros(vocab_size, dtype=np.float32)
        self._tables = (
            _Table(lambda c: c, vocab_size, vocab_size, 0.1, 0),
            _Table(trigram_row, TRIGRAM_ROWS, vocab_size, 0.01, 1),
            _Table(fourgram_row, FOURGRAM_ROWS, vocab_size, 0.005, 1),
        )

    @property
    def weights(self) -> Float32s:
        """float32[6], the normalised weights."""
        w = np.exp(self.log_weights - self.log_weights.max())
        return np.asarray(w / w.sum(), dtype=np.float32)

    @property
    def mixing(self) -> bool:
        """Whether the mixture is in use; before 10,000 counted tokens the network scores alone."""
        return self.tokens_counted >= self.warm_up_tokens

    def expert_nll(self, contexts: Tokens, targets: Tokens, neural_nll: Any, neural_entropy: Any) -> Float32s:
        """Return float32[n, 6], minus the log of what each expert claims for the targets; see :meth:`score_batch`."""
        contexts = np.asarray(contexts, dtype=np.int64)
        y = np.asarray(targets, dtype=np.int64)
        tenth = np.float32(0.1)
        nll = np.empty((len(y), 6), dtype=np.float32)
        nll[:, 0] = neural_nll
        total = np.float32(self.tokens_counted) + tenth * np.float32(self.vocab_size)
        nll[:, 1] = -np.log((self._unigram[y] + tenth) / total)
        for n, table in enumerate(self._tables, start=1):
            nll[:, n + 1] = table.nll(table.row_of(*contexts[:, 3 - n :].T), y)
        nll[:, 5] = neural_entropy
        return nll

    def score_batch(
        self, contexts: Tokens, targets: Tokens, neural_nll: Any, neural_entropy: Any, scored: npt.NDArray[np.bool_]
    ) -> Float32s:
        """Score one batch of windows, then move the weights by the mean loss over all its positions.

        Args:
            contexts: integers [n, 3] of all real positions (padding left out) of all windows of the batch, in order:
                the tokens three, two and one before the target, 0 beyond a window's left edge.
            targets: integers [n].
            neural_nll: float[n], nats, of the sharpened network.
            neural_entropy: float[n], nats, of the sharpened network.
            scored: bool[n], the positions to return.

        Returns:
            float32[number scored], nats: the network's own until 10,000 tokens have been counted, the mixture's after.

        Raises:
            ValueError: lengths disagree or a token lies outside the vocabulary.
        """
        n = len(targets)
        lengths = (np.shape(contexts), np.shape(neural_nll), np.shape(neural_entropy), np.shape(scored))
        if lengths != ((n, 3), (n,), (n,), (n,)) or n == 0:
            raise ValueError(f"{n} targets with arrays of shapes {lengths}; expected [n, 3] and [n], n above 0")
        if max(int(np.max(targets)), int(np.max(contexts))) >= self.vocab_size:
            raise ValueError(f"a token lies outside the vocabulary of {self.vocab_size}")
        keep = np.asarray(scored, dtype=bool)
        if not self.mixing:
            return np.asarray(np.asarray(neural_nll)[keep], dtype=np.float32)
        nll = self.expert_nll(contexts, targets, neural_nll, neural_entropy)
        top = self.log_weights.max()
        log_w = self.log_weights - (top + np.log(np.exp(self.log_weights - top).sum(dtype=np.float32)))
        joint = log_w[None] - nll[keep]
        peak = joint.max(axis=1, keepdims=True, initial=-np.inf)
        mixed = -(peak[:, 0] + np.log(np.exp(joint - peak).sum(axis=1, dtype=np.float32)))
        step = np.float32(self.eta / (1.0 + 1e-4 * self.tokens_counted))
        self.log_weights = self.log_weights - step * nll.mean(axis=0, dtype=np.float32)
        return np.asarray(mixed, dtype=np.float32)

    def observe_chunk(self, tokens: Tokens) -> None:
        """Count a scored chunk: its tokens and, except at the stream's end, the first token of the next chunk.

        N-grams are counted inside ``tokens`` only, so those that straddle two chunks by more than a token are lost.
        """
        t = np.asarray(tokens, dtype=np.int64)
        if t.ndim != 1 or (len(t) and (int(t.min()) < 0 or int(t.max()) >= self.vocab_size)):
            raise ValueError(f"a chunk of shape {t.shape} must be one row of tokens below {self.vocab_size}")
        self.tokens_counted += len(t)
        np.add.at(self._unigram, t, np.float32(1))
        for n, table in enumerate(self._tables, start=1):
            count = max(len(t) - n, 0)
            table.add(table.row_of(*(t[i : i + count] for i in range(n))), t[n:])
