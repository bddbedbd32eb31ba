"""What a recipe says about training: one frozen dataclass for each section of its TOML file.

A recipe names only what differs from the defaults here, and ``--set section.key=value`` overrides any field
(:mod:`train.resolve`). The attributes below are the reference of the keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evalkit.model.config import ModelConfig
from evalkit.plumbing.settings import require, typed_fields

Precision = Literal["bfloat16", "float32"]
AutoPrecision = Literal["auto", "bfloat16", "float32"]
AverageKind = Literal["raw", "ema", "swa"]


def _require_all(config: object, test: Callable[[Any], bool], expected: str, *names: str) -> None:
    """Require the same of several fields of a section."""
    section = next(name for name, kind in SECTIONS.items() if isinstance(config, kind))
    for name in names:
        value = getattr(config, name)
        require(test(value), f"{section}.{name}", value, expected)


def _at_least(config: object, low: int, *names: str) -> None:
    _require_all(config, lambda value: value >= low, f"{low} or more", *names)


def _below_one(config: object, *names: str) -> None:
    _require_all(config, lambda value: 0 <= value < 1, "in [0, 1)", *names)


def _positive(config: object, *names: str) -> None:
    _require_all(config, lambda value: value > 0, "above 0", *names)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Section ``[train]``: the run as a whole.

    Attributes:
        batch_tokens: tokens of one optimizer step, over all ranks and micro-batches.
        spans: micro-batches that make up a step. Ranks share them out (``spans / ranks`` each), so the step
            is the same on 1 rank and on ``spans`` ranks. More spans need less memory.
        seq_len: window length in tokens.
        steps: last step at the latest.
        max_seconds: training clock at the end, in seconds, without validation and warm-up; 0 has no limit.
        warmup_steps: steps that compile and warm the kernels and are then undone; on a CPU one for each graph, and none
            where nothing is compiled.
        seed: seed of the initial weights.
        precision: dtype of matrices and activations in the forward pass; masters are float32. ``auto`` takes bfloat16
            on GPUs, and on CPUs that multiply faster in it (:mod:`evalkit.train.automatic`).
        table_precision: dtype of the masters (and Adam moments) of embedding tables.
        compile: ``auto`` compiles on GPUs, and on CPUs where the run is so long that it pays.
        device: ``auto`` takes a GPU if there is one.
        threads: CPU threads of each rank; 0 leaves torch's choice.
        validate_every: steps between validations; 0 validates at the end only.
        val_tokens: tokens of the validation stream that are scored; 0 scores all.
        val_batch_tokens: tokens scored at once in validation.
        checkpoint_every: steps between checkpoints; 0 leaves them to ``checkpoint_seconds``.
        checkpoint_seconds: seconds between checkpoints; 0 leaves them to ``checkpoint_every``.
        log_every: steps between lines of ``metrics.jsonl``.
        sync_every: steps between agreements of several ranks on clock, stop and signals.
        as_run: apply the recipe's ``[as_run]`` section, which recovers what the published run did.
    """

    batch_tokens: int = 524_288
    spans: int = 8
    seq_len: int = 1024
    steps: int = 20_000
    max_seconds: float = 600.0
    warmup_steps: int = 20
    seed: int = 1337
    precision: AutoPrecision = "auto"
    table_precision: Precision = "float32"
    compile: Literal["auto", "on", "off"] = "auto"
    device: str = "auto"
    threads: int = 0
    validate_every: int = 0
    val_tokens: int = 0
    val_batch_tokens: int = 32_768
    checkpoint_every: int = 0
    checkpoint_seconds: float = 120.0
    log_every: int = 10
    sync_every: int = 10
    as_run: bool = False

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_tokens", "spans", "seq_len", "steps", "log_every", "sync_every", "val_batch_tokens")
        _at_least(self, 0, "max_seconds", "warmup_steps", "threads", "validate_every", "val_tokens")
        _at_least(self, 0, "checkpoint_every", "checkpoint_seconds")
        require(
            self.batch_tokens % (self.spans * self.seq_len) == 0,
            "train.batch_tokens",
            self.batch_tokens,
            f"a multiple of train.spans x train.seq_len = {self.spans} x {self.seq_len}",
        )

    @property
    def span_tokens(self) -> int:
        """Predicted tokens of one micro-batch."""
        return self.batch_tokens // self.spans


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Section ``[optimizer]``: Muon for block matrices, Adam(W) for the rest.

    Attributes:
        layout: ``matrices`` trains each matrix by itself; ``banks`` stacks matrices of one kind into one
            parameter and trains the stacks with Parallel Muon (PR634).
        matrix_lr: learning rate of Muon.
        scalar_lr: of gains, mixes, gates, scales.
        embed_lr: of embedding tables, the tied head included.
        head_lr: of an untied head.
        momentum: Muon's momentum in the plain-sum convention M <- momentum M + G, once warmed up.
        momentum_start: momentum at step 0.
        momentum_warmup: steps over which it rises, linearly; a horizon (see :class:`ScheduleConfig`).
        stretch_momentum: the mean age of what momentum remembers, momentum / (1 - momentum) steps, is a horizon too,
            of 9 steps at least (unless it is shorter): gradients of 100 steps ago say little in a run of 300.
        nesterov: update from G + momentum M in place of M.
        ns_steps: Newton-Schulz iterations.
        ns_precision: dtype of their products; ``auto`` as for ``train.precision``.
        ns_coefficients: their polynomials: ``jordan`` repeats one; ``polar_express`` has one for each iteration.
        row_normalise: give the rows of an update length 1 before Newton-Schulz (MuonEq-R).
        matrix_weight_decay: decoupled decay of Muon's matrices, times the scheduled learning rate.
        adam_weight_decay: the same for Adam's parameters; 0 makes it plain Adam.
        decay_vectors: decay gains, mixes, gates and scales too. Off as meant: decay pulls gains that start at
            1 to 0.
        vector_weight_decay: their decay, where ``decay_vectors`` is on; 0 takes ``adam_weight_decay``.
        adam_beta1: decay of Adam's first moment.
        adam_beta2: decay of Adam's second moment.
        adam_eps: Adam's epsilon.
        clip_norm: largest global L2 norm of the reduced gradient; 0 does not clip.
        small_projections: optimizer of hash and value-embedding projections.
        momentum_precision: dtype of Muon's momentum buffers.
        reduce_precision: dtype in which gradients travel between ranks.
    """

    layout: Literal["matrices", "banks"] = "matrices"
    matrix_lr: float = 0.025
    scalar_lr: float = 0.025
    embed_lr: float = 0.035
    head_lr: float = 0.008
    momentum: float = 0.99
    momentum_start: float = 0.92
    momentum_warmup: int = 1500
    stretch_momentum: bool = False
    nesterov: bool = True
    ns_steps: int = 5
    ns_precision: AutoPrecision = "auto"
    ns_coefficients: Literal["jordan", "polar_express"] = "jordan"
    row_normalise: bool = False
    matrix_weight_decay: float = 0.04
    adam_weight_decay: float = 0.04
    decay_vectors: bool = False
    vector_weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_norm: float = 0.3
    small_projections: Literal["muon", "adam"] = "muon"
    momentum_precision: Precision = "float32"
    reduce_precision: Precision = "float32"

    def __post_init__(self) -> None:
        _at_least(self, 0, "matrix_lr", "scalar_lr", "embed_lr", "head_lr", "clip_norm", "momentum_warmup")
        _below_one(self, "momentum", "momentum_start", "adam_beta1", "adam_beta2")
        _below_one(self, "matrix_weight_decay", "adam_weight_decay", "vector_weight_decay")
        _at_least(self, 1, "ns_steps")
        _positive(self, "adam_eps")

    @property
    def vector_decay(self) -> float:
        """Decay of gains, mixes, gates and scales."""
        return (self.vector_weight_decay or self.adam_weight_decay) if self.decay_vectors else 0.0


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Section ``[schedule]``: the learning rate over the run.

    Constants in steps (``warmdown``, ``optimizer.momentum_warmup``, ``averaging.ema_decay`` with its memory
    of 1 / (1 - decay) steps, ``averaging.swa_every``) are horizons: they belong to a run of
    ``reference_steps``. Fractions are of the run, by the tighter of its budgets in steps and in seconds.

    Attributes:
        warmdown: steps of the final decay to zero; 0 keeps the rate constant.
        warmdown_fraction: the decay as a fraction of the run, in place of ``warmdown``; 0 leaves it to that.
        shape: decay along a line or half a cosine.
        reference_steps: length of the published run, in steps.
        loop_start: fraction of the run before which a pass visits every block once, in order, whatever
            ``model.layer_order`` says; 0 has the order from the first step on. The weights at the end always have it.
        stretch: multiply every horizon by (length of this run) / ``reference_steps``, so that a run of 300
            steps goes through the same phases; off uses the constants as they stand.
    """

    warmdown: int = 3500
    warmdown_fraction: float = 0.0
    shape: Literal["linear", "cosine"] = "linear"
    reference_steps: int = 6000
    loop_start: float = 0.0
    stretch: bool = True

    def __post_init__(self) -> None:
        _at_least(self, 0, "warmdown")
        _require_all(self, lambda value: 0 <= value <= 1, "in [0, 1]", "warmdown_fraction", "loop_start")
        _at_least(self, 1, "reference_steps")


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Section ``[init]``: one pass of explicit rules over the parameters.

    Attributes:
        linear: ``orthogonal`` or torch's default ``uniform`` for matrices; attention-out and MLP-down are
            zero.
        projection_scaling: multiply hash and value-embedding projections by 1 / sqrt(2 layers).
        embedding: ``normal``, or ``overtone``, which gives the spectrum the shape k^(-1/2).
        embedding_std: standard deviation of the token embedding.
        residual_mix: ``identity`` starts at (1, 0); ``phase`` moves from x0 to x with depth.
        attention_gate: weight of sigmoid gates; the bias starts at 4 either way.
        q_gain: factor on the queries of every head.
    """

    linear: Literal["orthogonal", "uniform"] = "orthogonal"
    projection_scaling: bool = True
    embedding: Literal["normal", "overtone"] = "normal"
    embedding_std: float = 0.005
    residual_mix: Literal["identity", "phase"] = "identity"
    attention_gate: Literal["zeros", "orthogonal"] = "zeros"
    q_gain: float = 1.5

    def __post_init__(self) -> None:
        _positive(self, "embedding_std", "q_gain")


@dataclass(frozen=True, kw_only=True)
class AveragingConfig:
    """Section ``[averaging]``: float32 averages, fixed in advance and never chosen on validation data.

    Attributes:
        ema_decay: e <- decay e + (1 - decay) w after each step, from the initial weights; 0 keeps no EMA. A
            horizon.
        swa_every: steps between samples of the SWA mean; 0 keeps none. A horizon.
        swa_start_scale: samples are taken while the learning-rate scale is below this.
        swa_source: sample the raw weights or their EMA.
        export: which weights become ``model.pt``. ``swa`` with fewer than two samples falls back to the EMA,
            and the EMA to the raw weights.
    """

    ema_decay: float = 0.0
    swa_every: int = 0
    swa_start_scale: float = 0.2
    swa_source: Literal["raw", "ema"] = "raw"
    export: AverageKind = "raw"

    def __post_init__(self) -> None:
        _below_one(self, "ema_decay")
        _at_least(self, 0, "swa_every")
        if self.swa_every and not self.ema_decay:
            require(self.swa_source == "raw", "averaging.swa_source", "ema", "raw, because averaging.ema_decay is 0")
        if self.export == "ema":
            require(self.ema_decay > 0, "averaging.export", "ema", "averaging.ema_decay above 0")
        if self.export == "swa":
            require(self.swa_every > 0, "averaging.export", "swa", "averaging.swa_every above 0")


@dataclass(frozen=True, kw_only=True)
class QatConfig:
    """Section ``[qat]``: training through the quantiser.

    Attributes:
        enabled: whether QAT happens at all.
        mlp_bits: width of MLP matrices in training; 0 leaves them alone.
        attention_bits: width of attention matrices.
        projection_bits: width of hash and value-embedding projections.
        layer_bits: exceptions, as ``pattern=bits`` with shell wildcards over weight names; the last match
            counts.
        row_clip: row clip c as the largest magnitude (``amax``, as the export has it) or a ``quantile`` of
            them.
        quantile: the quantile of ``row_clip = "quantile"``.
        clip_floor: smallest row clip. The step is max(c, clip_floor) / max_int, so 1.0 gives the published
            smallest step of 1/31 (int6) or 1/15 (int5). It must agree with the export.
        start_scale: begin once the learning-rate scale is below this; 0 waits for ``start_fraction``.
        start_fraction: begin once this fraction of the run is over; 0 waits for ``start_scale``.
        rounding: ``ste`` rounds, with the identity as gradient; ``soft`` is a differentiable staircase.
        soft_alpha_start: sharpness of the staircase when QAT begins.
        soft_alpha_end: sharpness at the end of the run.
        grid_pull: how late weights are pulled to the grid. Each step shrinks their distance to the nearest grid point,
            so that it follows 1 - p^grid_pull, with p going from 0 at QAT's start to 1 at the end of the run. Larger is
            later; 0 leaves weights where training puts them, which for ``ste`` is anywhere.
        crown_q: weight of the penalty on w^2 step^2 / 12; 0 leaves it out.
        crown_q_reduction: ``sum`` over all weights, or the published ``mean`` (about 10^6 times weaker:
            inert).
    """

    enabled: bool = False
    mlp_bits: int = 6
    attention_bits: int = 6
    projection_bits: int = 0
    layer_bits: tuple[str, ...] = ()
    row_clip: Literal["amax", "quantile"] = "amax"
    quantile: float = 0.9995
    clip_floor: float = 0.0
    start_scale: float = 0.15
    start_fraction: float = 0.0
    rounding: Literal["ste", "soft"] = "ste"
    soft_alpha_start: float = 1.0
    soft_alpha_end: float = 16.0
    grid_pull: float = 4.0
    crown_q: float = 0.0
    crown_q_reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        _require_all(self, _is_width, "0, or 2 to 8", "mlp_bits", "attention_bits", "projection_bits")
        _require_all(self, lambda value: 0 <= value <= 1, "in [0, 1]", "start_scale", "start_fraction")
        _at_least(self, 0, "clip_floor", "crown_q", "grid_pull")
        for item in self.layer_bits:
            _, _, bits = item.rpartition("=")
            require(
                "=" in item and bits.strip().isdigit() and _is_width(int(bits)),
                "qat.layer_bits",
                item,
                "pattern=bits such as blocks.10.attn.*=6, with 0 or 2 to 8 bits",
            )
        require(0 < self.quantile <= 1, "qat.quantile", self.quantile, "in (0, 1]")
        require(
            not self.enabled or self.start_scale > 0 or self.start_fraction > 0,
            "qat.start_scale",
            self.start_scale,
            "above 0, unless qat.start_fraction is",
        )
        require(
            0 < self.soft_alpha_start <= self.soft_alpha_end,
            "qat.soft_alpha_start",
            self.soft_alpha_start,
            f"above 0 and at most qat.soft_alpha_end {self.soft_alpha_end}",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Section ``[data]``: which shards of the data folder are read.

    Attributes:
        train_pattern: file names of the training shards, read in the order of their numbers, again from
            the first after the last.
        val_pattern: file names of the validation shards; without any, a run goes unvalidated.
        max_shards: training shards to use, the first ones; 0 uses all.
    """

    train_pattern: str = "*train*.bin"
    val_pattern: str = "*val*.bin"
    max_shards: int = 0

    def __post_init__(self) -> None:
        _at_least(self, 0, "max_shards")


