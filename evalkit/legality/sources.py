"""Sources with known log-probabilities, from which test streams are drawn."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from evalkit.legality.hosts import Floats, Ids


class Source(Protocol):
    """A distribution over streams that can be sampled together with its own log-probabilities."""

    vocab_size: int

    def sample(self, count: int, first: int, rng: np.random.Generator) -> tuple[Ids, Floats]:
        """Return ``count`` tokens that begin with the given ``first``, and ``ln q`` of each but that one."""
        ...


class UniformSource:
    """Every token equally likely: ln q = -ln V. Nothing can be learned, so every nat below ln V is fiction."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def sample(self, count: int, first: int, rng: np.random.Generator) -> tuple[Ids, Floats]:
        """See :class:`Source`."""
        tokens = rng.integers(0, self.vocab_size, size=count, dtype=np.int64)
        tokens[:1] = first
        return tokens, np.full(max(count - 1, 0), -np.log(self.vocab_size))


class BigramSource:
    """An interpolated bigram model: text-like, so that a program cannot tell it from text by its flatness.

    ``q(x | y) = 0.85 c(y, x) / c(y) + 0.15 ((1 - e) c(x) / n + e / V)`` with ``e`` = 0.05; the unigram part alone
    where ``y`` was never seen.
    """

    def __init__(self, followers: dict[int, Ids], unigram: Floats) -> None:
        self.vocab_size = len(unigram)
        self._followers = followers
        self.unigram = unigram
        self._cumulative = np.cumsum(unigram)

    @classmethod
    def fitted(cls, tokens: Ids, vocab_size: int) -> BigramSource:
        """Count the bigrams of ``tokens``."""
        counts = np.bincount(tokens, minlength=vocab_size).astype(np.float64)
        unigram = 0.95 * counts / counts.sum() + 0.05 / vocab_size
        order = np.argsort(tokens[:-1], kind="stable")
        previous, following = tokens[:-1][order], tokens[1:][order]
        edges = np.flatnonzero(np.diff(previous)) + 1
        groups = np.split(following, edges)
        heads: Ids = previous[np.concatenate([[0], edges]).astype(np.int64)] if len(previous) else np.zeros(0, np.int64)
        return cls({int(head): group for head, group in zip(heads, groups, strict=True)}, unigram)

    @classmethod
    def invented(cls, vocab_size: int, seed: int) -> BigramSource:
        """Make a source up: Zipf's law for single tokens, about eight favoured followers for each."""
        rng = np.random.default_rng(seed)
        zipf = 1.0 / np.arange(1, vocab_size + 1)
        unigram = np.empty(vocab_size)
        unigram[rng.permutation(vocab_size)] = zipf / zipf.sum()
        followers = {
            head: rng.choice(vocab_size, size=8 + int(rng.integers(8)), p=unigram).astype(np.int64)
            for head in range(vocab_size)
        }
        return cls(followers, 0.95 * unigram + 0.05 / vocab_size)

    def probability(self, previous: int, token: int) -> float:
        """Return ``q(token | previous)``."""
        seen = self._followers.get(previous)
        if seen is None:
            return float(self.unigram[token])
        return float(0.85 * np.mean(seen == token) + 0.15 * self.unigram[token])

    def draw(self, previous: int, rng: np.random.Generator) -> int:
        """Return one token drawn from ``q(. | previous)``."""
        seen = self._followers.get(previous)
        if seen is not None and rng.random() < 0.85:
            return int(seen[int(rng.integers(len(seen)))])
        place = int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1]))
        return min(place, self.vocab_size - 1)

    def sample(self, count: int, first: int, rng: np.random.Generator) -> tuple[Ids, Floats]:
        """See :class:`Source`."""
        tokens = np.empty(count, np.int64)
        tokens[:1] = first
        log_q = np.empty(max(count - 1, 0))
        coins, picks = rng.random(count), rng.random(count)
        for i in range(1, count):
            seen = self._followers.get(int(tokens[i - 1]))
            if seen is not None and coins[i] < 0.85:
                tokens[i] = seen[int(picks[i] * len(seen))]
            else:
                place = int(np.searchsorted(self._cumulative, picks[i] * self._cumulative[-1]))
                tokens[i] = min(place, self.vocab_size - 1)
            log_q[i - 1] = np.log(self.probability(int(tokens[i - 1]), int(tokens[i])))
        return tokens, log_q


class AboveControls:
    """A source over ordinary ids: those of ``inner``, moved up past the ids that a tokenizer keeps for itself.

    Programs that count bytes refuse the unknown token, and treat padding and document marks in ways of their own.

    Args:
        inner: the source of ``id - lowest``.
        lowest: the smallest id that is drawn.
    """

    def __init__(self, inner: Source, lowest: int) -> None:
        self.vocab_size = inner.vocab_size + lowest
        self._inner, self._lowest = inner, lowest

    def sample(self, count: int, first: int, rng: np.random.Generator) -> tuple[Ids, Floats]:
        """See :class:`Source`; the second token is drawn as if it followed the smallest ordinary id."""
        tokens, log_q = self._inner.sample(count, 0, rng)
        tokens = tokens + self._lowest
        tokens[:1] = first
        return tokens, log_q
