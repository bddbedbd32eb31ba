"""From a finished run to an artifact: calibrate, quantise, prune, pack, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.artifact.layouts import held_values
from evalkit.artifact.load import load_artifact
from evalkit.artifact.native import NativeMetadata
from evalkit.artifact.recognition import open_settings
from evalkit.artifact.tensors import INT_BITS, StoredTensor
from evalkit.model.config import ModelConfig
from evalkit.model.gpt import GPT, head_name
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.progress import tracked
from evalkit.plumbing.version import __version__
from evalkit.recipes import load_recipe
from evalkit.tokens.kinds import open_tokenizer
from evalkit.train.export.export import (
    ArtifactFile,
    Container,
    Packer,
    code_size,
    quantize_state_dict,
    store_plain,
    write_packed,
)
from evalkit.train.export.fit import FitRow, fit
from evalkit.train.export.refine import refine
from evalkit.train.export.text import OwnSamples, TrainingText
from evalkit.train.export.torch_layouts import LAYOUTS, TorchLayout
from evalkit.train.folder import TrainedModel
from evalkit.train.qat import round_to_grid, with_width
from evalkit.train.quantization.curvature import collect_curvature
from evalkit.train.quantization.hessian import collect_hessians
from evalkit.train.quantization.plan import PLANS, QuantizationPlan, TensorRule
from evalkit.train.quantization.pruning import prune_to_size, zeroing_costs
from evalkit.train.quantization.rows import PERCENTILES

ROUNDED_SHARES = (0.0, 0.5, 1.0)
"""How far towards the grid of training-time rounding the weights are moved before GPTQ, as candidates."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How to export.

    Attributes:
        container: ``evalkit``, ``torch-zstd``, ``torch-xz``, ``torch-zlib`` or ``torch-brotli``.
        calibration_tokens: tokens whose layer inputs GPTQ sees; 0 rounds to nearest.
        calibration_data: folder with training shards; None calibrates on the model's own samples.
        force_calibration: calibrate on shards that look like validation data all the same.
        refine: training steps after rounding, with the integers fixed; they need ``calibration_data``.
        target_bytes: cap on artifact plus code, in bytes; over it, integers of +-1 are zeroed, cheapest first.
        fit: give every tensor the step with which the file just fits at the lowest loss, instead of the plan's.
        code: code files that ship with the artifact.
        tokenizer: what :func:`~evalkit.tokens.kinds.open_tokenizer` opens, whose hash goes into the artifact.
    """

    container: Container = "evalkit"
    calibration_tokens: int = 65_536
    calibration_data: Path | None = None
    force_calibration: bool = False
    refine: int = 0
    target_bytes: int = SIZE_CAP
    fit: bool = False
    code: tuple[Path, ...] = ()
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        if self.calibration_tokens < 0:
            raise InputError(f"--calibration-tokens is {self.calibration_tokens}; expected 0 (no GPTQ) or more")
        if self.fit and not self.calibration_tokens:
            raise InputError("--fit weighs errors by what text makes of them: give --calibration-tokens above 0")
        if self.refine < 0:
            raise InputError(f"--refine is {self.refine}; expected 0 (none) or a number of steps")
        if self.refine and self.calibration_data is None:
            raise InputError("--refine trains on text: name training shards with --data")
        if self.tokenizer:
            open_tokenizer(self.tokenizer)  # an error comes now, and not after the work
        if self.target_bytes < 1:
            raise InputError(f"--target-bytes is {self.target_bytes}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written.

    Attributes:
        file: the artifact.
        code_bytes: bytes of the code that ships with it.
        zeroed: integers of +-1 that were set to 0 to fit.
        notes: what a reader of the report must know.
        table: what ``fit`` tried.
        tensors: the artifact's tensors.
    """

    file: ArtifactFile
    code_bytes: int
    zeroed: int
    notes: list[str] = field(default_factory=list)
    table: list[FitRow] = field(default_factory=list)
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what a report holds of it."""
        return {
            "artifact": {"path": str(self.file.path), "bytes": self.file.n_bytes, "sha256": self.file.sha256},
            "code_bytes": self.code_bytes,
            "total_bytes": self.file.n_bytes + self.code_bytes,
            "zeroed": self.zeroed,
            "notes": self.notes,
            "tried": [asdict(row) for row in self.table],
            "tensors": {n: {"shape": list(t.values.shape), "format": t.format} for n, t in self.tensors.items()},
        }


def export_run(trained: TrainedModel, path: Path, config: ExportConfig) -> ExportResult:
    """Quantise a trained model and write it as an artifact.

    Raises:
        InputError: the run, the text to calibrate on or the target is unusable. Nothing is left half-written.
    """
    model = GPT(trained.config.model)
    model.load_state_dict(trained.weights)
    model.eval().requires_grad_(False)
    plan = plan_of(trained)
    code_bytes = code_size(list(config.code))
    layout = _layout(trained.config.recipe) if config.container != "evalkit" else None
    text: TrainingText | OwnSamples
    if config.calibration_data is None:
        text = OwnSamples(model, seq_len=trained.config.train.seq_len, calibration_tokens=config.calibration_tokens)
    else:
        text = TrainingText(
            config.calibration_data,
            trained,
            calibration_tokens=config.calibration_tokens,
            refine_steps=config.refine,
            force=config.force_calibration,
        )
    notes = list(text.notes)
    calibration = text.calibration()
    hessians = collect_hessians(model, calibration) if calibration else None
    weights = dict(trained.weights)
    if hessians and isinstance(text, TrainingText):
        weights, said = target_weights(model, trained, plan, hessians, text.held_out())
        notes += said
    pack = Packer(config.container, layout=layout, metadata=_metadata(trained, config, notes))
    table: list[FitRow] = []
    tensors: Mapping[str, StoredTensor]
    if config.fit:
        assert hessians is not None
        held_out = text.held_out()
        loss = _loss_of(model, held_out)
        as_trained = {name: store_plain(name, w, "float32", plan.dtype_of(name)) for name, w in weights.items()}
        n_bytes = sum(tensor.values.nbytes for tensor in as_trained.values()) + code_bytes
        unrounded = FitRow(
            label="float32", total_bytes=n_bytes, fits=n_bytes <= config.target_bytes, loss=loss(as_trained)
        )
        result = fit(
            weights,
            plan,
            hessians=hessians,
            curvature=collect_curvature(model, calibration),
            loss=loss,
            pack=lambda held: len(pack(held)),
            cap_bytes=config.target_bytes,
            code_bytes=code_bytes,
            widths=INT_BITS if layout is None else layout.widths,
        )
        tensors, table = result.tensors, [unrounded, *result.table]
        notes.append(f"losses are nats per token of {held_out[:, 1:].numel():,} tokens of {text.kind}")
    else:
        if not config.calibration_tokens:
            plan = plan.without_gptq()
        tensors = quantize_state_dict(weights, plan, hessians)
    if config.refine and isinstance(text, TrainingText):
        tensors, outcome = refined(model, tensors, text, config.refine)
        notes.append(outcome)
        pack = Packer(config.container, layout=layout, metadata=_metadata(trained, config, notes))
    zeroed = 0
    if len(pack(tensors)) + code_bytes > config.target_bytes:
        costs = zeroing_costs(tensors, weights, hessians or {})
        exact = config.container == "evalkit"  # which packs in seconds; zstd-22 takes minutes
        tensors, zeroed = prune_to_size(
            tensors,
            lambda held: len(pack(held)) + code_bytes,
            config.target_bytes,
            costs=costs,
            resolution=1 if exact else 1000,
        )
        hint = "" if config.fit else "; --fit may lose less"
        notes.append(f"{zeroed:,} integers of +-1 were zeroed to fit {config.target_bytes:,} bytes{hint}")
    file = write_packed(path, pack(tensors))
    if layout is not None:
        notes += missing_settings(path, trained.config.model)
    return ExportResult(file=file, code_bytes=code_bytes, zeroed=zeroed, notes=notes, table=table, tensors=tensors)


def missing_settings(path: Path, config: ModelConfig) -> list[str]:
    """Say which settings a published layout, which holds tensors alone, does not tell its reader."""
    shapes, values = load_artifact(path).shapes, config.to_dict()
    told = {name: values[name] for name in open_settings(shapes, {})}
    # Some settings matter only for certain values of others.
    named = ", ".join(f"model.{name}" for name in (*told, *open_settings(shapes, told)))
    return [f"this layout does not hold {named}: score it with --recipe and the run's recipe.toml"]


def refined(
    model: GPT, tensors: Mapping[str, StoredTensor], text: TrainingText, steps: int
) -> tuple[Mapping[str, StoredTensor], str]:
    """Return the refined tensors, or the given ones if these are better on held-out training text; and which."""
    measure = _loss_of(model, text.held_out())
    trained = refine(model.config, tensors, text.refinement, steps)
    before, after = measure(tensors), measure(trained)
    losses = f"{before:.5f} before and {after:.5f} nats per token after, on other training text"
    if after < before:
        return trained, f"refined for {steps} steps: {losses}"
    return tensors, f"not refined, because {steps} steps did not help: {losses}"


def plan_of(trained: TrainedModel) -> QuantizationPlan:
    """Return the recipe's plan at the model's width, or one with the widths that its QAT trained for.

    The head is a matrix like the others, so a plan that stores it (or the token table it is tied to) in integers gets
    them by GPTQ. As an embedding a row would be best rounded to nearest, but the logits feel its errors more.
    """
    plan = PLANS.get(trained.config.recipe)
    if plan is None:
        qat = trained.config.qat
        plan = QuantizationPlan(
            rules=(
                TensorRule(patterns=("*",), format="float16", max_elements=2048),
                TensorRule(patterns=("*.mlp.*",), format=f"int{qat.mlp_bits}", clips=PERCENTILES, gptq=True),
                TensorRule(patterns=("*.attn.c_?.weight", "*.attn.proj.weight"), format=f"int{qat.attention_bits}",
                           clips=PERCENTILES, gptq=True),
                TensorRule(patterns=("*",), format="int8"),
            )
        )  # fmt: skip
    else:
        published = load_recipe(trained.config.recipe).model_config()
        plan = plan.for_width(trained.config.model.model_dim / published.model_dim)
    head = f"{head_name(trained.config.model)}.weight"
    return plan.with_gptq(head, trained.weights[head].numel(), trained.config.model.num_layers)


def target_weights(
    model: GPT, trained: TrainedModel, plan: QuantizationPlan, hessians: Mapping[str, Tensor], held_out: Tensor
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights that GPTQ should reproduce, and what must be said about them.

    Training-time rounding trains the rounded network, while what is exported is an average that lies between the grid
    points. GPTQ towards the average keeps its outputs; towards the rounded weights it keeps what training found. Which
    of them, or the middle, makes the better artifact is decided by the loss on training text ``[rows, T + 1]``.
    """
    weights = dict(trained.weights)
    qat = trained.config.qat
    rounded = {name: round_to_grid(w, bits, qat) for name, w, bits in with_width(weights, qat)}
    if not (qat.enabled and rounded):
        return weights, []
    measure = _loss_of(model, held_out)
    candidates = {
        share: weights | {name: w.lerp(rounded[name], share) for name, w in weights.items() if name in rounded}
        for share in ROUNDED_SHARES
    }
    losses = {s: measure(quantize_state_dict(w, plan, hessians)) for s, w in candidates.items()}
    model.load_state_dict(weights)
    best = min(losses, key=lambda share: losses[share])
    tried = ", ".join(f"{loss:.5f} at {share:g}" for share, loss in losses.items())
    return candidates[best], [
        f"GPTQ towards the weights moved by {best:g} of the way to the grid of their training; "
        f"nats per token of other training text: {tried}"
    ]