def _is_width(bits: int) -> bool:
    return bits == 0 or 2 <= bits <= 8


SECTIONS: dict[str, type[Any]] = {
    "train": TrainConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "init": InitConfig,
    "averaging": AveragingConfig,
    "qat": QatConfig,
    "data": DataConfig,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's weights, besides the shards.

    Attributes:
        recipe: name of the recipe.
        model: section ``[model]``, resolved.
        train: section ``[train]``, and so on for the other sections.
        optimizer: see above.
        schedule: see above.
        init: see above.
        averaging: see above.
        qat: see above.
        data: see above.
        other: sections that other stages read (``scoring``, ``quantization``, ...), as the recipe has them.
    """

    recipe: str
    model: ModelConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    init: InitConfig
    averaging: AveragingConfig
    qat: QatConfig
    data: DataConfig
    other: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return every section with every field, as JSON and TOML can hold it."""
        sections: dict[str, Any] = {"model": self.model.to_dict()}
        for name in SECTIONS:
            values = dataclasses.asdict(getattr(self, name))
            sections[name] = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return sections | self.other

    @classmethod
    def from_dict(cls, recipe: str, sections: Mapping[str, Any]) -> RunConfig:
        """Build a run from :meth:`to_dict`'s output.

        Raises:
            InputError: a section or field is unknown, or has the wrong type or value.
        """
        parsed = {name: kind(**typed_fields(kind, sections.get(name, {}), name)) for name, kind in SECTIONS.items()}
        other = {k: v for k, v in sections.items() if k not in SECTIONS and k != "model"}
        return cls(recipe=recipe, model=ModelConfig.from_dict(dict(sections["model"])), other=other, **parsed)
