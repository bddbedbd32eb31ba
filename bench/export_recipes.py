"""Rounding to nearest, GPTQ and refinement end to end, on the trained model of every recipe.

    python bench/export_recipes.py RUNS --data DIR --tokenizer MODEL [--other SHARD] [--recipes pr592,pr634]

RUNS holds one run folder of ``evalkit train`` for each recipe, named like it. Everything that is learned reads training
shards. Bits per byte are those of the first validation tokens, and of ``--other``'s, which are of another kind of text,
in windows of the training length; standard errors are of paired differences, clustered by document. "nearest" chooses
the clip of a row by the error of its weights, and rounds the weights as they are.

Plans: "own" is what ``evalkit export`` does for the recipe, at its widths and step floors; int6 and int5 have every
matrix of the blocks at that width, no floor, and the rest as it is. Output errors are e H e^T, GPTQ's over rounding's
with the clips chosen by the same measure, on training tokens that calibration has not seen.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from common import parser_of, print_header, print_row

from evalkit.artifact.layouts import held_values
from evalkit.artifact.tensors import QuantizedTensor, StoredTensor
from evalkit.model.gpt import GPT
from evalkit.tokens.tokenizer import Tokenizer
from evalkit.train.data import TrainingTokens, find_shards, load_validation
from evalkit.train.export.export import quantize_state_dict
from evalkit.train.export.pipeline import plan_of, target_weights
from evalkit.train.export.refine import refine
from evalkit.train.export.text import TrainingText
from evalkit.train.folder import TrainedModel, load_run
from evalkit.train.quantization.hessian import collect_hessians
from evalkit.train.quantization.plan import QuantizationPlan, TensorRule
from evalkit.train.quantization.rows import PERCENTILES, weighted_row_error

SMALL = 2048  # vectors, in a model of 128x4
MATRICES = ("*.mlp.*", "*.attn.c_?.weight", "*.attn.proj.weight")
BOS = 1


@dataclass(frozen=True, kw_only=True)
class Text:
    """Windows to measure on: tokens ``[windows, T + 1]``, and bytes and document of every target."""

    windows: torch.Tensor
    n_bytes: npt.NDArray[np.float64]
    document: npt.NDArray[np.int64]

    @classmethod
    def read(cls, paths: Sequence[Path], limit: int, seq_len: int, tokenizer: Tokenizer) -> Text:
        """Return the first ``limit`` targets of some shards."""
        tokens = load_validation(list(paths), vocab_size=tokenizer.vocab_size, limit=limit)
        assert tokens is not None
        count = (len(tokens) - 1) // seq_len
        tokens = tokens[: count * seq_len + 1]
        windows = torch.stack([torch.from_numpy(tokens[i * seq_len : (i + 1) * seq_len + 1]) for i in range(count)])
        return cls(
            windows=windows.long(),
            n_bytes=tokenizer.byte_table.count(tokens[:-1], tokens[1:]).astype(np.float64),
            document=np.cumsum(tokens == BOS)[1:],
        )

    @torch.inference_mode()
    def bits(self, model: GPT, state: Mapping[str, torch.Tensor]) -> npt.NDArray[np.float64]:
        """Return -log2 p of every target."""
        model.load_state_dict(state)
        rows = [F.cross_entropy(model(r[None, :-1])[0], r[1:], reduction="none").double() for r in self.windows]
        return torch.cat(rows).numpy() / math.log(2)

    def per_byte(self, bits: npt.NDArray[np.float64]) -> float:
        """Return bits per byte."""
        return float(bits.sum() / self.n_bytes.sum())

    def compare(self, bits: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> str:
        """Return the difference of bits per byte, a ratio, with its standard error clustered by document."""
        ratio = self.per_byte(bits - other)
        _, index = np.unique(self.document, return_inverse=True)
        residuals = np.bincount(index, bits - other - ratio * self.n_bytes)
        n = len(residuals)
        error = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / float(self.n_bytes.sum())
        return f"{ratio:+.5f} +- {error:.5f}"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A run of ``evalkit train`` with its network, texts to measure on, and what calibrates."""

    trained: TrainedModel
    model: GPT
    texts: dict[str, Text]
    reader: TrainingText
    hessians: dict[str, torch.Tensor]

    @classmethod
    def of(cls, folder: Path, options: argparse.Namespace, refine_steps: int = 0) -> Opened:
        """Return a run folder with what the options of :func:`runs_parser` name."""
        trained = load_run(folder)
        model = GPT(trained.config.model).eval().requires_grad_(False)
        model.load_state_dict(trained.weights)
        shards = {"validation": find_shards(options.data, trained.config.data)[1]}
        if options.other:
            shards["other"] = [options.other]
        seq_len, tokenizer = trained.config.train.seq_len, Tokenizer(options.tokenizer)
        count = options.calibration_tokens
        reader = TrainingText(options.data, trained, calibration_tokens=count, refine_steps=refine_steps)
        return cls(
            trained=trained,
            model=model,
            texts={kind: Text.read(paths, options.tokens, seq_len, tokenizer) for kind, paths in shards.items()},
            reader=reader,
            hessians=collect_hessians(model, reader.calibration()),
        )

    def bits(self, text: Text, tensors: Mapping[str, StoredTensor]) -> npt.NDArray[np.float64]:
        """Return -log2 p of every target of a text under stored tensors."""
        shapes = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        state = {name: torch.from_numpy(held_values(tensor)).reshape(shapes[name]) for name, tensor in tensors.items()}
        return text.bits(self.model, state)


