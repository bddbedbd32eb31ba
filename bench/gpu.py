"""One table of what a GPU does in a few minutes: scoring, streaming, mixing, test-time training, training.

    python bench/gpu.py --minutes 8
    python bench/gpu.py --minutes 4 --sections scoring,training --recipes pr849
    python bench/gpu.py --device cpu --minutes 1        # a dry run with tiny shapes, to see that all of it works

Made for a machine that is there for minutes: nothing is downloaded, weights and tokens are drawn, each section has an
equal share of the time that is left, and every row is printed and written to ``--out`` as soon as it is known. Run it
again with the same ``--out`` and it goes on with the rows that are missing (of this card, this torch and this commit).

The plain loop is what the published evaluators do: a compiled network, all positions of a batch of windows through all
layers and the head, cross-entropy of all of them, and the last ``stride`` kept. MFU is the arithmetic that a side asks
for (causal attention counted once) over the rate of a large bfloat16 matrix product in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import network_inputs, one_byte_each, parser_of, print_header, print_row
from scoring import STRIDE, plain_loop

from evalkit.mixers import Mixer, default_config
from evalkit.model.config import ModelConfig
from evalkit.model.gpt import GPT
from evalkit.model.kernels import fastest_attention
from evalkit.plumbing.provenance import code_identity
from evalkit.plumbing.ranks import Ranks
from evalkit.prequential.mixed import MixedForecaster
from evalkit.prequential.sliding import SlidingConfig, SlidingForecaster
from evalkit.prequential.streaming import StreamingConfig, StreamingForecaster
from evalkit.recipes import load_recipe
from evalkit.tokens.shards import write_shard
from evalkit.train.automatic import settle, training_flops_per_token
from evalkit.train.data import TrainingTokens
from evalkit.train.folder import TrainingFolder
from evalkit.train.loop import Trainer
from evalkit.train.resolve import resolve
from evalkit.ttt.config import PRESETS
from evalkit.ttt.forecaster import TTTForecaster

REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """How large everything is; ``changes`` are fields of the model."""

    seq_len: int = 2048
    windows: int = 1024
    batches: tuple[int, ...] = (64, 256, 32, 128)
    chunk: int = 32_768
    step_tokens: int = 98_304
    streamed: int = 32_768
    changes: dict[str, dict[str, int]]

    @property
    def first(self) -> int:
        """First position of the windows that are scored: that of the second window."""
        return self.seq_len + 1

    @property
    def stop(self) -> int:
        """One past their last position."""
        return self.first + self.windows * STRIDE


GPU_SHAPES = Shapes(changes={})
SMALL = {"vocab_size": 64, "model_dim": 64, "num_heads": 4, "num_kv_heads": 4, "mlp_hidden": 96}
CPU_SHAPES = Shapes(
    seq_len=128,
    windows=8,
    batches=(4, 8),
    chunk=512,
    step_tokens=512,
    streamed=256,
    changes={"pr849": {**SMALL, "num_layers": 3, "bigram_buckets": 16, "bigram_dim": 4, "value_embed_dim": 4}},
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one row tells.

    Attributes:
        seconds: median of the repeats.
        first: seconds of the first call, compilation included.
        tokens: that the work scored, or trained on.
        context: tokens that went through the network.
        flops: arithmetic of the work; 0 where it is not counted.
        note: anything else.
    """

    seconds: float
    first: float
    tokens: int
    context: int
    flops: float = 0.0
    note: str = ""


Row = tuple[str, Callable[[float], Measured]]
"""What is measured, and the function that does it before a time (of ``time.monotonic``)."""


