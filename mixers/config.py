"""Configuration of the online mixer: which experts, how their counts are smoothed, how they are weighed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAX_ORDERS = 12
"""Most orders that the tree may see of the stream, or of the document."""

NGRAMS = ("unigram", "bigram", "trigram", "4-gram")
"""The n-gram experts; each one's place is how many tokens of context it has."""

DISCOUNTS = ((0.5, 0.8, 1.0), (0.7, 1.0, 1.3), (0.8, 1.1, 1.4), (0.85, 1.2, 1.5), (0.88, 1.3, 1.6), (0.92, 1.4, 1.7))
DOCUMENT_DISCOUNTS = ((0.85, 1.2, 1.5),)
DEFAULT_MEMORY_BYTES = 2 * 1024**3


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """What a :class:`evalkit.mixers.mixer.Mixer` is made of.

    Attributes:
        vocab_size: V, 2 to 65,535.
        experts: names, in the order of all reports. ``neural`` and ``entropy`` are computed by the caller; ``unigram``,
            ``bigram``, ``trigram`` and ``4-gram`` count the whole stream; ``tree`` mixes counts of the stream and of
            the current document bit by bit.
        method: ``hedge`` (multiplicative weights) or ``gate`` (softmax weights learned by gradient).
        eta: Hedge's learning rate; 1 is the Bayes mixture.
        share: Hedge's fixed share, the part of the weight that is spread evenly after every token.
        prior: initial weights, one for each expert, positive; None trusts a network most, then the tree.
        contexts: what chooses the weight set. For Hedge any of ``order`` (highest order with counts) and ``entropy``
            (bucket of the network's entropy): one set for each combination. The gate adds up one set for each of its
            own contexts and heeds ``entropy`` alone.
        entropy_edges: borders of the entropy buckets, nats, ascending.
        gate_rate: step of the gate.
        discounts: Kneser-Ney discounts (for counts 1, 2, 3 and more), one triple for each order; the last is used
            for all higher orders.
        document_discounts: the same for the document's counts (the tree's).
        tree_orders: orders of the stream that the tree expert sees, 1 to 12.
        tree_document_orders: orders of the document that it sees, 0 to 12; none without a document token.
        tree_rate: step of its logistic weights.
        document_token: the token that opens a document (1 for these tokenizers), or None for a stream without any.
        memory_bytes: bound for all tables together.
    """

    vocab_size: int
    experts: tuple[str, ...] = ("neural", "unigram", "bigram", "trigram", "4-gram", "entropy")
    method: Literal["hedge", "gate"] = "hedge"
    eta: float = 1.0
    share: float = 0.0
    prior: tuple[float, ...] | None = None
    contexts: tuple[str, ...] = ()
    entropy_edges: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
    gate_rate: float = 0.1
    discounts: tuple[tuple[float, float, float], ...] = DISCOUNTS
    document_discounts: tuple[tuple[float, float, float], ...] = DOCUMENT_DISCOUNTS
    tree_orders: int = 5
    tree_document_orders: int = 4
    tree_rate: float = 0.008
    document_token: int | None = 1
    memory_bytes: int = DEFAULT_MEMORY_BYTES

    def __post_init__(self) -> None:
        if not 2 <= self.vocab_size <= 65535:
            raise ValueError(f"vocab_size is {self.vocab_size}; expected 2 to 65535")
        if not self.experts or len(set(self.experts)) != len(self.experts):
            raise ValueError(f"experts {self.experts} must name at least one expert, and none twice")
        for name in self.experts:
            if name not in ("neural", "entropy", "tree", *NGRAMS):
                raise ValueError(f"unknown expert {name!r}; expected neural, entropy, {', '.join(NGRAMS)} or tree")
        if self.document_token is not None and not 0 <= self.document_token < self.vocab_size:
            raise ValueError(f"document_token is {self.document_token}; expected an id below {self.vocab_size} or None")
        if self.method not in ("hedge", "gate"):
            raise ValueError(f"method is {self.method!r}; expected 'hedge' or 'gate'")
        if not 0.0 < self.eta <= 10.0:
            raise ValueError(f"eta is {self.eta}; expected a learning rate above 0 and at most 10")
        if not 0.0 <= self.share < 1.0:
            raise ValueError(f"share is {self.share}; expected at least 0 and below 1")
        if not 0.0 <= self.gate_rate <= 10.0:
            raise ValueError(f"gate_rate is {self.gate_rate}; expected 0 to 10")
        if self.prior is not None and (len(self.prior) != len(self.experts) or not all(w > 0 for w in self.prior)):
            raise ValueError(f"prior {self.prior} must hold {len(self.experts)} positive weights, one for each expert")
        if "order" in self.contexts and not {*NGRAMS, "tree"} & set(self.experts):
            raise ValueError("weight sets by order need an n-gram expert or the tree; there is none")
        unknown = set(self.contexts) - {"order", "entropy"}
        if unknown:
            raise ValueError(f"unknown weight-set contexts {sorted(unknown)}; expected 'order' or 'entropy'")
        if list(self.entropy_edges) != sorted(set(self.entropy_edges)):
            raise ValueError(f"entropy_edges {self.entropy_edges} must ascend")
        for triple in (*self.discounts, *self.document_discounts):
            # A discount above its count would make a probability negative.
            if len(triple) != 3 or not all(0.0 < d <= c for d, c in zip(triple, (1.0, 2.0, 3.0), strict=True)):
                raise ValueError(f"discounts {triple} must be three numbers above 0 and at most 1, 2 and 3")
        if not self.discounts or not self.document_discounts:
            raise ValueError("discounts and document_discounts need at least one triple each")
        if not (1 <= self.tree_orders <= MAX_ORDERS and 0 <= self.tree_document_orders <= MAX_ORDERS):
            raise ValueError(f"tree orders {self.tree_orders}, {self.tree_document_orders}; expected 1 to {MAX_ORDERS}")
        if not 0.0 <= self.tree_rate <= 1.0:
            raise ValueError(f"tree_rate is {self.tree_rate}; expected 0 to 1")
        if self.memory_bytes < 2**16:
            raise ValueError(f"memory_bytes is {self.memory_bytes}; expected at least 65536")

    @property
    def needs_network(self) -> bool:
        """Whether the caller must supply a network's log-probabilities."""
        return "neural" in self.experts or "entropy" in self.experts

    @property
    def orders(self) -> int:
        """Number of orders, the unigram included, that the n-gram experts need."""
        return 1 + max((NGRAMS.index(name) for name in self.experts if name in NGRAMS), default=-1)


def default_config(
    vocab_size: int, *, network: bool = True, document_token: int | None = 1, memory_bytes: int = DEFAULT_MEMORY_BYTES
) -> MixerConfig:
    """Return the fast preset: the six default experts under Hedge, or the four n-grams alone without a network."""
    return MixerConfig(
        vocab_size=vocab_size,
        experts=("neural", *NGRAMS, "entropy") if network else NGRAMS,
        share=0.001,
        contexts=("order",),
        document_token=document_token,
        memory_bytes=memory_bytes,
    )


def best_config(
    vocab_size: int, *, network: bool = True, document_token: int | None = 1, memory_bytes: int = DEFAULT_MEMORY_BYTES
) -> MixerConfig:
    """Return the preset for the fewest bits: the tree expert, and the gate beside a network."""
    return MixerConfig(
        vocab_size=vocab_size,
        # The n-grams that the tree is made of add nothing beside it.
        experts=("neural", "entropy", "tree") if network else ("tree",),
        method="gate",
        contexts=("entropy",) if network else (),
        document_token=document_token,
        memory_bytes=memory_bytes,
    )
