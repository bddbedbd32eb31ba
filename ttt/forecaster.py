"""The forecaster that learns: it scores a chunk with averaged weights, and only then trains on it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalkit.model.gpt import GPT
from evalkit.network.network import Network, copied
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.ranks import Ranks
from evalkit.prequential.buckets import BucketSums
from evalkit.prequential.forecaster import Nats, Tokens
from evalkit.prequential.sliding import SlidingConfig, SlidingForecaster, as_network, target_nll
from evalkit.prequential.windows import WindowSpan
from evalkit.tokens.tokenizer import ByteCounts, ByteTable
from evalkit.ttt.config import TTTConfig
from evalkit.ttt.gains import DocumentGains
from evalkit.ttt.parameters import parameterise, with_pair_table
from evalkit.ttt.schedule import learning_rate
from evalkit.ttt.temperature import temper
from evalkit.ttt.trainer import Row, Trainer


def mix_with_frozen(logits: Tensor, frozen: Tensor, weight: float) -> Tensor:
    """Return the log-probabilities of ``(1 - weight) softmax(logits) + weight softmax(frozen)``, float64.

    What a few steps on noisy gradients get wrong, they get wrong with confidence; the mixture costs at most
    ``-ln(1 - weight)`` nats a token where the learned weights are right, and bounds the loss where they are not.
    """
    learned = torch.log_softmax(logits.double(), dim=-1) + math.log1p(-weight)
    return torch.logaddexp(learned, torch.log_softmax(frozen.double(), dim=-1) + math.log(weight))


class TTTForecaster:
    """Score-first test-time training around the sliding window.

    Chunk c holds positions c C + 1 .. (c + 1) C. ``score`` never learns; ``observe`` trains when a chunk is complete,
    on tokens that the ledger holds. With adapters, every document starts from the unadapted weights: a position is
    scored with adapters only if the document that it continues began before its chunk.

    Args:
        model: evalkit's own in float32, or any torch module; it is not changed.
        sliding: the windows and the precision of scoring.
        config: what learns and how.
        byte_table: bytes of each target, for the byte-weighted loss: what a decoder knows of them.
        num_bytes: bytes of each target as the ledger counts them, for the report; None takes the table's.
        document_token: the token that opens a document, or None.
        num_chunks: chunks in the stream, for the cosine schedule alone.
        ranks: the processes that share windows and training rows; each learns the same.
    """

    def __init__(
        self,
        model: GPT | Network,
        sliding: SlidingConfig,
        config: TTTConfig,
        byte_table: ByteTable,
        *,
        num_bytes: ByteCounts | None = None,
        document_token: int | None = None,
        num_chunks: int | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.config = config
        network = as_network(model)
        if config.hash_buckets:
            if not isinstance(network.model, GPT):
                raise InputError("ttt.hash_buckets adds a table to evalkit's own network; leave it out for another")
            network = replace(network, model=with_pair_table(network.model, config.hash_buckets))
        self.vocab_size = network.vocab_size
        self.preferred_span = config.chunk_tokens
        self._byte_table = byte_table
        self._num_bytes = num_bytes or byte_table
        self._document_token = document_token if config.trainable == "adapters" else None
        self._num_chunks = num_chunks
        learning = copied(network)
        module = learning.require_module("--ttt")
        module.to(sliding.device).float().eval().requires_grad_(False)
        self._sliding = SlidingForecaster(copied(network), sliding, ranks)
        self._trainer = Trainer(
            learning,
            parameterise(module, config, network.vocab_size),
            config,
            dtype=sliding.dtype,
            threads=sliding.threads,
            ranks=ranks,
            compile=sliding.compile,
        )
        self._mixes = config.frozen_weight > 0 and config.epochs > 0
        self._network = network
        self._pending: list[Nats] = []
        self._gains = DocumentGains(document_token)
        self._frozen_stream = BucketSums()
        self._initial = {name: value.clone() for name, value in self._trainer.scoring_weights().items()}
        self._adapted_since = 1
        self._started = time.monotonic()
        self.time_limit_struck_at: int | None = None
        self.chunks: list[dict[str, Any]] = []
        self._score_seconds = 0.0

    @cached_property
    def _frozen(self) -> SlidingForecaster:
        """The network as it came."""
        return SlidingForecaster(copied(self._network), self._sliding.config, self._sliding.ranks)

    def next_boundary(self, start: int) -> int:
        """Return where the chunk of ``start`` stops; spans never cross it."""
        chunk = (start - 1) // self.config.chunk_tokens
        return (chunk + 1) * self.config.chunk_tokens + 1

    def score(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return the nats of positions ``[start, stop)``, float64."""
        nll = np.empty(stop - start)
        frozen_nll = nll.copy() if self.config.compare else nll
        for first, last, logits, frozen in self._predict(tokens, start, stop):
            nll[first - start : last - start] = target_nll(logits, tokens[first:last])
            if self.config.compare:
                frozen_nll[first - start : last - start] = target_nll(frozen, tokens[first:last])
        self._pending = [nll, frozen_nll]
        return nll

    def distribution(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return log-probabilities of every token, float64 ``[stop - start, vocab_size]``."""
        rows = [torch.log_softmax(logits.double(), -1).cpu().numpy() for *_, logits in self.logits(tokens, start, stop)]
        return np.concatenate(rows)

    def logits(self, tokens: Tokens, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield ``(first, last, logits)`` for pieces of ``[start, stop)``, in order, temperature applied."""
        self._pending, compared = [], []
        for first, last, logits, frozen in self._predict(tokens, start, stop):
            if self.config.compare:
                compared.append([target_nll(side, tokens[first:last]) for side in (logits, frozen)])
            yield first, last, logits
        self._pending = [np.concatenate(side) for side in zip(*compared, strict=True)]

    def window_logits(self, tokens: Tokens, windows: list[WindowSpan]) -> Tensor:
        """Return the logits of every row of some windows, ``[len(windows), seq_len, vocab_size]``."""
        self._load(self._trainer.scoring_weights())
        logits = self._sliding.window_logits(tokens, windows)
        return self._finished(logits, self._frozen.window_logits(tokens, windows) if self._mixes else None)

    def next_logits(self, prefix: Tokens) -> Tensor:
        """Return the logits after ``prefix``, ``[1, vocab_size]``; see :meth:`SlidingForecaster.next_logits`."""
        chunk_start = self.next_boundary(len(prefix)) - self.config.chunk_tokens
        fresh = self._document_token is not None and bool(
            (np.asarray(prefix[chunk_start:]) == self._document_token).any()
        )
        adapted = not fresh and self._has_learned()
        self._load(self._trainer.scoring_weights() if adapted else self._initial)
        logits = self._sliding.next_logits(prefix)
        return self._finished(logits, self._frozen.next_logits(prefix) if adapted and self._mixes else None)

    def _finished(self, logits: Tensor, frozen: Tensor | None) -> Tensor:
        """Return logits with the temperature applied, mixed with those of the frozen network where they are given."""
        tempered = temper(logits, self.config.temperature)
        if frozen is None:
            return tempered
        return mix_with_frozen(tempered, temper(frozen, self.config.temperature), self.config.frozen_weight)

    def next_distribution(self, prefix: Tokens) -> Nats:
        """Return log-probabilities of the token after ``prefix``, float64 ``[vocab_size]``."""
        row: Nats = torch.log_softmax(self.next_logits(prefix)[0].double(), dim=-1).cpu().numpy()
        return row

    def observe(self, tokens: Tokens, start: int, stop: int) -> None:
        """Train if ``stop`` completes a chunk."""
        if self._pending:
            num_bytes = self._num_bytes.count_span(np.asarray(tokens), start, stop)
            trained, frozen = self._pending
            self._gains.add(np.asarray(tokens[start:stop]), trained, frozen, num_bytes)
            self._frozen_stream.add(frozen)
            self._pending = []
        if self._document_token is not None:
            starts = np.flatnonzero(np.asarray(tokens[start:stop]) == self._document_token)
            if starts.size:
                # What follows the last document's opening token is scored without adapters until they have learned it.
                self._adapted_since = start + int(starts[-1]) + 1
                self._trainer.reset()
        if stop != self.next_boundary(start):
            return
        chunk = (start - 1) // self.config.chunk_tokens
        last = self._num_chunks is not None and chunk == self._num_chunks - 1
        expired = bool(self.config.time_limit) and time.monotonic() - self._started > self.config.time_limit
        if expired and self.time_limit_struck_at is None:
            self.time_limit_struck_at = stop
        rate = learning_rate(self.config, chunk, self._num_chunks)
        began = time.monotonic()
        losses = [] if last or expired else self._train(tokens, chunk, stop, rate)
        self.chunks.append(
            {
                "chunk": chunk,
                "stop": stop,
                **self._gains.take_chunk(compared=self.config.compare),
                "learning_rate": rate,
                "steps": len(losses),
                "first_loss": losses[0] if losses else None,
                "last_loss": losses[-1] if losses else None,
                "score_seconds": self._score_seconds,
                "train_seconds": time.monotonic() - began,
            }
        )
        self._score_seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return everything learned."""
        return {
            "trainer": self._trainer.state_dict(),
            "adapted_since": self._adapted_since,
            "chunks": self.chunks,
            "elapsed": time.monotonic() - self._started,
            "struck": self.time_limit_struck_at,
            "gains": self._gains.state_dict(),
            "frozen_stream": self._frozen_stream.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self._trainer.load_state_dict(state["trainer"])
        self._adapted_since = int(state["adapted_since"])
        self.chunks = list(state["chunks"])
        self._started = time.monotonic() - float(state["elapsed"])
        self.time_limit_struck_at = state["struck"]
        self._gains.load_state_dict(state["gains"])
        self._frozen_stream.load_state_dict(state["frozen_stream"])

    def report(self) -> dict[str, Any]:
        """Return what the report shows: each chunk's learning rate, losses and seconds."""
        report: dict[str, Any] = self._sliding.report() | {
            "ttt_report": {
                "trained_parameters": sum(tensor.numel() for tensor in self._trainer.trained.values()),
                "steps": sum(chunk["steps"] for chunk in self.chunks),
                "score_seconds": sum(chunk["score_seconds"] for chunk in self.chunks) + self._score_seconds,
                "train_seconds": sum(chunk["train_seconds"] for chunk in self.chunks),
                "time_limit_struck_at": self.time_limit_struck_at,
                "side_information": (
                    "the number of chunks, for the cosine schedule" if self.config.schedule == "cosine" else None
                ),
                "gain": self._gains.summary() if self.config.compare else None,
                "frozen_stream": self._frozen_stream.report() if self.config.compare else None,
                "chunks": self.chunks,
            }
        }
        if self.time_limit_struck_at is not None:
            report["illegal_because"] = (
                f"ttt.time_limit stopped the training at position {self.time_limit_struck_at}: the scores depend on "
                f"the speed of this machine, so no decoder can follow"
            )
        return report

    def _predict(self, tokens: Tokens, start: int, stop: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Yield ``(first, last, logits, frozen)`` in order: what is scored, and the same of the frozen network.

        Where nothing has been learned both are one; where the frozen network is not asked for, it is not run.
        """
        began = time.monotonic()
        for first, last, adapted in self._segments(tokens, start, stop):
            self._load(self._trainer.scoring_weights() if adapted else self._initial)
            pieces = self._sliding.logits(tokens, first, last)
            if not adapted or not (self._mixes or self.config.compare):
                for begin, end, raw in pieces:
                    logits = self._finished(raw, None)
                    yield begin, end, logits, logits
                continue
            frozen_pieces = self._frozen.logits(tokens, first, last)
            for (begin, end, raw), (*_, frozen) in zip(pieces, frozen_pieces, strict=True):
                logits = self._finished(raw, frozen if self._mixes else None)
                yield begin, end, logits, self._finished(frozen, None)
        self._score_seconds += time.monotonic() - began

    def _segments(self, tokens: Tokens, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Cut a span after every token that opens a document: what follows it starts from the unadapted weights."""
        adapted = self._has_learned()
        if self._document_token is None:
            yield start, stop, adapted
            return
        visible = np.asarray(tokens[start : stop - 1])
        cuts = [start + int(i) + 1 for i in np.flatnonzero(visible == self._document_token)]
        for first, last in zip([start, *cuts], [*cuts, stop], strict=True):
            yield first, last, adapted
            adapted = False

    def _has_learned(self) -> bool:
        """Whether the weights to score with are other than the network came with."""
        if self._trainer.steps == 0:
            return False
        weights = self._trainer.scoring_weights()
        return any(not torch.equal(value, self._initial[name]) for name, value in weights.items())

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        parameters = dict(self._sliding.module.named_parameters())
        changed = False
        for name, value in weights.items():
            rounded = value.to(parameters[name].dtype)
            if not torch.equal(parameters[name], rounded):
                parameters[name].copy_(rounded)
                changed = True
        if changed:
            self._sliding.forget()

    def _train(self, tokens: Tokens, chunk: int, stop: int, rate: float) -> list[float]:
        first_position = max(chunk * self.config.chunk_tokens + 1, self._adapted_since)
        if self._document_token is None:
            rows = self._rows_of_chunk(tokens, chunk * self.config.chunk_tokens, stop)
        else:
            rows = self._row_of_document(tokens, first_position, stop)
        losses = []
        for epoch in range(self.config.epochs if rows else 0):
            ordered = self._ordered(rows, chunk, epoch)
            for i in range(0, len(ordered), self.config.batch_sequences):
                where = f"after chunk {chunk} (positions up to {stop - 1:,}), epoch {epoch}"
                losses.append(self._trainer.step(ordered[i : i + self.config.batch_sequences], rate, where))
        return losses

    def _ordered(self, rows: list[Row], chunk: int, epoch: int) -> list[Row]:
        if self.config.order == "backward":
            return rows[::-1]
        if self.config.order == "shuffled":
            generator = np.random.default_rng([self.config.seed, chunk, epoch])
            return [rows[i] for i in generator.permutation(len(rows))]
        return rows

    def _rows_of_chunk(self, tokens: Tokens, begin: int, stop: int) -> list[Row]:
        """Cut a chunk into rows of ``seq_len`` that do not overlap; a shorter rest is padded and weighs nothing."""
        seq_len = self._sliding.config.seq_len
        starts = range(begin, stop - 1, seq_len)
        return [self._row(tokens, first, min(first + seq_len, stop - 1), first + 1) for first in starts]

    def _row_of_document(self, tokens: Tokens, first_position: int, stop: int) -> list[Row]:
        """One row that ends with the chunk and weighs only the chunk's positions in the present document."""
        if first_position >= stop:
            return []
        begin = max(stop - 1 - self._sliding.config.seq_len, self._sliding.context_start(tokens, stop - 1))
        return [self._row(tokens, begin, stop - 1, first_position)]

    def _row(self, tokens: Tokens, first: int, last: int, learn_from: int) -> Row:
        """Return inputs ``[first, last)`` with targets one later, weighing targets from ``learn_from`` on."""
        seq_len = self._sliding.config.seq_len
        inputs, targets = np.zeros(seq_len, dtype=np.int64), np.zeros(seq_len, dtype=np.int64)
        weights = np.zeros(seq_len, dtype=np.float32)
        count = last - first
        inputs[:count] = tokens[first:last]
        targets[:count] = tokens[first + 1 : last + 1]
        weights[:count] = self._byte_table.count(inputs[:count], targets[:count]) if self.config.byte_weighted else 1.0
        weights[: max(learn_from - first - 1, 0)] = 0.0
        return Row(inputs=inputs, targets=targets, weights=weights)