class Bench:
    """Drawn models and tokens of one device, and how work on them is timed."""

    def __init__(self, device: str, recipes: tuple[str, ...]) -> None:
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.shapes = GPU_SHAPES if self.on_gpu else CPU_SHAPES
        self.recipes = recipes

    def changes(self, recipe: str) -> dict[str, int]:
        """Return what is other than in the recipe's model."""
        return self.shapes.changes.get(recipe, {} if self.on_gpu else SMALL)

    def config(self, recipe: str) -> ModelConfig:
        """Return a recipe's model."""
        return load_recipe(recipe).model_config(**self.changes(recipe))

    def model(self, recipe: str) -> GPT:
        """Return it with drawn weights."""
        torch.manual_seed(0)
        return GPT(self.config(recipe)).eval().requires_grad_(False)

    def tokens(self, recipe: str, count: int) -> np.ndarray:
        """Return tokens, drawn."""
        return np.random.default_rng(0).integers(0, self.config(recipe).vocab_size, count)

    def sliding(self, recipe: str, batch: int = 0) -> SlidingForecaster:
        """Return what scores its windows."""
        config = SlidingConfig(
            seq_len=self.shapes.seq_len,
            stride=STRIDE,
            batch_windows=batch,
            device=str(self.device),
            dtype="bfloat16",
            compile=self.on_gpu,
        )
        return SlidingForecaster(self.model(recipe), config)

    def timed(self, work: Callable[[], object]) -> float:
        """Return the seconds of some work."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def matmul_rate(self) -> float:
        """Return the FLOP per second of a large bfloat16 matrix product, best of six."""
        size = 8192 if self.on_gpu else 1024
        a = torch.randn(size, size, device=self.device, dtype=torch.bfloat16)

        def work() -> None:
            for _ in range(8):
                torch.mm(a, a)

        return 8 * 2 * size**3 / min(self.timed(work) for _ in range(6))

    def wait(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def median(self, work: Callable[[], object], until: float) -> tuple[float, float]:
        """Return the median of several repeats, as far as the time reaches, and the seconds of the first call."""
        first, again = self.timed(work), [self.timed(work)]
        while len(again) < REPEATS and time.monotonic() + again[-1] < until:
            again.append(self.timed(work))
        return statistics.median(again), first


def side_flops(config: ModelConfig, seq_len: int, scored: int) -> float:
    """Return the arithmetic of one window, with the last layer and the head on the last ``scored`` rows alone."""
    d, kv, hidden = config.model_dim, config.kv_dim, config.mlp_hidden
    keys_values, others = 4 * d * kv, 4 * d * d + 4 * d * hidden
    attention = 4 * d * (seq_len + 1) / 2
    layer = seq_len * (keys_values + others + attention)
    last = seq_len * keys_values + scored * (others + 4 * d * (seq_len - (scored - 1) / 2))
    head = scored * 2 * d * config.vocab_size
    return (len(config.passes) - 1) * layer + last + head


def of_windows(shapes: Shapes, seconds: float, first: float, flops: float = 0.0, note: str = "") -> Measured:
    """Return what is known of the scoring of all windows; ``flops`` are those of one."""
    return Measured(
        seconds=seconds,
        first=first,
        tokens=shapes.windows * STRIDE,
        context=shapes.windows * shapes.seq_len,
        flops=shapes.windows * flops,
        note=note,
    )


def scoring(bench: Bench) -> Iterator[Row]:
    """Sliding windows beside the plain compiled loop."""
    for recipe in bench.recipes:
        yield f"{recipe}, evalkit, default batch", partial(score_windows, bench, recipe, 0)
        for batch in bench.shapes.batches:
            yield f"{recipe}, evalkit, batch {batch}", partial(score_windows, bench, recipe, batch)
            if batch * bench.shapes.seq_len * bench.config(recipe).vocab_size * 4 < 16 << 30:  # its logits
                yield f"{recipe}, plain loop, batch {batch}", partial(score_plainly, bench, recipe, batch)


def score_windows(bench: Bench, recipe: str, batch: int, until: float) -> Measured:
    """Score the last stride of many windows."""
    shapes, forecaster = bench.shapes, bench.sliding(recipe, batch)
    tokens = bench.tokens(recipe, shapes.stop)
    seconds, first = bench.median(lambda: forecaster.score(tokens, shapes.first, shapes.stop), until)
    note = f"{forecaster._batch_size(first=False)} windows, {forecaster.kernel or 'no choice of kernel'}"
    return of_windows(shapes, seconds, first, side_flops(bench.config(recipe), shapes.seq_len, STRIDE), note)


def score_plainly(bench: Bench, recipe: str, batch: int, until: float) -> Measured:
    """Do the same as the published evaluators do."""
    shapes = bench.shapes
    model = bench.model(recipe).to(bench.device).to_compute_dtype(torch.bfloat16)
    forward: Any = torch.compile(model, dynamic=False) if bench.on_gpu else model
    tokens = bench.tokens(recipe, shapes.stop + STRIDE)
    seconds, first = bench.median(
        lambda: plain_loop(forward, tokens, shapes.windows, shapes.seq_len, batch, str(bench.device)), until
    )
    return of_windows(shapes, seconds, first, side_flops(bench.config(recipe), shapes.seq_len, shapes.seq_len))


def streaming(bench: Bench) -> Iterator[Row]:
    """Keys and values kept: a forward pass a token."""
    shapes = bench.shapes
    config = StreamingConfig(
        seq_len=shapes.seq_len,
        block=min(StreamingConfig.block, shapes.seq_len // 4),
        device=str(bench.device),
        dtype="bfloat16",
    )
    count = shapes.streamed
    for recipe in bench.recipes:

        def work(until: float, recipe: str = recipe) -> Measured:
            forecaster = StreamingForecaster(bench.model(recipe), config)
            tokens = bench.tokens(recipe, count + 1)
            seconds, took = bench.median(lambda: forecaster.score(tokens, 1, count + 1), until)
            return Measured(seconds=seconds, first=took, tokens=count, context=count)

        yield f"{recipe}, blocks of {config.block}", work


def mixing(bench: Bench) -> Iterator[Row]:
    """The online mixer on the host while the network computes the next batch."""
    for recipe in bench.recipes:
        yield f"{recipe}, network alone", partial(score_windows, bench, recipe, 0)
        yield f"{recipe}, mixer alone, on the host", partial(mix_alone, bench, recipe)
        yield f"{recipe}, network and mixer", partial(mix_both, bench, recipe)


def mix_alone(bench: Bench, recipe: str, until: float) -> Measured:
    """Mix numbers of a network that is not there."""
    shapes, tokens = bench.shapes, bench.tokens(recipe, bench.shapes.stop)
    mixer = Mixer(default_config(bench.config(recipe).vocab_size))

    mixer.score(tokens[: shapes.first], 1, shapes.first, *network_inputs(shapes.first - 1))
    mixer.commit(shapes.first)
    given = network_inputs(shapes.stop - shapes.first)
    seconds, first = bench.median(lambda: mixer.score(tokens, shapes.first, shapes.stop, *given), until)
    return Measured(seconds=seconds, first=first, tokens=shapes.windows * STRIDE, context=0)


def mix_both(bench: Bench, recipe: str, until: float) -> Measured:
    """Score and mix."""
    shapes, tokens = bench.shapes, bench.tokens(recipe, bench.shapes.stop)
    vocab_size = bench.config(recipe).vocab_size
    forecaster = MixedForecaster(bench.sliding(recipe), Mixer(default_config(vocab_size)), vocab_size)
    forecaster.score(tokens[: shapes.first], 1, shapes.first)
    forecaster.observe(tokens[: shapes.first], 1, shapes.first)
    seconds, first = bench.median(lambda: forecaster.score(tokens, shapes.first, shapes.stop), until)
    return of_windows(shapes, seconds, first)


def ttt(bench: Bench) -> Iterator[Row]:
    """Test-time training: a chunk is scored, and then trained on."""
    shapes = bench.shapes
    chunk = shapes.chunk
    for recipe in bench.recipes:

        def work(until: float, recipe: str = recipe) -> Measured:
            tokens = bench.tokens(recipe, 3 * chunk + 1)
            preset = {"pr849": "published", "pr1493": "pr1493"}.get(recipe, "default")
            forecaster = TTTForecaster(
                bench.model(recipe),
                bench.sliding(recipe).config,
                replace(PRESETS[preset](), chunk_tokens=chunk),
                one_byte_each(bench.config(recipe).vocab_size),
                num_chunks=100,
            )
            seconds, parts = [], []
            for start in range(1, 3 * chunk + 1, chunk):
                if seconds and time.monotonic() > until:
                    break
                stop = start + chunk
                scored = bench.timed(lambda start=start, stop=stop: forecaster.score(tokens[:stop], start, stop))
                trained = bench.timed(lambda start=start, stop=stop: forecaster.observe(tokens[:stop], start, stop))
                seconds.append(scored + trained)
                parts.append(f"{scored:.2f} s scoring, {trained:.2f} s training")
            return Measured(
                seconds=seconds[-1],
                first=seconds[0],
                tokens=chunk,
                context=chunk // STRIDE * shapes.seq_len,
                note=f"{preset}: {parts[-1]}",
            )

        yield f"{recipe}, a chunk of {chunk:,}", work


def training(bench: Bench) -> Iterator[Row]:
    """A training step, whole and in parts."""
    shapes, count = bench.shapes, bench.shapes.step_tokens
    for recipe in bench.recipes:
        if not load_recipe(recipe).sections.get("train"):
            continue
        for part in ("whole step", "forward and backward", "optimizer", "averaging", "data"):

            def work(until: float, recipe: str = recipe, part: str = part) -> Measured:
                with tempfile.TemporaryDirectory() as folder:
                    trainer = _trainer(bench, recipe, Path(folder))
                    parts = {
                        "whole step": trainer.train_step,
                        "forward and backward": lambda: trainer.forward_backward(0, quantised=False, alpha=1.0),
                        "optimizer": lambda: trainer.optimizer.step(lr_scale=1e-3, momentum=0.9),
                        "averaging": lambda: trainer.averages.update(
                            trainer.masters, step=1, lr_scale=1.0, stretch=1.0
                        ),
                        "data": lambda: trainer._stream.span(1, 0, spans=1, span_tokens=count, seq_len=shapes.seq_len),
                    }
                    kernel = fastest_attention(
                        trainer.config.model,
                        seq_len=shapes.seq_len,
                        device=bench.device,
                        dtype=torch.bfloat16,
                        training=True,
                    )
                    with nullcontext() if kernel is None else kernel.active():
                        seconds, took = bench.median(parts[part], until)
                    flops = 0.0
                    if part in ("whole step", "forward and backward"):
                        flops = count * training_flops_per_token(trainer.config.model, shapes.seq_len)
                    return Measured(seconds=seconds, first=took, tokens=count, context=count, flops=flops)

            yield f"{recipe}, {part}", work


def _trainer(bench: Bench, recipe: str, folder: Path) -> Trainer:
    shapes = bench.shapes
    settings = {f"model.{name}": str(value) for name, value in bench.changes(recipe).items()} | {
        "train.batch_tokens": str(shapes.step_tokens),
        "train.spans": "1",
        "train.seq_len": str(shapes.seq_len),
        "train.device": str(bench.device),
    }
    config = settle(resolve(load_recipe(recipe), settings, steps=1000), Ranks(device=bench.device))
    shard = folder / "train.bin"
    write_shard(shard, bench.tokens(recipe, 4 * shapes.step_tokens + 8))
    return Trainer(
        config,
        stream=TrainingTokens([shard], vocab_size=config.model.vocab_size),
        validator=None,
        ranks=Ranks(device=bench.device),
        folder=TrainingFolder(path=folder),
    )


SECTIONS = {"scoring": scoring, "streaming": streaming, "mixing": mixing, "ttt": ttt, "training": training}


def known_rows(path: Path, machine: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the rows that earlier runs left, of the same machine and code."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row["key"]: row for row in rows if all(row.get(name) == value for name, value in machine.items())}


def show(row: dict[str, Any]) -> None:
    """Print a row of the table."""
    rates = ((row["tokens"] / row["seconds"], ",.0f"), (row["context"] / row["seconds"], ",.0f"))
    numbers = (*rates, (row["mfu"], ".1%"), (row["peak_mb"], ",.0f"))
    cells = (format(value, form) if value else "-" for value, form in numbers)
    print_row(row["section"], row["what"], f"{row['seconds']:.4g}", f"{row['first']:.1f}", *cells, row["note"])


def run_row(bench: Bench, work: Callable[[float], Measured], until: float, rate: float) -> dict[str, Any]:
    """Measure one row; what fails is a row too, so that the others are still measured."""
    if bench.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    try:
        found = work(until)
    except (RuntimeError, torch.OutOfMemoryError) as error:
        found = Measured(seconds=float("inf"), first=0.0, tokens=0, context=0, note=f"failed: {str(error)[:80]!r}")
    peak = torch.cuda.max_memory_allocated(bench.device) / 1e6 if bench.on_gpu else 0.0
    return {**found.__dict__, "mfu": found.flops / found.seconds / rate, "peak_mb": peak}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma list of what to measure, in this order")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it")
    parser.add_argument("--recipes", default="pr849,pr1493", help="comma list")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a dry run with tiny shapes")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.jsonl"), help="rows, one a line")
    options: argparse.Namespace = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("not run: this machine has no CUDA device (--device cpu is a dry run)")
        return
    chosen = [name for name in options.sections.split(",") if name]
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"--sections: {', '.join(sorted(unknown))}; expected some of {', '.join(SECTIONS)}")
    end = time.monotonic() + 60 * options.minutes
    bench = Bench(options.device, tuple(options.recipes.split(",")))
    card = torch.cuda.get_device_name() if bench.on_gpu else "cpu"
    machine = {"card": card, "torch": torch.__version__, "commit": str(code_identity())}
    known = known_rows(options.out, machine)
    rate = bench.matmul_rate()
    print(", ".join(machine.values()), f"bfloat16 matrix product {rate / 1e12:.3g} TFLOP/s\n", sep=", ")
    print_header(
        "section", "what", "seconds", "first call", "tokens/s", "context tokens/s", "MFU", "peak MB", "note", left=2
    )
    left_out = []
    for number, section in enumerate(chosen):
        until = time.monotonic() + (end - time.monotonic()) / (len(chosen) - number)
        for what, work in SECTIONS[section](bench):
            key = f"{section}: {what}"
            if key not in known:
                if time.monotonic() >= until:
                    left_out.append(key)
                    continue
                row = {"key": key, "section": section, "what": what, **machine, "matmul_flops": rate}
                row |= run_row(bench, work, until, rate)
                known[key] = row
                if row["seconds"] != float("inf"):  # what failed is tried again the next time
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
            show(known[key])
    if left_out:
        print(f"\nno time for {len(left_out)} rows ({left_out[0]} ...): run it again with the same --out")


if __name__ == "__main__":
    main()
