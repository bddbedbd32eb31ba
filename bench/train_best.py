"""The recipe ``best`` against the five systems and PR1493 at a reduced size, and what each choice in it is worth.

    python bench/train_best.py --data DIR --tokenizer MODEL --out DIR [--seeds 1337 42 7] [--steps 150] [--choices]
                               [--scale 256x6 --others pr849 pr1493 --table best_larger]

All are trained on the same tokens in as many steps, with as many parameters (``model.mlp_hidden`` makes them equal),
and exported at their own widths; ``best`` is fitted to the size of the smallest of the others. Bits per byte are those
of the artifact on validation text, in windows of the training length without overlap. Runs and scores that are finished
in DIR are not repeated. The tables go to RESULTS.md; ``--choices`` trains ``best`` with one choice undone at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from common import parser_of, replace_table

from evalkit.artifact.layouts import held_values
from evalkit.artifact.load import load_artifact
from evalkit.model.config import ModelConfig
from evalkit.model.empty import empty_model
from evalkit.plumbing.files import write_json
from evalkit.plumbing.ranks import Ranks
from evalkit.recipes import load_recipe
from evalkit.train.config import RunConfig
from evalkit.train.data import ByteCounter, find_shards, load_validation
from evalkit.train.export.pipeline import ExportConfig, export_run
from evalkit.train.files import read_json
from evalkit.train.folder import load_run
from evalkit.train.objective import Objective
from evalkit.train.resolve import resolve
from evalkit.train.run import train_model
from evalkit.train.validation import Validator

FIVE = ("pr333", "pr592", "pr344", "pr634", "pr849")
OTHERS = (*FIVE, "pr1493")
CHOICES: dict[str, dict[str, str]] = {
    "momentum for a short run (0.99 from 0.92, as published)": {
        "optimizer.stretch_momentum": "false",
        "optimizer.momentum": "0.99",
        "optimizer.momentum_start": "0.92",
    },
    "row normalisation": {"optimizer.row_normalise": "false"},
    "the large bigram table (1,024 rows for 4,096, the MLP wider)": {"model.bigram_buckets": "1024"},
    "a constant rate at first (falls from the start)": {"schedule.warmdown_fraction": "1.0"},
    "values of its own in every layer (blended with the first layer's)": {"model.value_residual": "first_layer"},
    "value embeddings": {"model.value_embed_layers": ""},
    "a query gain of 1.5 (4 in its place)": {"init.q_gain": "4"},
    "the smear gate": {"model.smear_gate": "false"},
    "exclusive self-attention": {"model.xsa_last_n": "0"},
    "gates of the heads": {"model.attention_gate": "none"},
    "a leaky square (relu^2)": {"model.activation": "relu2"},
    "the scale of deeper layers": {"model.ln_scale": "false"},
    "the average (the last weights)": {"averaging.export": "raw"},
    "gradients of any length (clipped at 0.3)": {"optimizer.clip_norm": "0.3"},
}
"""What is undone in ``best``, by its name in the table; sizes are those of ``--scale 64x4``."""


@dataclass(frozen=True)
class Scored:
    """A run after its export.

    Attributes:
        parameters: of the model.
        trained: bits per byte of the weights as they are exported, before rounding.
        exported: bits per byte of the artifact.
        n_bytes: of the artifact.
        seconds: the training took.
    """

    parameters: int
    trained: float
    exported: float
    n_bytes: int
    seconds: float


def parameters(model: ModelConfig) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in empty_model(model).parameters())


def sized(recipe: str, keys: dict[str, str], seed: int, a: argparse.Namespace) -> RunConfig:
    """Return a recipe at the reduced size, its MLP so wide that the parameters are as many as pr849's."""
    size = {
        "model.vocab_size": str(a.vocabulary),
        "train.batch_tokens": str(a.batch_tokens),
        "train.spans": "1",
        "train.seq_len": str(a.seq_len),
        "train.precision": "float32",
        "train.device": "cpu",
        "train.threads": "1",
        "train.seed": str(seed),
        "train.val_tokens": str(a.val_tokens),
    }
    wanted = parameters(resolve(load_recipe("pr849"), size, scale=a.scale).model)
    model = resolve(load_recipe(recipe), size | keys, scale=a.scale).model
    found, more = parameters(model), parameters(dataclasses.replace(model, mlp_hidden=model.mlp_hidden + 1))
    hidden = model.mlp_hidden + round((wanted - found) / (more - found))
    return resolve(load_recipe(recipe), size | keys | {"model.mlp_hidden": str(hidden)}, scale=a.scale, steps=a.steps)


def trained(name: str, recipe: str, keys: dict[str, str], seed: int, a: argparse.Namespace) -> Path:
    """Train a recipe with some settings changed, unless that is done; return the run's folder, which has ``name``."""
    folder: Path = a.out / f"{name}-{seed}"
    if not (folder / "summary.json").exists():
        config = sized(recipe, keys, seed, a)
        train_model(config, data=a.data, tokenizer=a.tokenizer, out=folder, resume=folder.exists())
    return folder


def trained_bpb(folder: Path) -> float:
    """Return the validation bits per byte of the weights that a run exports."""
    summary = read_json(folder / "summary.json")
    return float(summary["validation"][summary["exported"]]["val_bpb"])