def _loss_of(model: GPT, text: Tensor) -> Callable[[Mapping[str, StoredTensor]], float]:
    """Return a function from stored tensors to the mean nats per token of a text, ``[rows, seq_len + 1]``."""
    shapes = {name: value.shape for name, value in model.state_dict().items()}

    @torch.no_grad()
    def loss(tensors: Mapping[str, StoredTensor]) -> float:
        held = {name: torch.from_numpy(held_values(tensor)) for name, tensor in tensors.items()}
        model.load_state_dict({name: value.reshape(shapes[name]) for name, value in held.items()})
        rows = [
            F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="sum").double()
            for row in tracked(list(text), "measure the loss", unit="tokens", size=lambda row: row.numel() - 1)
        ]
        return float((torch.stack(rows) / (text.shape[1] - 1)).mean())

    return loss


def _layout(recipe: str) -> TorchLayout:
    if recipe not in LAYOUTS:
        raise InputError(
            f"recipe {recipe} has no torch layout; use --container evalkit, or a recipe of {', '.join(LAYOUTS)}"
        )
    return LAYOUTS[recipe]


def _metadata(trained: TrainedModel, config: ExportConfig, notes: list[str]) -> NativeMetadata:
    sha256 = open_tokenizer(config.tokenizer).sha256 if config.tokenizer else ""
    return NativeMetadata(
        config=trained.config.model.to_dict(),
        recipe={
            "name": trained.config.recipe,
            "weights": trained.kind,
            "seq_len": trained.config.train.seq_len,
            "notes": list(notes),
            "sections": {name: value for name, value in trained.config.to_dict().items() if name != "model"},
        },
        tokenizer_sha256=sha256,
        evalkit_version=__version__,
    )