def runs_parser(description: str | None, calibration_tokens: int) -> argparse.ArgumentParser:
    """Return a parser with what says how runs are measured."""
    parser = parser_of(description)
    parser.add_argument("--data", type=Path, required=True, help="folder with training and validation shards")
    parser.add_argument("--other", type=Path, help="a shard of other text to measure on")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=65536, help="of each text")
    parser.add_argument("--calibration-tokens", type=int, default=calibration_tokens)
    return parser


def uniform_plan(bits: int) -> QuantizationPlan:
    """Every matrix of the blocks at one width, the rest as it is."""
    return QuantizationPlan(
        rules=(
            TensorRule(patterns=("*",), format="float32", max_elements=SMALL),
            TensorRule(patterns=MATRICES, format=f"int{bits}", clips=PERCENTILES, gptq=True),
            TensorRule(patterns=("*",), format="float32"),
        ),
        bfloat16_tables=(),
    )


def output_ratios(
    weights: Mapping[str, torch.Tensor],
    plan: QuantizationPlan,
    seen: Mapping[str, torch.Tensor],
    unseen: Mapping[str, torch.Tensor],
) -> list[float]:
    """Return the output error of GPTQ over that of rounding, for every matrix."""
    gptq = quantize_state_dict(weights, plan, seen)
    nearest = quantize_state_dict(weights, plan.without_gptq(), seen)

    def error(tensors: Mapping[str, StoredTensor], name: str) -> float:
        left = weights[name] - torch.from_numpy(tensors[name].dequantize())
        return float(weighted_row_error(left, unseen[name.removesuffix(".weight")]).sum())

    names = [n for n, tensor in gptq.items() if isinstance(tensor, QuantizedTensor)]
    return [error(gptq, name) / error(nearest, name) for name in names]


def main() -> None:
    parser = runs_parser(__doc__, 65536)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--recipes", default="baseline,pr333,pr592,pr344,pr634,pr849")
    parser.add_argument("--plans", default="own,int6,int5")
    parser.add_argument("--refine", type=int, default=100, help="steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_header(
        "recipe", "plan", "text", "float", "nearest", "GPTQ - nearest", "nearest, refined - nearest",
        "GPTQ, refined - nearest", "GPTQ, refined - float", "output error: smallest, median, largest", left=3,
    )  # fmt: skip
    for recipe in options.recipes.split(","):
        if not (options.runs / recipe / "summary.json").exists():
            continue
        run = Opened.of(options.runs / recipe, options, options.refine)
        model, reader, weights, seen = run.model, run.reader, run.trained.weights, run.hessians
        shards, _ = find_shards(options.data, run.trained.config.data)
        stream = TrainingTokens(shards, vocab_size=model.config.vocab_size)
        later = torch.from_numpy(stream.read(stream.num_tokens // 2, options.calibration_tokens))
        later = later.view(-1, 1, run.trained.config.train.seq_len)
        unseen = collect_hessians(model, list(later)) if options.plans != "own" else {}
        exact = {kind: text.bits(model, weights) for kind, text in run.texts.items()}
        for label in options.plans.split(","):
            own = label == "own"
            plan = plan_of(run.trained) if own else uniform_plan(int(label.removeprefix("int")))
            target, _ = target_weights(model, run.trained, plan, seen, reader.held_out()) if own else (weights, [])
            rounded = {
                "nearest": quantize_state_dict(weights, plan.without_gptq()),
                "gptq": quantize_state_dict(target, plan, seen),
            }
            if own and options.refine:
                for name in ("nearest", "gptq"):
                    rounded[f"{name}, refined"] = refine(model.config, rounded[name], reader.refinement, options.refine)
            ratios = [] if own else output_ratios(weights, plan, seen, unseen)
            for kind, text in run.texts.items():
                bits = {name: run.bits(text, tensors) for name, tensors in rounded.items()}
                bits["float"] = exact[kind]
                cells = [recipe, label, kind]
                cells += [f"{text.per_byte(bits[name]):.5f}" for name in ("float", "nearest")]
                cells += [
                    text.compare(bits[name], bits[base]) if name in bits else ""
                    for name, base in (
                        ("gptq", "nearest"),
                        ("nearest, refined", "nearest"),
                        ("gptq, refined", "nearest"),
                        ("gptq, refined", "float"),
                    )
                ]
                cells.append(f"{min(ratios):.2f}, {statistics.median(ratios):.2f}, {max(ratios):.2f}" if ratios else "")
                print_row(*cells)


if __name__ == "__main__":
    main()
