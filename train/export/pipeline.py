"""From a finished run to an artifact: calibrate, quantise, prune, pack, write."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit import __version__
from evalkit.artifact.layouts import held_values
from evalkit.artifact.load import load_artifact
from evalkit.artifact.native import NativeMetadata
from evalkit.artifact.recognition import open_settings
from evalkit.artifact.tensors import StoredTensor
from evalkit.model.config import ModelConfig
from evalkit.model.gpt import GPT, head_name
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.progress import tracked
from evalkit.recipes import load_recipe
from evalkit.train.export.export import (
    ArtifactFile,
    Container,
    code_size,
    pack_artifact,
    quantize_state_dict,
    write_artifact,
)
from evalkit.train.export.fit import FitRow, fit, fit_options, in_torch_containers
from evalkit.train.export.refine import RefineConfig, refine
from evalkit.train.export.text import ExportText, OwnSamples, TrainingText
from evalkit.train.export.torch_layouts import LAYOUTS, TorchLayout
from evalkit.train.folder import TrainedModel
from evalkit.train.qat import bits_of, round_to_grid
from evalkit.train.quantization.curvature import collect_curvature
from evalkit.train.quantization.hessian import collect_hessians
from evalkit.train.quantization.plan import PLANS, QuantizationPlan, TensorRule
from evalkit.train.quantization.pruning import prune_to_size, zeroing_costs

ROUNDED_SHARES = (0.0, 0.5, 1.0)
"""How far towards the grid of training-time rounding the weights are moved before GPTQ, as candidates."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How to export.

    Attributes:
        container: ``evalkit``, ``torch-zstd``, ``torch-xz`` or ``torch-zlib``.
        floor: factor on the plan's smallest steps; 1 keeps the published floors (1/31 for int6, 1/15 for int5), 0 has
            none.
        calibration_tokens: tokens whose layer inputs GPTQ sees; 0 rounds to nearest.
        calibration_data: folder with training shards; None calibrates on the model's own samples.
        force_calibration: calibrate on shards that look like validation data all the same.
        refine: training steps after rounding, with the integers fixed; they need ``calibration_data``.
        target_bytes: cap on artifact plus code, in bytes; over it, integers of +-1 are zeroed, cheapest first.
        fit: search widths and floors for the lowest loss that fits, instead of the recipe's plan.
        code: code files that ship with the artifact.
        tokenizer: SentencePiece model whose hash goes into the artifact.
        seed: of the model's own samples.
    """

    container: Container = "evalkit"
    floor: float = 1.0
    calibration_tokens: int = 65_536
    calibration_data: Path | None = None
    force_calibration: bool = False
    refine: int = 0
    target_bytes: int = SIZE_CAP
    fit: bool = False
    code: tuple[Path, ...] = ()
    tokenizer: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.floor < math.inf:
            raise InputError(f"--floor is {self.floor}; expected 0 (none) or a factor")
        if self.calibration_tokens < 0:
            raise InputError(f"--calibration-tokens is {self.calibration_tokens}; expected 0 (no GPTQ) or more")
        if self.refine < 0:
            raise InputError(f"--refine is {self.refine}; expected 0 (none) or a number of steps")
        if self.refine and self.calibration_data is None:
            raise InputError("--refine trains on text: name training shards with --data")
        if self.tokenizer and not self.tokenizer.is_file():
            raise InputError(f"tokenizer {self.tokenizer} does not exist; expected a SentencePiece model")
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
    plan = plan_of(trained, config.floor)
    code_bytes = code_size(list(config.code))
    layout = _layout(trained.config.recipe) if config.container != "evalkit" else None
    text = export_text(model, trained, config)
    notes = list(text.notes)
    calibration = text.calibration()
    hessians = collect_hessians(model, calibration) if calibration else None
    weights = dict(trained.weights)
    if hessians and isinstance(text, TrainingText):
        weights, said = target_weights(model, trained, plan, hessians, text.held_out())
        notes += said
    tensors: Mapping[str, StoredTensor]
    table: list[FitRow] = []
    if config.fit:
        options = fit_options(plan, config.container, layout)
        if not hessians:
            options = [option for option in options if option.reach != "tensors"]
            notes.append("no step for each tensor was tried: it needs calibration, and --calibration-tokens is 0")
        result = fit(
            weights,
            options,
            _loss_of(model, text.held_out()),
            cap_bytes=config.target_bytes,
            code_bytes=code_bytes,
            hessians=hessians,
            metadata=_metadata(trained, config, notes),
            curvature=collect_curvature(model, calibration) if hessians else None,
        )
        tensors, table, zeroed = result.tensors, result.table, result.best.zeroed
        if layout is None and trained.config.recipe in LAYOUTS:
            published = LAYOUTS[trained.config.recipe]
            sizes = {"cap_bytes": config.target_bytes, "code_bytes": code_bytes}
            table = table + in_torch_containers(tensors, result.best, published, **sizes)
    else:
        if not config.calibration_tokens:
            plan = replace(plan, rules=tuple(replace(rule, gptq=False) for rule in plan.rules))
        tensors, zeroed = quantize_state_dict(weights, plan, hessians), 0
    if config.refine and isinstance(text, TrainingText):
        tensors, outcome = refined(model, tensors, text, config.refine)
        notes.append(outcome)
    metadata = _metadata(trained, config, notes)

    def size(held: Mapping[str, StoredTensor]) -> int:
        return len(pack_artifact(held, config.container, layout=layout, metadata=metadata)) + code_bytes

    if size(tensors) > config.target_bytes:
        costs = zeroing_costs(tensors, weights, hessians or {})
        exact = config.container == "evalkit"  # which packs in seconds; zstd-22 takes minutes
        pruned = prune_to_size(tensors, size, config.target_bytes, costs=costs, resolution=1 if exact else 1000)
        tensors, zeroed = pruned.tensors, zeroed + pruned.zeroed
        hint = "" if config.fit else "; --fit may lose less"
        notes.append(f"{pruned.zeroed:,} integers of +-1 were zeroed to fit {config.target_bytes:,} bytes{hint}")
    file = write_artifact(path, tensors, config.container, layout=layout, metadata=metadata)
    if layout is not None:
        notes += missing_settings(path, trained.config.model)
    return ExportResult(file=file, code_bytes=code_bytes, zeroed=zeroed, notes=notes, table=table, tensors=tensors)


def missing_settings(path: Path, config: ModelConfig) -> list[str]:
    """Say which settings a published layout, which holds tensors alone, does not tell its reader."""
    shapes, values = load_artifact(path).shapes, config.to_dict()
    told = {name: values[name] for name in open_settings(shapes, {})}
    # Some settings matter only for certain values of others.
    differing = [f"model.{name}" for name in (*told, *open_settings(shapes, told))]
    named = ", ".join(differing)
    return [f"this layout does not hold {named}: score it with --recipe and the run's recipe.toml"]


def refined(
    model: GPT, tensors: Mapping[str, StoredTensor], text: TrainingText, steps: int
) -> tuple[Mapping[str, StoredTensor], str]:
    """Return the refined tensors, or the given ones if these are better on held-out training text; and which."""
    measure = _loss_of(model, text.held_out())
    trained = refine(model.config, tensors, text.refinement, RefineConfig(steps=steps))
    before, after = measure(tensors), measure(trained)
    losses = f"{before:.5f} before and {after:.5f} nats per token after, on other training text"
    if after < before:
        return trained, f"refined for {steps} steps: {losses}"
    return tensors, f"not refined, because {steps} steps did not help: {losses}"


def export_text(model: GPT, trained: TrainedModel, config: ExportConfig) -> ExportText:
    """Return the text to calibrate, measure and refine on.

    Raises:
        InputError: the shards are missing, or look like validation data.
    """
    if config.calibration_data is None:
        seq_len = trained.config.train.seq_len
        return OwnSamples(model, seq_len=seq_len, calibration_tokens=config.calibration_tokens, seed=config.seed)
    return TrainingText(
        config.calibration_data,
        trained,
        calibration_tokens=config.calibration_tokens,
        refine_steps=config.refine,
        force=config.force_calibration,
    )


def plan_of(trained: TrainedModel, floor: float) -> QuantizationPlan:
    """Return the recipe's plan at the model's width, or one with the widths that its QAT trained for.

    The head is a matrix like the others, so a plan that stores it (or the token table it is tied to) in integers gets
    them by GPTQ. As an embedding a row would be best rounded to nearest, but the logits feel its errors more.

    Args:
        trained: names the recipe and the width.
        floor: factor on the step floors.
    """
    plan = PLANS.get(trained.config.recipe)
    if plan is None:
        qat = trained.config.qat
        plan = QuantizationPlan(
            rules=(
                TensorRule(patterns=("*",), format="float16", max_elements=2048),
                TensorRule(patterns=("*.mlp.*",), format=f"int{qat.mlp_bits}", clip="row", gptq=True),
                TensorRule(patterns=("*.attn.c_?.weight", "*.attn.proj.weight"), format=f"int{qat.attention_bits}",
                           clip="row", gptq=True),
                TensorRule(patterns=("*",), format="int8"),
            )
        )  # fmt: skip
    else:
        published = load_recipe(trained.config.recipe).model_config()
        plan = plan.for_width(trained.config.model.model_dim / published.model_dim)
    head = f"{head_name(trained.config.model)}.weight"
    plan = plan.with_gptq(head, trained.weights[head].numel(), trained.config.model.num_layers)
    return replace(plan, rules=tuple(replace(rule, min_step=rule.min_step * floor) for rule in plan.rules))


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
    rounded = {n: round_to_grid(w, bits_of(n, qat), qat) for n, w in weights.items() if bits_of(n, qat)}
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
    def loss(tensors: Mapping[str, StoredTensor]) -> float:
        state = {name: torch.from_numpy(held_values(tensor)) for name, tensor in tensors.items()}
        reference = model.state_dict()
        model.load_state_dict({name: value.reshape(reference[name].shape) for name, value in state.items()})
        return float(_text_losses(model, text).mean())

    return loss


@torch.no_grad()
def _text_losses(model: GPT, text: Tensor) -> Tensor:
    """Return the mean nats per token of each row ``[rows, seq_len + 1]``, float64 ``[rows]``."""
    rows = [
        F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="sum").double()
        for row in tracked(list(text), "measure the loss", unit="tokens", size=lambda row: row.numel() - 1)
    ]
    return torch.stack(rows) / (text.shape[1] - 1)


def _layout(recipe: str) -> TorchLayout:
    if recipe not in LAYOUTS:
        raise InputError(
            f"recipe {recipe} has no torch layout; use --container evalkit, or a recipe of {', '.join(LAYOUTS)}"
        )
    return LAYOUTS[recipe]


def _metadata(trained: TrainedModel, config: ExportConfig, notes: list[str]) -> NativeMetadata:
    sections: dict[str, Any] = trained.config.to_dict()
    sha256 = hashlib.sha256(config.tokenizer.read_bytes()).hexdigest() if config.tokenizer else ""
    return NativeMetadata(
        config=trained.config.model.to_dict(),
        recipe={
            "name": trained.config.recipe,
            "weights": trained.kind,
            "seq_len": trained.config.train.seq_len,
            "notes": list(notes),
            "sections": {name: value for name, value in sections.items() if name != "model"},
        },
        tokenizer_sha256=sha256,
        evalkit_version=__version__,
    )
