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
from common import parser_of, print_header, print_row
from export_recipes import Text, as_state

from evalkit.artifact.native import NativeMetadata, write_native
from evalkit.model.gpt import GPT
from evalkit.tokens.tokenizer import Tokenizer
from evalkit.train.data import find_shards
from evalkit.train.export.export import quantize_state_dict
from evalkit.train.export.fit import fit
from evalkit.train.export.pipeline import plan_of, target_weights
from evalkit.train.export.text import TrainingText
from evalkit.train.folder import load_run
from evalkit.train.quantization.curvature import collect_curvature
from evalkit.train.quantization.hessian import collect_hessians


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="folder with training and validation shards")
    parser.add_argument("--other", type=Path, help="a shard of other text to measure on")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--shares", default="0.85,0.7,0.55", help="of the plan's bytes")
    parser.add_argument("--tokens", type=int, default=65536, help="of each text")
    parser.add_argument("--calibration-tokens", type=int, default=32768)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer(options.tokenizer)
    print_header("run", "way", "bytes", "validation", "against the plan", "other", "against the plan", left=2)
    for run in options.runs:
        trained = load_run(run)
        model = GPT(trained.config.model).eval().requires_grad_(False)
        model.load_state_dict(trained.weights)
        seq_len = trained.config.train.seq_len
        _, validation = find_shards(options.data, trained.config.data)
        texts = [Text.read(validation, options.tokens, seq_len, tokenizer)]
        if options.other:
            texts.append(Text.read([options.other], options.tokens, seq_len, tokenizer))
        reader = TrainingText(options.data, trained, calibration_tokens=options.calibration_tokens)
        hessians = collect_hessians(model, reader.calibration())
        curvature = collect_curvature(model, reader.calibration())
        plan = plan_of(trained)
        target, _ = target_weights(model, trained, plan, hessians, reader.held_out())
        tensors = quantize_state_dict(target, plan, hessians)
        full = len(write_native(tensors, NativeMetadata()))
        reference = [text.bits(model, as_state(model, tensors)) for text in texts]
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
                bits = text.bits(model, as_state(model, found.tensors))
                cells += [f"{text.per_byte(bits):.5f}", text.compare(bits, before)]
            print_row(*cells)


if __name__ == "__main__":
    main()
