"""Which tensor gets which width: ordered rules, the first that matches decides."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from evalkit.artifact.tensors import INT_BITS
from evalkit.plumbing.errors import InputError
from evalkit.train.quantization.rows import INT8_QUANTILE, PERCENTILES, published_min_step

SMALL_ELEMENTS = 65_536  # inclusive: a 512x128 projection is small

CONTROL_PATTERNS = (
    "*attn_scale*",
    "*mlp_scale*",
    "*resid_mix*",
    "*q_gain*",
    "*skip_weights*",
    "*skip_gates*",
    "*lane_merge*",
    "*smear*gate*",
    "*attn_gate*",
    "*bigram*scale",
    "*trigram*scale",
    "*ve_*scale*",
    "*lambda*",
)
TABLE_PATTERNS = ("tok_emb.weight", "*embed.weight")

Format = str  # int4..int8, float16, bfloat16, float32
_FLOATS = ("float16", "bfloat16", "float32")
_INTS = tuple(f"int{bits}" for bits in INT_BITS)


@dataclass(frozen=True, kw_only=True)
class TensorRule:
    """How tensors whose name and size match are stored.

    Attributes:
        patterns: shell-style patterns of the name; any may match.
        format: ``int4`` to ``int8``, ``float16``, ``bfloat16`` or ``float32``.
        max_elements: applies to tensors of at most this many elements; 0 for any size.
        last_layers: applies to the last n layers only (names ``blocks.<i>.``); 0 for all. "Late-K" is a rule
            on the key projections with 2.
        clips: quantiles of a row's magnitudes to choose its clip from; 1 is the largest magnitude.
        deviations: the clip as a multiple of the row's standard deviation, in place of ``clips``; 0 leaves it to them.
        min_step: floor of the quantisation step; the published systems' hidden floor is ``1 / limit``.
        gptq: compensate rounding with the layer's Hessian where one is given.
    """

    patterns: tuple[str, ...]
    format: Format
    max_elements: int = 0
    last_layers: int = 0
    clips: tuple[float, ...] = (1.0,)
    deviations: float = 0.0
    min_step: float = 0.0
    gptq: bool = False

    def __post_init__(self) -> None:
        if self.format not in _INTS + _FLOATS:
            raise InputError(f"format {self.format!r} is none of {', '.join(_INTS + _FLOATS)}")
        if not self.clips or not all(0 < clip <= 1 for clip in self.clips):
            raise InputError(f"the clips {self.clips} of a rule must be quantiles above 0 and at most 1")
        if self.deviations and not 1 <= self.deviations < 1000:
            raise InputError(f"a clip of {self.deviations} standard deviations: expected 1 to 1000, or 0 for quantiles")
        if not 0 <= self.min_step < 65504:
            raise InputError(f"the smallest step {self.min_step} must be at least 0 and fit float16")
        if self.max_elements < 0 or self.last_layers < 0:
            raise InputError("max_elements and last_layers of a rule must not be negative")

    @property
    def bits(self) -> int:
        """Width of the integers, 0 for the floating-point formats."""
        return int(self.format[3:]) if self.format in _INTS else 0

    def matches(self, name: str, elements: int, layers: int) -> bool:
        """Return whether the rule applies to a tensor of this name and size in a model of so many layers."""
        if self.max_elements and elements > self.max_elements:
            return False
        if self.last_layers:
            layer = layer_of(name)
            if layer is None or layer < layers - self.last_layers:
                return False
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


@dataclass(frozen=True, kw_only=True)
class QuantizationPlan:
    """Ordered rules for every tensor of a model.

    Attributes:
        rules: the first that matches decides; a tensor that none matches is an error.
        bfloat16_tables: names of tensors that the model holds in bfloat16; all others are float32.
        magnitude_prune: share of the smallest weights of every large matrix that is zeroed before
            quantisation.
    """

    rules: tuple[TensorRule, ...]
    bfloat16_tables: tuple[str, ...] = TABLE_PATTERNS
    magnitude_prune: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude_prune < 1:
            raise InputError(f"the pruned share {self.magnitude_prune} must be at least 0 and below 1")

    def rule_for(self, name: str, elements: int, layers: int) -> TensorRule:
        """Return the rule that decides.

        Raises:
            InputError: no rule matches the name.
        """
        for rule in self.rules:
            if rule.matches(name, elements, layers):
                return rule
        raise InputError(f"no rule of the quantisation plan matches tensor {name!r} of {elements} elements")

    def dtype_of(self, name: str) -> str:
        """Return the dtype in which the model holds a tensor."""
        return "bfloat16" if any(fnmatchcase(name, p) for p in self.bfloat16_tables) else "float32"

    def for_width(self, factor: float) -> QuantizationPlan:
        """Return the plan for a model whose width is ``factor`` times that of the one it was made for.

        Bounds on the size of a tensor follow the size of a matrix, so that the same tensors are quantised.
        """
        rules = tuple(
            replace(r, max_elements=max(round(r.max_elements * factor**2), r.max_elements > 0)) for r in self.rules
        )
        return replace(self, rules=rules)

    def with_gptq(self, name: str, elements: int, layers: int) -> QuantizationPlan:
        """Return the plan with GPTQ for one tensor, in whatever format its rule gives it."""
        rule = replace(
            self.rule_for(name, elements, layers), patterns=(name,), max_elements=0, last_layers=0, gptq=True
        )
        return replace(self, rules=(rule, *self.rules))

    def without_gptq(self) -> QuantizationPlan:
        """Return the plan with everything rounded to nearest."""
        return replace(self, rules=tuple(replace(rule, gptq=False) for rule in self.rules))


def layer_of(name: str) -> int | None:
    """Return the layer index in ``blocks.<i>.``, or None."""
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def layer_count(names: Iterable[str]) -> int:
    """Return one more than the largest layer index among the names, 0 if there is none."""
    return 1 + max((layer for layer in map(layer_of, names) if layer is not None), default=-1)


_ATTENTION = ("*.attn.c_q.weight", "*.attn.c_k.weight", "*.attn.c_v.weight", "*.attn.proj.weight")
_MLP = ("*.mlp.*",)
_ALL = ("*",)


def _small(format: Format) -> TensorRule:
    return TensorRule(patterns=_ALL, format=format, max_elements=SMALL_ELEMENTS)


def _control(format: Format) -> TensorRule:
    return TensorRule(patterns=CONTROL_PATTERNS, format=format, max_elements=SMALL_ELEMENTS)


def _int8(patterns: tuple[str, ...], gptq: bool = False) -> TensorRule:
    return TensorRule(
        patterns=patterns, format="int8", clips=(INT8_QUANTILE,), min_step=published_min_step(8), gptq=gptq
    )


def _block(patterns: tuple[str, ...], bits: int) -> TensorRule:
    return TensorRule(
        patterns=patterns, format=f"int{bits}", clips=PERCENTILES, min_step=published_min_step(bits), gptq=True
    )


def _deviations(patterns: tuple[str, ...], bits: int, deviations: float, *, gptq: bool = True) -> TensorRule:
    return TensorRule(patterns=patterns, format=f"int{bits}", deviations=deviations, gptq=gptq)


_GPTQ_TO_INT6 = QuantizationPlan(rules=(_small("float16"), _block(_MLP + _ATTENTION, 6), _int8(_ALL)))
_SDCLIP = QuantizationPlan(
    rules=(_small("float16"), _deviations(("tok_emb.weight",), 8, 20.0), _deviations(_ALL, 6, 12.85))
)

# What the published systems store, with their hidden floors explicit. How the integers are found is this package's own:
# clips by row, GPTQ for every matrix of the blocks, because that is better on each of them.
PLANS: dict[str, QuantizationPlan] = {
    "baseline": QuantizationPlan(
        rules=(_control("float32"), _small("float16"), _int8(_MLP + _ATTENTION, gptq=True), _int8(_ALL))
    ),
    "pr333": QuantizationPlan(
        rules=(
            TensorRule(patterns=("tok_emb.weight",), format="float16"),
            TensorRule(patterns=("*.attn.c_k.weight",), format="float16", last_layers=2),
            _control("float32"),
            _small("float16"),
            TensorRule(patterns=_MLP, format="int5", gptq=True),
            TensorRule(patterns=_ATTENTION, format="int6", gptq=True),
            TensorRule(patterns=_ALL, format="int6"),
        ),
        magnitude_prune=0.02,
    ),
    "pr592": QuantizationPlan(rules=(_small("float16"), _block(_MLP, 5), _block(_ATTENTION, 6), _int8(_ALL))),
    "pr344": QuantizationPlan(
        rules=(
            TensorRule(patterns=("tok_emb.weight", "smear*.gate"), format="float16"),
            _control("float32"),
            _small("float16"),
            _block(_MLP + _ATTENTION, 6),
            replace(_block(_ALL, 6), gptq=False),
        )
    ),
    **dict.fromkeys(("pr634", "pr1218", "pr1334"), _GPTQ_TO_INT6),
    "pr849": QuantizationPlan(
        rules=(_small("float16"), _block(_MLP + _ATTENTION, 5), _int8(_ALL)),
        magnitude_prune=0.03,
    ),
    **dict.fromkeys(("pr1394", "pr1477", "pr1493", "pr1529"), _SDCLIP),
    # The clip of PR1394 and later ones; tables other than the head's have no Hessian.
    "best": QuantizationPlan(
        rules=(
            _small("float16"),
            _deviations(("tok_emb.weight",), 8, 20.0),
            _deviations(("*.embed.weight",), 8, 20.0, gptq=False),
            _deviations(_ALL, 6, 12.85),
        )
    ),
}
