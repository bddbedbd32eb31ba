"""The configuration of the model: every feature is a field, and no field knows about any published system."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from evalkit.plumbing.errors import InputError
from evalkit.plumbing.settings import require, require_choices, typed_fields

Activation = Literal["relu2", "leaky_relu2"]
RopeTable = Literal["exact", "bf16"]
XsaForm = Literal["projection", "mean"]
ValueResidual = Literal["none", "first_layer", "x0"]
AttentionGate = Literal["none", "sigmoid", "scalar", "window", "window_doubled"]
GateSource = Literal["input", "query"]
ParallelForm = Literal["none", "joint", "lanes", "lanes_dead_skips", "routed", "routed_late_skip"]

MAX_PASSES = 256
"""Most visits of blocks in one pass: published systems have up to 17, and a long order would ask for all memory."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A GPT of the parameter-golf family.

    Attributes:
        vocab_size: number of token ids.
        num_layers: transformer blocks.
        model_dim: width of the residual stream.
        num_heads: query heads.
        num_kv_heads: key and value heads; consecutive query heads share one.
        mlp_hidden: hidden width of the MLP.
        tie_embeddings: the head is the token embedding; otherwise ``lm_head`` is a matrix of its own.
        activation: ``relu2`` is relu(z)^2; ``leaky_relu2`` is leaky_relu(z, leaky_slope)^2.
        leaky_slope: negative slope of ``leaky_relu2``.
        logit_softcap: logits are c * tanh(logits / c); 0 switches it off.
        rope_base: base of the rotary frequencies.
        rope_dims: rotated dimensions of each head; 0 rotates all of them.
        rope_train_len: fed length beyond which the base is rescaled (NTK-aware); 0 never rescales.
        rope_table: ``exact`` frequencies in float32, or rounded to bfloat16 unless rescaled, as a bfloat16 buffer
            holds them.
        xsa_last_n: exclusive self-attention on the last n layers (all of them if n exceeds the number of layers).
        xsa_form: ``projection`` removes the component along the position's own value; ``mean`` subtracts v / T.
        ln_scale: normed inputs of layer i are scaled by 1 / sqrt(i + 1).
        layer_order: blocks in the order in which a pass visits them; empty is 0 .. num_layers - 1. A block that comes
            twice acts twice with the same weights. The first half of the visits, rounded down, is the encoder.
        unet_skips: the encoder's visits feed the others, last to first, with learned weights.
        skip_rows: rows of the skip table, and so the most skips there are; 0 is one for each visit of the encoder.
        skip_gates: a skip is blended in, g x + (1 - g) w s, by learned gates g; otherwise added, x + w s.
        parallel_form: ``joint`` has attention and MLP of a block read the same input. The others split the stream into
            a lane for attention and one for the MLP, which meet at the end by a learned weight (``lanes``), the same
            with skips that do not reach the lanes (``lanes_dead_skips``), or by learned routes between the lanes in
            every block, and their mean at the end (``routed``; ``routed_late_skip`` splits before the skip of the
            splitting block, which then reaches the lane for attention alone, as merged records from PR1530 on).
        parallel_start: first block with ``parallel_form``; ``lanes`` and ``lanes_dead_skips`` do not split before the
            decoder, which is the second half of the visits.
        smear_gate: each position mixes in its predecessor's embedding, by a learned gate per dimension.
        smear_width: each position adds its predecessor's embedding times a learned factor and a gate, which reads so
            many dimensions of the position's embedding; 0 leaves it out.
        smear_reset_token: token that takes nothing from its predecessor (``smear_width``); -1 for none.
        bigram_buckets: rows of the bigram hash table; 0 leaves it out.
        bigram_dim: width of the bigram hash table.
        trigram_buckets: rows of the trigram hash table; 0 leaves it out.
        trigram_dim: width of the trigram hash table.
        value_embed_layers: layers whose values get a token embedding added; empty leaves it out.
        value_embed_dim: width of the value embedding table.
        value_residual: ``first_layer`` blends layer 0's values into later ones (PR344); ``x0`` adds a multiple of
            the first hidden state to each block's output (PR849).
        attention_gate: factor of each head's output: ``sigmoid`` of a linear map of the normed input (PR344); a free
            ``scalar`` (PR849); ``window``, sigmoid(scale W s) without a bias, s the first dimensions of what it reads;
            ``window_doubled``, twice that.
        attention_gate_width: dimensions that a ``window`` gate reads.
        attention_gate_scale: factor inside the sigmoid of a ``window`` gate.
        attention_gate_source: what a ``window`` gate reads: the normed ``input``, or its ``query`` projection.
        pair_buckets: rows of a table that is indexed by a hash of the last two tokens and added behind the embedding's
            norm; 0 leaves it out. No artifact holds one: it starts at zero, and test-time training fills it (PR1529).
    """

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    mlp_hidden: int
    tie_embeddings: bool = True
    activation: Activation = "relu2"
    leaky_slope: float = 0.5
    logit_softcap: float = 30.0
    rope_base: float = 10000.0
    rope_dims: int = 0
    rope_train_len: int = 0
    rope_table: RopeTable = "exact"
    xsa_last_n: int = 0
    xsa_form: XsaForm = "projection"
    ln_scale: bool = False
    layer_order: tuple[int, ...] = ()
    unet_skips: bool = True
    skip_rows: int = 0
    skip_gates: bool = False
    parallel_form: ParallelForm = "none"
    parallel_start: int = 0
    smear_gate: bool = False
    smear_width: int = 0
    smear_reset_token: int = -1
    bigram_buckets: int = 0
    bigram_dim: int = 128
    trigram_buckets: int = 0
    trigram_dim: int = 128
    value_embed_layers: tuple[int, ...] = ()
    value_embed_dim: int = 128
    value_residual: ValueResidual = "none"
    attention_gate: AttentionGate = "none"
    attention_gate_width: int = 0
    attention_gate_scale: float = 1.0
    attention_gate_source: GateSource = "input"
    pair_buckets: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_hidden"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        divides = self.model_dim % self.num_heads == 0
        self._require("num_heads", divides, f"a divisor of model_dim {self.model_dim}")
        divides = self.num_heads % self.num_kv_heads == 0
        self._require("num_kv_heads", divides, f"a divisor of num_heads {self.num_heads}")
        fits = 0 <= self.rope_dims <= self.head_dim and self.rope_dims % 2 == 0
        self._require("rope_dims", fits, f"an even number from 0 to the head width {self.head_dim}")
        self._require("rope_dims", self.rotated_dims % 2 == 0, "an even number of rotated dimensions")
        self._require("rope_base", self.rope_base > 1.0, "above 1")
        self._require("rope_train_len", self.rope_train_len >= 0, "0 (no NTK) or a length in tokens")
        self._require(
            "rope_dims",
            not (self.rope_train_len and self.rotated_dims == 2),
            "more than 2 when rope_train_len is set, since the NTK exponent is dims / (dims - 2)",
        )
        self._require("logit_softcap", self.logit_softcap >= 0.0, "0 (off) or positive")
        self._require("xsa_last_n", self.xsa_last_n >= 0, "0 or more")
        for name in ("bigram_buckets", "trigram_buckets"):
            self._require(name, getattr(self, name) != 1 and getattr(self, name) >= 0, "0 or at least 2")
        layers = self.value_embed_layers
        differ = len(set(layers)) == len(layers) and all(0 <= layer < self.num_layers for layer in layers)
        self._require("value_embed_layers", differ, f"different layers from 0 to {self.num_layers - 1}")
        self._check_passes()
        self._check_gates()
        require_choices(self, "model")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        """Width of all keys (or all values) of a position."""
        return self.num_kv_heads * self.head_dim

    @property
    def rotated_dims(self) -> int:
        """Dimensions of a head that RoPE rotates."""
        return self.rope_dims or self.head_dim

    @property
    def passes(self) -> tuple[int, ...]:
        """The block of every visit, in order."""
        return self.layer_order or tuple(range(self.num_layers))

    @property
    def encoder_passes(self) -> int:
        """Visits of the first half, whose outputs the U-Net skips carry."""
        return len(self.passes) // 2

    @property
    def num_skips(self) -> int:
        """Rows of the table of U-Net skips."""
        return (self.skip_rows or self.encoder_passes) if self.unet_skips else 0

    @property
    def has_lanes(self) -> bool:
        """Whether the residual stream splits into a lane for attention and one for the MLP."""
        return self.parallel_form in ("lanes", "lanes_dead_skips") or self.is_routed

    @property
    def is_routed(self) -> bool:
        """Whether every block with lanes sends what it computes to both of them, by learned routes."""
        return self.parallel_form in ("routed", "routed_late_skip")

    def uses_xsa(self, layer: int) -> bool:
        """Whether exclusive self-attention acts in ``layer``."""
        return layer >= self.num_layers - self.xsa_last_n

    def _require(self, name: str, condition: bool, expected: str) -> None:
        value = getattr(self, name)
        require(condition, f"model.{name}", ",".join(map(str, value)) if isinstance(value, tuple) else value, expected)

    def _check_passes(self) -> None:
        """Check the order of the blocks, the skips and the parallel residuals."""
        order, last = self.layer_order, self.num_layers - 1
        require(
            all(0 <= layer <= last for layer in order) and len(order) <= MAX_PASSES,
            "model.layer_order",
            ",".join(map(str, order[:64])),
            f"at most {MAX_PASSES} blocks from 0 to {last}; give the order with --set model.layer_order=I,J,...",
        )
        self._require("skip_rows", 0 <= self.skip_rows <= MAX_PASSES, f"0 to {MAX_PASSES}")
        if self.parallel_form != "none":
            expected = f"a block from 0 to {last}; give the first one with --set model.parallel_start=I"
            self._require("parallel_start", 0 <= self.parallel_start <= last, expected)
            expected = "none where value_residual is x0: no published system has both"
            self._require("parallel_form", self.value_residual != "x0", expected)

    def _check_gates(self) -> None:
        """Check the windows of gates, and the table of token pairs."""
        least = 1 if self.attention_gate.startswith("window") else 0
        fits = least <= self.attention_gate_width <= self.model_dim
        self._require("attention_gate_width", fits, f"{least} to model_dim {self.model_dim}")
        fits = 0 <= self.smear_width <= self.model_dim and not (self.smear_width and self.smear_gate)
        self._require("smear_width", fits, f"0 to model_dim {self.model_dim}, and 0 where smear_gate is on")
        fits = -1 <= self.smear_reset_token < self.vocab_size
        self._require("smear_reset_token", fits, f"a token below {self.vocab_size}, or -1 for none")
        self._require("pair_buckets", self.pair_buckets >= 0, "0 or more")

    def to_dict(self) -> dict[str, Any]:
        """Every field, as JSON can hold it."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build a configuration from :meth:`to_dict`'s output.

        Raises:
            InputError: a field is unknown, missing, or has the wrong type or value.
        """
        typed = typed_fields(cls, values, "model")
        required = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
        missing = [name for name in required if name not in values]
        if missing:
            raise InputError(f"the model's configuration lacks {', '.join(missing)}")
        return cls(**typed)


def coerce_field(name: str, value: Any) -> Any:
    """Turn a value from JSON, TOML or the command line into the type of ``ModelConfig.name``.

    Raises:
        InputError: there is no such field, or the value does not fit it.
    """
    return typed_fields(ModelConfig, {name: value}, "model")[name]
