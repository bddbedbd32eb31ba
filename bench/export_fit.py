"""What ``evalkit export --fit`` (a step for each tensor) loses at several sizes, beside the recipe's own plan.

    python bench/export_fit.py RUN... --data DIR --tokenizer MODEL [--other SHARD] [--shares 0.85,0.7,0.55]

RUN is a run folder of ``evalkit train``. Sizes are shares of what the recipe's own plan takes (share 1, the first row).
Everything that is learned or chosen reads training shards; bits per byte are those of the first validation tokens, and
of ``--other``'s, which are of another kind of text. Differences are to the plan's artifact, paired, with standard
errors clustered by document.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import print_header, print_row
from export_recipes import Opened, runs_parser

from evalkit.artifact.native import NativeMetadata, write_native
from evalkit.train.export.export import quantize_state_dict
from evalkit.train.export.fit import fit
from evalkit.train.export.pipeline import plan_of, target_weights
from evalkit.train.quantization.curvature import collect_curvature


def main() -> None:
    parser = runs_parser(__doc__, 32768)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--shares", default="0.85,0.7,0.55", help="of the plan's bytes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_header("run", "way", "bytes", "validation", "against the plan", "other", "against the plan", left=2)
    for folder in options.runs:
        run = Opened.of(folder, options)
        trained, texts, hessians = run.trained, list(run.texts.values()), run.hessians
        curvature = collect_curvature(run.model, run.reader.calibration())
        plan = plan_of(trained)
        target, _ = target_weights(run.model, trained, plan, hessians, run.reader.held_out())
        tensors = quantize_state_dict(target, plan, hessians)
        full = len(write_native(tensors, NativeMetadata()))
        reference = [run.bits(text, tensors) for text in texts]
        cells = [
            cell for text, bits in zip(texts, reference, strict=True) for cell in (f"{text.per_byte(bits):.5f}", "")
        ]
        print_row(trained.config.recipe, "plan", f"{full:,}", *cells)
        for share in map(float, options.shares.split(",")):
            found = fit(
                target,
                plan,
                hessians=hessians,
                curvature=curvature,
                loss=lambda held: 0.0,  # the plan does not fit: there is nothing to choose
                pack=lambda held: len(write_native(held, NativeMetadata())),
                cap_bytes=int(share * full),
            )
            cells = [trained.config.recipe, found.best.label, f"{found.best.total_bytes:,}"]
            for text, before in zip(texts, reference, strict=True):
                bits = run.bits(text, found.tensors)
                cells += [f"{text.per_byte(bits):.5f}", text.compare(bits, before)]
            print_row(*cells)


if __name__ == "__main__":
    main()
