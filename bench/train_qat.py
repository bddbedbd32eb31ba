"""What late QAT does to the weights and to the loss after quantisation, recipe by recipe.

    python bench/train_qat.py --data DIR --tokenizer MODEL --out DIR [--steps 300] [--scale 128x4]

Each recipe is trained once up to the step where QAT begins; from that state it is finished with QAT off, with rounding
in the forward pass alone, and as the recipe has it. Finished variants in DIR are not repeated, and
``--only`` trains some recipes; without it, the table in RESULTS.md is written anew.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from recipe_arguments import parse_arguments
from results import replace_table
from torch import Tensor

from evalkit.plumbing.files import write_json
from evalkit.plumbing.ranks import Ranks
from evalkit.recipes import load_recipe
from evalkit.train.config import RunConfig
from evalkit.train.data import ByteCounter, TrainingTokens, find_shards, load_validation
from evalkit.train.files import read_json
from evalkit.train.folder import TrainingFolder, load_run
from evalkit.train.loop import Trainer
from evalkit.train.objective import Objective
from evalkit.train.qat import bits_of, grid_distance, round_to_grid
from evalkit.train.resolve import resolve
from evalkit.train.run import train_model
from evalkit.train.validation import Validator

RECIPES = ("pr333", "pr592", "pr344", "pr634", "pr849")
VARIANTS: dict[str, dict[str, str]] = {
    "off": {"qat.enabled": "false"},
    "rounding alone": {"qat.grid_pull": "0"},
    "as the recipe": {},
}
HEADER = """\
| recipe | late QAT | distance, raw | distance, exported | float | rounded |
|---|---|---:|---:|---:|---:|
"""
CPU = Ranks()


class Bench:
    """The data and settings that all runs share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.data, self.tokenizer, self.out = arguments.data, arguments.tokenizer, arguments.out

    def config(self, recipe: str, keys: Mapping[str, str]) -> RunConfig:
        """Return the resolved run of a variant."""
        a = self.arguments
        sizes = {
            "train.batch_tokens": a.batch_tokens,
            "train.spans": 1,
            "train.seq_len": a.seq_len,
            "train.val_tokens": a.val_tokens,
            "train.validate_every": 50,
            "train.threads": a.threads,
        }
        return resolve(load_recipe(recipe), {**sizes, **keys}, scale=a.scale, steps=a.steps)

    def stream(self, config: RunConfig) -> TrainingTokens:
        """Return the training tokens."""
        return TrainingTokens(find_shards(self.data, config.data)[0], vocab_size=config.model.vocab_size)

    def trunk(self, recipe: str) -> Path:
        """Return the checkpoint of the step at which QAT begins."""
        path: Path = self.out / f"{recipe}.pt"
        if not path.exists():
            config = self.config(recipe, {})
            folder = TrainingFolder(path=self.out / recipe / "trunk")
            folder.path.mkdir(parents=True, exist_ok=True)
            trainer = Trainer(config, stream=self.stream(config), validator=None, ranks=CPU, folder=folder)
            while trainer.qat_start_step is None:
                trainer.save_checkpoint()
                trainer.train_step()
            folder.checkpoint.rename(path)
        return path

    def finish(self, recipe: str, variant: str) -> Path:
        """Train a variant to the end and return its run folder."""
        config = self.config(recipe, VARIANTS[variant])
        folder = TrainingFolder(path=self.out / recipe / variant.replace(" ", "-"))
        if not folder.summary.exists():
            shutil.rmtree(folder.path, ignore_errors=True)
            folder.open(config, self.stream(config).identity(), resume=False)
            shutil.copy(self.trunk(recipe), folder.checkpoint)
            train_model(config, data=self.data, tokenizer=self.tokenizer, out=folder.path, resume=True)
        return folder.path

    def measure(self, recipe: str, variant: str) -> dict[str, float]:
        """Return distances to the grid, and bits per byte as they are and rounded to QAT's grid."""
        path = self.finish(recipe, variant)
        cached = path / "measured.json"
        if cached.exists():
            return {key: float(value) for key, value in read_json(cached).items()}
        run, raw = load_run(path), load_run(path, "raw")
        config = run.config
        shards = find_shards(self.data, config.data)[1]
        tokens = load_validation(shards, vocab_size=config.model.vocab_size, limit=config.train.val_tokens)
        assert tokens is not None
        validator = Validator(
            tokens,
            seq_len=config.train.seq_len,
            batch_tokens=config.train.val_batch_tokens,
            byte_counter=ByteCounter(self.tokenizer, config.model.vocab_size),
            ranks=CPU,
        )
        objective = Objective(config, CPU.device, compiled=False)

        def bpb(weights: Mapping[str, Tensor]) -> float:
            found = validator.run(objective, weights).val_bpb
            assert found is not None
            return found

        rounded = {n: round_to_grid(w, b, config.qat) if (b := bits_of(n, config.qat)) else w
                   for n, w in run.weights.items()}  # fmt: skip
        result = {
            "raw distance": grid_distance(raw.weights, config.qat),
            "distance": grid_distance(run.weights, config.qat),
            "float": bpb(run.weights),
            "rounded": bpb(rounded),
        }
        write_json(cached, result)
        return result


def main() -> None:
    arguments = parse_arguments(__doc__, RECIPES)
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments)
    rows = []
    for recipe in arguments.only or RECIPES:
        for variant in VARIANTS:
            m = bench.measure(recipe, variant)
            rows.append(
                f"| {recipe} | {variant} | {m['raw distance']:.3f} | {m['distance']:.3f} | "
                f"{m['float']:.4f} | {m['rounded']:.4f} |"
            )
            print(rows[-1], flush=True)
    if not arguments.only:
        replace_table("qat", HEADER + "\n".join(rows))


if __name__ == "__main__":
    main()