def scored(recipe: str, seed: int, cap: int, a: argparse.Namespace) -> Scored:
    """Train, export and score, unless that is done; a ``cap`` of 0 bytes exports by the recipe's plan."""
    folder = trained(recipe, recipe, {}, seed, a)
    result = folder / f"scored-{cap}.json"
    if result.exists():
        return Scored(**read_json(result))
    run = load_run(folder)
    config = run.config
    artifact = folder / f"model-{cap}.evk"
    options = ExportConfig(
        calibration_data=a.data,
        calibration_tokens=a.calibration_tokens,
        tokenizer=a.tokenizer,
        fit=cap > 0,
        **({"target_bytes": cap} if cap else {}),
    )
    file = export_run(run, artifact, options).file
    stored = {n: torch.from_numpy(held_values(t)) for n, t in load_artifact(artifact).tensors.items()}
    shapes = {name: value.shape for name, value in run.weights.items()}
    tokens = load_validation(
        find_shards(a.data, config.data)[1], vocab_size=config.model.vocab_size, limit=a.val_tokens
    )
    assert tokens is not None
    validator = Validator(
        tokens,
        seq_len=config.train.seq_len,
        batch_tokens=config.train.val_batch_tokens,
        byte_counter=ByteCounter(a.tokenizer, config.model.vocab_size),
        ranks=Ranks(),
    )
    objective = Objective(config, torch.device("cpu"), compiled=False)
    after = validator.run(objective, {n: value.reshape(shapes[n]) for n, value in stored.items()}).val_bpb
    one = Scored(
        parameters=parameters(config.model),
        trained=trained_bpb(folder),
        exported=after or math.nan,
        n_bytes=file.n_bytes,
        seconds=read_json(folder / "summary.json")["seconds"],
    )
    write_json(result, dataclasses.asdict(one))
    print(f"{recipe}, seed {seed}: {one}", flush=True)
    return one


def mean_and_error(values: list[float]) -> str:
    """Return a mean with its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.4f} +- {error:.4f}"


def row(name: str, runs: list[Scored]) -> str:
    """Return a line of the table of systems."""
    return (
        f"| {name} | {runs[0].parameters:,} | {mean_and_error([r.trained for r in runs])} | "
        f"{mean_and_error([r.exported for r in runs])} | {max(r.n_bytes for r in runs):,} | "
        f"{statistics.fmean(r.seconds for r in runs):.0f} |"
    )


def write_systems(others: dict[str, list[Scored]], best: list[Scored], a: argparse.Namespace) -> None:
    """Write the table of all systems, with the paired differences of ``best`` to the best of the others."""
    named = others | {"best": best}
    means = {name: statistics.fmean(run.exported for run in runs) for name, runs in others.items()}
    rival = min(means, key=lambda name: means[name])
    gaps = [one.exported - other.exported for one, other in zip(best, others[rival], strict=True)]
    seeds = ", ".join(map(str, a.seeds))
    replace_table(
        a.table,
        f"`python bench/train_best.py --scale {a.scale} --steps {a.steps} --batch-tokens {a.batch_tokens} --seq-len "
        f"{a.seq_len}`: {a.steps} "
        f"steps of {a.batch_tokens} tokens, windows of\n{a.seq_len}, seeds {seeds}; bits per byte on {a.val_tokens:,} "
        "validation tokens of the corpus, means with standard errors over seeds; the largest artifact.\n\n"
        "| recipe | parameters | trained | exported | bytes | seconds |\n|---|"
        + "---:|" * 5
        + "\n"
        + "\n".join(row(name, runs) for name, runs in named.items())
        + f"\n\n`best` against {rival}, the best of the others, seed by seed: {mean_and_error(gaps)} bits per byte.",
    )


def write_choices(best: float, undone: dict[str, float]) -> None:
    """Write what every choice in ``best`` is worth: how many bits per byte the weights lose without it."""
    lines = ["| without | bits per byte | worse by |", "|---|---:|---:|", f"| nothing | {best:.4f} | |"]
    lines += [f"| {name} | {bpb:.4f} | {bpb - best:+.4f} |" for name, bpb in undone.items()]
    replace_table("best_choices", "\n".join(lines))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with shards")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model of the shards")
    parser.add_argument("--out", type=Path, required=True, help="where the run folders go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 42, 7], help="seeds of every system")
    parser.add_argument("--choices", action="store_true", help="also best with one choice undone at a time, first seed")
    parser.add_argument("--others", nargs="+", default=OTHERS, help="the recipes that best is compared with")
    parser.add_argument("--table", default="best", help="the table of RESULTS.md to write")
    parser.add_argument("--scale", default="64x4", help="WIDTHxDEPTH of every model")
    parser.add_argument("--steps", type=int, default=150, help="steps of each run")
    parser.add_argument("--batch-tokens", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--seq-len", type=int, default=256, help="window in tokens")
    parser.add_argument("--vocabulary", type=int, default=1024, help="of the tokenizer")
    parser.add_argument("--val-tokens", type=int, default=32_768, help="validation targets")
    parser.add_argument("--calibration-tokens", type=int, default=16_384, help="for GPTQ")
    a = parser.parse_args()
    torch.set_num_threads(1)
    others = {name: [scored(name, seed, 0, a) for seed in a.seeds] for name in a.others}
    cap = min(run.n_bytes for runs in others.values() for run in runs)
    best = [scored("best", seed, cap, a) for seed in a.seeds]
    write_systems(others, best, a)
    if a.choices:
        seed = a.seeds[0]
        undone = {
            name: trained_bpb(trained(f"no-{i}", "best", keys, seed, a))
            for i, (name, keys) in enumerate(CHOICES.items())
        }
        write_choices(best[0].trained, undone)


if __name__ == "__main__":
    main()
