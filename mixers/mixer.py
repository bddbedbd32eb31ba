"""The online mixer: experts are asked, their answers are mixed, the token is revealed, everybody learns."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.mixers.config import MixerConfig
from evalkit.mixers.experts import Experts
from evalkit.mixers.inputs import Network, check_network, check_tokens
from evalkit.mixers.undo import Floats, State
from evalkit.mixers.weighting import Weighting

Tokens = npt.NDArray[np.integer[Any]]

MAX_SPAN = 1 << 20
"""Most tokens between two commits: the undo log and a table that a roll-back may need are held in memory."""

_STATE_FORMAT = 4
_BLOCK = 4096


class Mixer:
    """Probabilities of the next token from online counts and, optionally, a network.

    ``score`` asks and learns token by token; until ``commit`` the same span may be scored again with other tokens, and
    everything learned since the last commit is first undone exactly. All values are float64 nats.
    """

    def __init__(self, config: MixerConfig) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        self._position = 0  # tokens learned, the pending ones included
        self._committed = 0
        self._pending = np.zeros(0, dtype=np.int64)
        self._stash: tuple[int, Network] | None = None  # a position and what the network said there
        self._experts = Experts(config)
        self._weighting = Weighting(config, self._experts.code_counts)

    # -- scoring ----------------------------------------------------------------------------------------------------

    def score(self, tokens: Tokens, start: int, stop: int, *network: Floats | None) -> Floats:
        """Return ``-ln p(tokens[i] | tokens[:i])`` for ``i`` in ``[start, stop)``, learning each token once scored.

        What was learned since the last ``commit`` is undone first, so that a span may be scored again.

        Args:
            tokens: one-dimensional integers, at least ``stop`` of them; only ``[:stop]`` is read.
            start: where the last commit ended; 1 on the first call (token 0 is context and is not scored).
            stop: one past the last position; at most ``MAX_SPAN`` after ``start``.
            network: float64[stop - start] each, as far as the configuration needs them: the network's log-probability
                of each token, the same of the re-tempered network, and the entropy of its distribution, nats.

        Returns:
            float64[stop - start], nats.

        Raises:
            ValueError: a span out of order, a token outside the vocabulary, or network inputs missing or malformed.
        """
        self.rollback()
        return self.extend(tokens, start, stop, *network)

    def extend(self, tokens: Tokens, start: int, stop: int, *network: Floats | None) -> Floats:
        """Go on with the span that was scored last, undoing nothing; otherwise as ``score``.

        A span may so be scored in pieces, each as soon as the network has done it. ``start`` is where the last piece
        ended.
        """
        expected = max(self._position, 1)
        if start != expected:
            raise ValueError(f"score starts at {start}; expected {expected}, where the tokens learned so far end")
        ids = self._check_tokens(tokens, start, stop)
        shape = (stop - start,)
        checked = check_network(self.config, (shape, shape, shape), network)
        if self._position == 0:
            self._learn_first(ids)
        nll = np.empty(stop - start)
        self._advance(ids, start, stop, checked, nll)
        return nll

    def commit(self, stop: int) -> None:
        """Make everything up to ``stop`` permanent; ``stop`` must be the end of what was scored last.

        Raises:
            ValueError: ``stop`` is not that position.
        """
        if stop != self._position:
            raise ValueError(f"commit at {stop}; expected {self._position}, the end of the last scored span")
        self._experts.commit()
        self._weighting.commit(stop)
        self._committed = stop
        self._pending = self._pending[:0]

    def rollback(self) -> None:
        """Forget everything learned since the last commit, exactly."""
        self._experts.rollback()
        self._weighting.rollback()
        self._position = self._committed
        self._pending = self._pending[:0]

    def score_stream(self, tokens: Tokens, *network: Floats | None, span: int = 65536) -> Floats:
        """Score a whole stream from where the last commit ended, committing every ``span`` tokens.

        ``network`` is as for ``score``, for all scored positions. Returns their nats, float64; the first is position 1
        on a fresh mixer.
        """
        self.rollback()
        first = max(self._committed, 1)
        pieces = [np.zeros(0)]
        for start in range(first, len(tokens), span):
            stop = min(start + span, len(tokens))
            inputs = (None if x is None else x[start - first : stop - first] for x in network)
            pieces.append(self.score(tokens, start, stop, *inputs))
            self.commit(stop)
        return np.concatenate(pieces)

    # -- whole rows -------------------------------------------------------------------------------------------------

    def distribution(self, tokens: Tokens, position: int, *network: Floats | float | None) -> Floats:
        """Return float64[V], the log-probability of every token at ``position`` given ``tokens[:position]``.

        The mixer first learns the tokens between the last commit and ``position`` that it has not learned yet (and
        undoes pending ones that differ or lie at or after ``position``). With network experts, learning a token
        needs the network's values there: they come from the ``distribution`` call at that position, so positions are
        asked for in order.

        Args:
            tokens: one-dimensional integers, at least ``position`` of them.
            position: at least 1.
            network: as far as the configuration needs them: the network's log-probabilities at ``position``,
                float64[V], the same of the re-tempered network, and its entropy, nats.

        Raises:
            ValueError: ``position`` lies before the last commit, or network values are missing.
        """
        if position < max(self._committed, 1):
            raise ValueError(f"position {position} lies before {max(self._committed, 1)}, where the last commit ended")
        self._move_to(tokens, position)
        row = (self.vocab_size,)
        neural, tempered, entropy = said = check_network(self.config, (row, row, ()), network)
        self._stash = (position, said)
        log_rows, codes = self._experts.rows(neural, tempered)
        return self._weighting.mix(log_rows, codes, float(entropy))

    def distributions(self, tokens: Tokens, start: int, stop: int, *network: Floats | None) -> Floats:
        """Return float64[stop - start, V]: the rows of ``distribution`` at ``[start, stop)``.

        ``network`` has a row for each position. Of ``tokens`` only ``[:stop - 1]`` is read.
        """
        out = np.empty((max(stop - start, 0), self.vocab_size))
        for k in range(len(out)):
            out[k] = self.distribution(tokens, start + k, *(None if x is None else x[k] for x in network))
        return out

    # -- reports and state ------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Return what the experts did, over all tokens scored so far.

        ``experts``: name -> ``nats`` (its own total), ``leave_one_out_gain`` (nats the mixture would have lost had the
        expert's weight been shared out over the others at every token; above 0 it helped) and ``mean_weight``.
        ``weights_over_time``: [position, weights averaged since the last such row].
        """
        scored = max(self._position - 1, 0)
        stores = self._experts.stores
        return {
            "tokens": scored,
            "nats": self._weighting.nats,
            "method": self.config.method,
            **self._weighting.report(scored),
            "table_bytes": {name: store.table_bytes for name, store in stores.items()},
            "records": {name: store.records for name, store in stores.items()},
        }

    def state_dict(self) -> State:
        """Return what has been learned as numpy arrays; loading them resumes to identical bits.

        Raises:
            ValueError: tokens are scored but not committed.
        """
        if self._position != self._committed:
            raise ValueError("tokens are scored but not committed; commit or roll back before saving")
        return {
            "config": np.frombuffer(self._fingerprint(), dtype=np.uint8),
            "position": np.array([self._committed]),
            **self._weighting.state_dict(),
            **self._experts.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what ``state_dict`` returned, on a mixer of the same configuration.

        Raises:
            ValueError: the state comes from another configuration or is damaged.
        """
        self.rollback()
        if bytes(np.asarray(state.get("config", ()), dtype=np.uint8)) != self._fingerprint():
            raise ValueError("the saved mixer state comes from another configuration or version")
        missing = sorted(set(self.state_dict()) - set(state))
        if missing:
            raise ValueError(f"the saved mixer state lacks {missing}")
        self._experts.load_state_dict(state)
        self._weighting.load_state_dict(state)
        self._committed = self._position = int(np.asarray(state["position"])[0])
        self._stash = None

    # -- inside -----------------------------------------------------------------------------------------------------

    def _fingerprint(self) -> bytes:
        return json.dumps({"format": _STATE_FORMAT, **asdict(self.config)}, sort_keys=True).encode()

    def _check_tokens(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        """Check that ``[start, stop)`` (and token 0 at first) can be learned; return the stream as an array."""
        if stop - max(self._committed, 1) > MAX_SPAN:
            raise ValueError(f"[{self._committed}, {stop}) is longer than {MAX_SPAN} tokens; commit in between")
        first = 0 if self._position == 0 else start
        return check_tokens(tokens, start, stop, first=first, vocab_size=self.vocab_size)

    def _advance(self, tokens: Tokens, start: int, stop: int, network: Network, nll: Floats) -> None:
        """Score and learn ``[start, stop)``; ``nll`` float64[stop - start] is filled. Blocks bound the work arrays."""
        self._pending = np.concatenate([self._pending, tokens[start:stop].astype(np.int64)])
        for low in range(start, stop, _BLOCK):
            high = min(low + _BLOCK, stop)
            piece = slice(low - start, high - start)
            neural, tempered, entropy = (values[piece] for values in network)
            probs, codes = self._experts.advance(tokens[low:high].astype(np.int64), (neural, tempered, entropy))
            self._weighting.advance(probs, codes, entropy, nll[piece])
            self._position = high

    def _move_to(self, tokens: Tokens, position: int) -> None:
        """Bring what has been learned to exactly ``tokens[:position]``."""
        array = np.asarray(tokens)
        if array.ndim != 1 or len(array) < position:
            raise ValueError(f"position {position} needs as many tokens before it; got an array of shape {array.shape}")
        held = self._position - len(self._pending)
        if self._position > position or not np.array_equal(self._pending, array[held : self._position]):
            self.rollback()
        if self._position == 0 and position == 1:
            self._learn_first(self._check_tokens(array, 0, 1))
        start = max(self._position, 1)
        if start == position:
            return
        array = self._check_tokens(array, start, position)
        zeros = np.zeros(position - start)
        network = (zeros, zeros, zeros)
        if self.config.needs_network or "entropy" in self.config.contexts:
            if self._stash is None or self._stash[0] != start or position != start + 1:
                raise ValueError(
                    f"cannot learn tokens [{start}, {position}) without the network's values there; "
                    "score the span, or ask for its rows one position after the other"
                )
            neural, tempered, entropy = self._stash[1]
            token = int(array[start])
            network = (neural[token : token + 1], tempered[token : token + 1], entropy[None])
        self._advance(array, start, position, network, np.empty(position - start))

    def _learn_first(self, tokens: Tokens) -> None:
        """Learn token 0, which is context and never scored."""
        zero = np.zeros(1)
        self._pending = tokens[:1].astype(np.int64)
        self._experts.advance(self._pending, (zero, zero, zero))
        self._position = 1
