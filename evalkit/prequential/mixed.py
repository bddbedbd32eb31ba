"""A network and online experts behind one forecaster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from evalkit.prequential.buckets import BucketSums
from evalkit.prequential.forecaster import Forecaster, Nats, Tokens, is_resumable, next_boundary_of, report_of
from evalkit.prequential.transfer import HostCopy, one_ahead, to_device

if TYPE_CHECKING:
    from evalkit.mixers import Mixer

ENTROPY_EXPERT_TEMPERATURE = 0.8
"""Temperature of the entropy expert where the network is certain; 1 where it knows nothing."""


class LogitsForecaster(Forecaster, Protocol):
    """A forecaster that is a network: it can give its logits."""

    def logits(self, tokens: Tokens, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield ``(first, last, logits)`` for pieces of ``[start, stop)``, in order."""
        ...

    def next_logits(self, prefix: Tokens) -> Tensor:
        """Return the logits of the token after ``prefix``, ``[1, vocab_size]``."""
        ...


class MixedForecaster:
    """Mixes a network's distribution with online experts, after every token.

    The mixer learns inside ``score`` (token t is mixed in only after t's own score) and keeps it in ``observe``; a
    second ``score`` from the same place starts over from what was kept.

    Args:
        network: gives logits, or None for the online experts alone.
        mixer: the experts and their weights.
        vocab_size: needed when there is no network.
    """

    def __init__(self, network: LogitsForecaster | None, mixer: Mixer, vocab_size: int) -> None:
        self.network = network
        self.mixer = mixer
        self.vocab_size = vocab_size
        self.network_nats = 0.0
        self._network_stream = BucketSums()
        self._pending_network: list[Nats] = []
        if (boundary := next_boundary_of(network)) is not None:
            self.next_boundary = boundary

    def score(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return the nats of the mixture at positions ``[start, stop)``, float64."""
        if self.network is None:
            return self.mixer.score(tokens, start, stop)
        self.mixer.rollback()
        nll = np.empty(stop - start)
        self._pending_network = []
        for first, last, copy in one_ahead(self._network_values(tokens, start, stop)):
            neural, tempered, entropy = copy.wait()
            self._pending_network.append(-np.asarray(neural))
            nll[first - start : last - start] = self.mixer.extend(tokens[:last], first, last, neural, tempered, entropy)
        return nll

    def _network_values(self, tokens: Tokens, start: int, stop: int) -> Iterator[tuple[int, int, HostCopy]]:
        """Yield ``(first, last, values)``: what both network experts give the tokens, and the entropies, ``[3, n]``."""
        assert self.network is not None
        for first, last, logits in self.network.logits(tokens, start, stop):
            rows, sharpened, entropy = network_experts(logits)
            targets = to_device(np.asarray(tokens[first:last], dtype=np.int64), logits.device)[:, None]
            values = [rows.gather(1, targets)[:, 0], sharpened.gather(1, targets)[:, 0], entropy]
            yield first, last, HostCopy(torch.stack(values))

    def distribution(self, tokens: Tokens, start: int, stop: int) -> Nats:
        """Return the mixture's log-probabilities, float64 ``[stop - start, vocab_size]``."""
        if self.network is None:
            return self.mixer.distributions(tokens, start, stop)
        shape = (stop - start, self.vocab_size)
        neural, tempered, entropy = np.empty(shape), np.empty(shape), np.empty(stop - start)
        for first, last, logits in self.network.logits(tokens, start, stop):
            piece = slice(first - start, last - start)
            values = network_experts(logits)
            neural[piece], tempered[piece], entropy[piece] = (value.cpu().numpy() for value in values)
        return self.mixer.distributions(tokens, start, stop, neural, tempered, entropy)

    def next_distribution(self, prefix: Tokens) -> Nats:
        """Return the mixture's log-probabilities of the token after ``prefix``, float64 ``[vocab_size]``."""
        position = len(prefix)
        if self.network is None:
            return self.mixer.distribution(prefix, position)
        said = network_experts(self.network.next_logits(prefix))
        return self.mixer.distribution(prefix, position, *(values[0].cpu().numpy() for values in said))

    def observe(self, tokens: Tokens, start: int, stop: int) -> None:
        """Keep what the mixer learned, then let the network learn."""
        self.mixer.commit(stop)
        total = 0.0
        for nats in self._pending_network:
            total += float(nats.sum())
            self._network_stream.add(nats)
        self.network_nats += total
        self._pending_network = []
        if self.network is not None:
            self.network.observe(tokens, start, stop)

    def report(self) -> dict[str, Any]:
        """Return the mixer's report, the network's, and what the network alone would have scored, in nats."""
        report: dict[str, Any] = {"mixer_report": self.mixer.report()}
        if self.network is not None:
            report |= {"network_nats": self.network_nats, "network_stream": self._network_stream.report()}
            report |= report_of(self.network)
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return what the mixer and the network have learned; what was scored and not observed is forgotten."""
        self.mixer.rollback()
        self._pending_network = []
        state = {"mixer": self.mixer.state_dict(), "network_nats": self.network_nats}
        state["network_stream"] = self._network_stream.state_dict()
        if is_resumable(self.network):
            state["network"] = self.network.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.mixer.load_state_dict(state["mixer"])
        self.network_nats = float(state["network_nats"])
        self._network_stream.load_state_dict(state["network_stream"])
        if is_resumable(self.network):
            self.network.load_state_dict(state["network"])


def network_experts(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the neural and the entropy expert say, in float64.

    The entropy expert is the network's own distribution with temperature 1 - (1 - T)(1 - H / ln V), H its entropy, and
    renormalised: where the network is certain, this expert bets that it is even more so. PR849 scales its logits by the
    same rule with T = 0.98; its "entropy expert" is no distribution.

    Args:
        logits: ``[n, vocab_size]``.

    Returns:
        Log-probabilities of the network ``[n, vocab_size]``, those of the entropy expert, and the network's entropy in
        nats ``[n]``.
    """
    rows = torch.log_softmax(logits.double(), dim=-1)
    # a token that a model rules out (-inf) adds 0 to the entropy, not 0 times infinity
    entropy = -(rows.exp() * rows.clamp(min=torch.finfo(rows.dtype).min)).sum(dim=-1)
    temperature = 1.0 - (1.0 - ENTROPY_EXPERT_TEMPERATURE) * (1.0 - entropy / np.log(logits.shape[-1]))
    sharpened = torch.log_softmax(rows / temperature[:, None], dim=-1)
    return rows, sharpened, entropy
