"""Rounding to nearest against GPTQ end to end, on the trained model of every recipe.

    python bench/export_recipes.py RUNS --data DIR --tokenizer MODEL [--recipes pr592,pr634] [--bits 6 5]

RUNS holds one run folder of ``evalkit train`` for each recipe, named like it. Calibration reads training shards; bits
per byte are those of the first validation tokens in windows of the training length. "nearest" chooses the clip of
every row by the error of its weights; "nearest, H" by the error of the layer's output, so that it rounds on the same
steps as GPTQ. Output errors are e H e^T with H from training tokens that calibration has not seen, on the same steps.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from evalkit.artifact.layouts import held_values
from evalkit.artifact.tensors import QuantizedTensor, StoredTensor
from evalkit.model.gpt import GPT
from train.data import ByteCounter, TokenStream, find_shards, load_validation
from train.export.export import quantize_state_dict
from train.export.pipeline import ExportConfig, collect_hessians, target_weights
from train.folder import load_run
from train.quantization.plan import QuantizationPlan, TensorRule
from train.quantization.rows import published_min_step, weighted_row_error

SMALL = 2048  # of the trained models most matrices are under the published bound of 65,536


def plan_for(bits: int, floor: bool) -> QuantizationPlan:
    """Every matrix of the blocks at one width, the rest as it is."""
    return QuantizationPlan(
        rules=(
            TensorRule(patterns=("*",), format="float32", max_elements=SMALL),
            TensorRule(
                patterns=("*.mlp.*", "*.attn.c_?.weight", "*.attn.proj.weight"),
                format=f"int{bits}",
                clip="row",
                min_step=published_min_step(bits) if floor else 0.0,
                gptq=True,
            ),
            TensorRule(patterns=("*",), format="float32"),
        ),
        bfloat16_tables=(),
    )


@torch.inference_mode()
def nats(
    model: GPT, state: Mapping[str, torch.Tensor], windows: torch.Tensor, reference: list[torch.Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Summed nats of every window, and the divergence of the reference's predictions from these; fills an empty one."""
    model.load_state_dict(state)
    losses, divergences = [], []
    filled = bool(reference)
    for i, row in enumerate(windows):
        log_p = F.log_softmax(model(row[None, :-1])[0], dim=-1)
        if not filled:
            reference.append(log_p)
        losses.append(F.nll_loss(log_p, row[1:], reduction="sum").double().item())
        divergences.append((reference[i].exp() * (reference[i] - log_p)).double().sum().item())
    return np.array(losses), np.array(divergences)


def as_state(model: GPT, tensors: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return {name: torch.from_numpy(held_values(tensor)).reshape(shapes[name]) for name, tensor in tensors.items()}


def output_error(
    name: str, weight: torch.Tensor, tensors: Mapping[str, StoredTensor], unseen: Mapping[str, torch.Tensor]
) -> float:
    error = weight - torch.from_numpy(tensors[name].dequantize())
    return float(weighted_row_error(error, unseen[name.removesuffix(".weight")]).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with training and validation shards")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--recipes", default="baseline,pr333,pr592,pr344,pr634,pr849")
    parser.add_argument("--bits", type=int, nargs="*", default=[6, 5])
    parser.add_argument("--tokens", type=int, default=32768, help="validation tokens")
    parser.add_argument("--calibration-tokens", type=int, default=65536)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| recipe | bits | step floor | float | nearest | GPTQ | GPTQ - nearest (+- s.e.) | KL nearest | KL GPTQ "
          "| output error, GPTQ / nearest: smallest, median, largest | |")  # fmt: skip
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for recipe in options.recipes.split(","):
        trained = load_run(options.runs / recipe)
        model = GPT(trained.config.model).eval().requires_grad_(False)
        model.load_state_dict(trained.weights)
        seq_len = trained.config.train.seq_len
        train_shards, val_shards = find_shards(options.data, trained.config.data)
        stream = TokenStream(train_shards, vocab_size=model.config.vocab_size)
        rows = options.calibration_tokens // seq_len
        halves = [torch.from_numpy(stream.read(i * rows * seq_len, rows * seq_len)).view(rows, 1, -1) for i in (0, 1)]
        seen, unseen = (collect_hessians(model, list(half)) for half in halves)
        config = ExportConfig(calibration_tokens=options.calibration_tokens, calibration_data=options.data)
        target, notes = target_weights(model, trained, config)
        tokens = load_validation(val_shards, vocab_size=model.config.vocab_size, limit=options.tokens + 1)
        assert tokens is not None
        count = (len(tokens) - 1) // seq_len
        windows = torch.stack(
            [torch.from_numpy(tokens[i * seq_len : (i + 1) * seq_len + 1]) for i in range(count)]
        ).long()
        n_bytes = ByteCounter(options.tokenizer, model.config.vocab_size).count(tokens[: count * seq_len + 1])
        per_byte = 1 / (math.log(2) * n_bytes)
        reference: list[torch.Tensor] = []
        exact, _ = nats(model, trained.weights, windows, reference)
        for bits in options.bits:
            for floor in (False, True):
                plan = plan_for(bits, floor)
                nearest_plan = replace(plan, rules=tuple(replace(rule, gptq=False) for rule in plan.rules))
                nearest = quantize_state_dict(trained.weights, nearest_plan)
                gptq = quantize_state_dict(target, plan, seen)
                losses, divergences = zip(
                    *(nats(model, as_state(model, held), windows, reference) for held in (nearest, gptq)), strict=True
                )
                same_target = gptq if not notes else quantize_state_dict(trained.weights, plan, seen)
                same_measure = quantize_state_dict(trained.weights, nearest_plan, seen)
                ratios = []
                for name, tensor in gptq.items():
                    if isinstance(tensor, QuantizedTensor):
                        weight = trained.weights[name]
                        below = output_error(name, weight, same_measure, unseen)
                        ratios.append(output_error(name, weight, same_target, unseen) / below if below else 1.0)
                paired = losses[1] - losses[0]
                standard_error = float(paired.std(ddof=1)) * math.sqrt(count) * per_byte
                bpb = [float(values.sum()) * per_byte for values in (exact, *losses)]
                kl = [float(values.sum()) * per_byte for values in divergences]
                print(
                    f"| {recipe} | {bits} | {'1 / limit' if floor else 'none'} | "
                    + " | ".join(f"{value:.5f}" for value in bpb)
                    + f" | {paired.sum() * per_byte:+.5f} (+- {standard_error:.5f}) | {kl[0]:.5f} | {kl[1]:.5f} "
                    + f"| {min(ratios):.2f}, {statistics.median(ratios):.2f}, {max(ratios):.2f} "
                    + f"| {'QAT' if notes else ''} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
