"""Output error of GPTQ against rounding to nearest, on a model's own layer inputs, for every matrix of its blocks.

    python bench/export_gptq.py MODEL --tokens SHARD.bin [--recipe NAME] [--count 16384] [--seq-len 1024]

MODEL is an artifact or a float state dict (a float one is what the comparison is meant for). One half of the tokens
gives the Hessians, the other half the errors, so that GPTQ is judged on inputs it has not seen.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from evalkit.artifact.load import load_artifact
from evalkit.model.gpt import GPT
from train.quantization.gptq import gptq_search
from train.quantization.hessian import HessianCollector, shared_input_groups
from train.quantization.rows import published_min_step, round_to_step, search_clip, weighted_row_error

HEADER_BYTES = 1024  # of a shard: 256 int32


def collect(model: GPT, names: list[str], tokens: torch.Tensor, seq_len: int) -> dict[str, torch.Tensor]:
    with torch.no_grad(), HessianCollector(model, shared_input_groups(names)) as collector:
        for row in tokens[: len(tokens) // seq_len * seq_len].view(-1, seq_len):
            model(row[None])
    return collector.hessians()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=Path, required=True, help="token shard, or an .npz with `tokens`")
    parser.add_argument("--recipe", default=None)
    parser.add_argument("--count", type=int, default=16384, help="tokens, half for calibration")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--bits", type=int, nargs="*", default=[6, 5])
    parser.add_argument("--published-floor", action="store_true", help="steps no smaller than 1 / limit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    artifact = load_artifact(options.model)
    model = artifact.build(artifact.resolve(options.recipe).config)
    if options.tokens.suffix == ".npz":
        raw = np.load(options.tokens)["tokens"]
    else:
        raw = np.fromfile(options.tokens, dtype="<u2", offset=HEADER_BYTES, count=options.count)
    tokens = torch.from_numpy(raw[: options.count].astype(np.int64))
    names = [
        n
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and n.startswith("blocks.") and ".attn_gate" not in n
    ]
    seen, unseen = (collect(model, names, half, options.seq_len) for half in tokens.chunk(2))
    print(f"{'matrix':28} {'bits':>4} {'nearest':>12} {'GPTQ':>12} {'ratio':>7} {'seconds':>8}")
    worst = 0.0
    for bits in options.bits:
        floor = published_min_step(bits) if options.published_floor else 0.0
        for name in names:
            weight = model.get_submodule(name).weight.detach()
            assert isinstance(weight, torch.Tensor)
            nearest_step = search_clip(weight, bits, min_step=floor, hessian=seen[name])
            started = time.perf_counter()
            gptq = gptq_search(weight, seen[name], bits, min_step=floor)
            seconds = time.perf_counter() - started
            nearest, better = (
                float(weighted_row_error(weight - q.float() * step.float()[:, None], unseen[name]).sum())
                for q, step in ((round_to_step(weight, nearest_step, bits), nearest_step), gptq)
            )
            ratio = better / nearest if nearest else 1.0  # weights that lie on the grid already lose nothing
            worst = max(worst, ratio)
            print(f"{name:28} {bits:4} {nearest:12.5g} {better:12.5g} {ratio:7.3f} {seconds:8.2f}")
    print(f"largest ratio: {worst:.3f}")


if __name__ == "__main__":
    main()
