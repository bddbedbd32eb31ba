"""Sizes of evalkit's container beside zstd-22 and xz of the torch layouts and the order-0 entropy, and its decode time.

Times are processor seconds of one thread::

    python bench/export_container.py                      # the parity artifacts, if they are there
    python bench/export_container.py --full               # also full-size shapes, minutes (zstd-22 and xz are slow)
    python bench/export_container.py --artifact FILE...    # artifacts of one's own
    python bench/export_container.py --runs DIR --data DIR  # full-size runs of evalkit train, named like their recipe

Full-size weights are drawn: Gaussian or Laplacian entries of standard deviation 0.16, with log-normal spreads of rows
and columns (0 gives independent, identically distributed entries, for which order-0 entropy is the limit of any coder).

A full-size run of a few steps has small weights, most of which round to 0 at the published step floors. ``--rms``
brings every block matrix to one root mean square by a factor (0.16 is what the published sizes imply), so that the
integers fill as those of a long run do, and the export's own GPTQ quantises the scaled network.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from evalkit.artifact.load import load_artifact
from evalkit.artifact.native import NativeMetadata, read_native, write_native
from evalkit.artifact.tensors import PlainTensor, QuantizedTensor, StoredTensor
from evalkit.model.gpt import GPT
from evalkit.recipes import load_recipe
from evalkit.train.export.export import quantize_state_dict
from evalkit.train.export.pipeline import plan_of
from evalkit.train.export.text import TrainingText
from evalkit.train.export.torch_layouts import LAYOUTS, TorchLayout, compress_payload, torch_payload
from evalkit.train.folder import load_run
from evalkit.train.quantization.hessian import collect_hessians
from evalkit.train.quantization.plan import PLANS

PARITY = Path(__file__).resolve().parents[1] / "../shared/parity"
HEADER = (
    f"{'tensors':34} {'values':>11} {'zstd-22':>11} {'xz-6':>11} {'order 0':>11} {'evalkit':>11} "
    f"{'zstd':>7} {'xz':>7} {'order 0':>7} {'write':>6} {'read':>6}"
)


def order_0_bytes(tensors: Mapping[str, StoredTensor]) -> float:
    """Sum of the order-0 entropies of the integer tensors, each with its own histogram, plus xz of the rest."""
    total, rest = 0.0, []
    for tensor in tensors.values():
        if isinstance(tensor, QuantizedTensor):
            counts = np.unique(tensor.values, return_counts=True)[1]
            total -= float((counts * np.log2(counts / counts.sum())).sum()) / 8
            rest.append(tensor.scale)
        else:
            rest.append(tensor.values)
    return total + len(lzma.compress(b"".join(np.ascontiguousarray(values).tobytes() for values in rest)))


def line(label: str, tensors: Mapping[str, StoredTensor], layout: TorchLayout) -> str:
    payload = torch_payload(tensors, layout)
    sizes = [len(compress_payload(payload, "zstd")), len(compress_payload(payload, "xz")), order_0_bytes(tensors)]
    started = time.process_time()
    data = write_native(tensors, NativeMetadata())
    written = time.process_time() - started
    reads = []
    for _ in range(3):
        started = time.process_time()
        artifact = read_native(data)
        reads.append(time.process_time() - started)
    for name, tensor in tensors.items():
        assert artifact.tensors[name].values.tobytes() == tensor.values.tobytes(), name
    assert hashlib.sha256(write_native(tensors, NativeMetadata())).digest() == hashlib.sha256(data).digest()
    n_values = sum(t.values.size for t in tensors.values())
    columns = " ".join(f"{size:11,.0f}" for size in (n_values, *sizes, len(data)))
    gains = " ".join(f"{100 * (1 - len(data) / size):6.2f}%" for size in sizes)
    return f"{label:34} {columns} {gains} {written:6.2f} {min(reads):6.2f}"


def drawn_state(recipe: str, shape: str, spread: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a recipe's full-size shapes."""
    generator = np.random.default_rng(seed)
    with torch.device("meta"):
        model = GPT(load_recipe(recipe).model_config())
    state = {}
    for name, tensor in model.state_dict().items():
        size = tuple(tensor.shape)
        if len(size) < 2:
            values = 1 + 0.1 * generator.standard_normal(size)
        else:
            draw = generator.standard_normal if shape == "gaussian" else lambda s: generator.laplace(0, 0.5**0.5, s)
            values = 0.16 * np.asarray(draw(size))
            values *= np.exp(spread * generator.standard_normal((size[0], 1)))
            values *= np.exp(spread * generator.standard_normal((1, size[1])))
        state[name] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return state


def trained_tensors(run: Path, rms: float, data: Path, calibration_tokens: int) -> Mapping[str, StoredTensor]:
    """Quantise a run as ``evalkit export`` does, after its block matrices are scaled to a root mean square (0: not)."""
    trained = load_run(run)
    weights = {
        name: w * (rms / w.square().mean().sqrt())
        if rms and name.startswith("blocks.") and w.ndim == 2 and min(w.shape) > 8
        else w
        for name, w in trained.weights.items()
    }
    model = GPT(trained.config.model).eval().requires_grad_(False)
    model.load_state_dict(weights)
    text = TrainingText(data, trained, calibration_tokens=calibration_tokens)
    return quantize_state_dict(weights, plan_of(trained), collect_hessians(model, text.calibration()))


def cold_read_seconds(data: bytes) -> tuple[float, float]:
    """Processor seconds to read in a fresh process: first with nothing compiled on disk, then with it; no imports."""
    import os
    import tempfile

    code = (
        "import sys, time\nfrom evalkit.artifact.native import read_native\ndata = open(sys.argv[1], 'rb').read()\n"
        "t = time.process_time()\nread_native(data)\nprint(time.process_time() - t)"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "artifact"
        path.write_bytes(data)
        environment = os.environ | {"NUMBA_CACHE_DIR": folder, "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, "-c", code, str(path)]
        seconds = [
            float(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)
            for _ in range(2)
        ]
    return seconds[0], seconds[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also full-size shapes with drawn weights")
    parser.add_argument("--recipes", default="pr592,pr344,pr634,pr849", help="recipes for --full and --runs")
    parser.add_argument("--runs", type=Path, help="folder of full-size runs, named like their recipe")
    parser.add_argument("--data", type=Path, help="training shards that the runs' GPTQ calibrates on")
    parser.add_argument("--calibration-tokens", type=int, default=4096)
    parser.add_argument("--rms", type=float, default=0.16, help="of the runs' block matrices; 0 leaves them")
    parser.add_argument("--artifact", type=Path, nargs="*", default=[], help="artifacts to repack")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADER)
    if not options.artifact and not options.runs and PARITY.is_dir():
        for path in sorted(PARITY.glob("*/small/*.ptz")):
            system = path.parts[-3]
            print(line(f"parity {system} small", load_artifact(path).tensors, LAYOUTS[f"pr{system}"]), flush=True)
    for path in options.artifact:
        artifact = load_artifact(path)
        recipe = artifact.recognise() or "pr592"
        print(line(path.name, artifact.tensors, LAYOUTS[recipe]), flush=True)
    tensors: Mapping[str, StoredTensor] = {}
    if options.full:
        for recipe in options.recipes.split(","):
            for shape, spread in (("gaussian", 0.0), ("laplacian", 0.0), ("gaussian", 0.3)):
                tensors = quantize_state_dict(drawn_state(recipe, shape, spread), PLANS[recipe])
                print(line(f"{recipe} full, {shape} {spread}", tensors, LAYOUTS[recipe]), flush=True)
    if options.runs:
        for recipe in options.recipes.split(","):
            tensors = trained_tensors(options.runs / recipe, options.rms, options.data, options.calibration_tokens)
            print(line(f"{recipe} run, rms {options.rms}", tensors, LAYOUTS[recipe]), flush=True)
    if tensors:
        data = write_native(tensors, NativeMetadata())
        cold, warm = cold_read_seconds(data)
        print(f"read of {len(data):,} bytes in a fresh process: {cold:.1f} s compiling, {warm:.1f} s compiled before")
        plain = sum(isinstance(t, PlainTensor) for t in tensors.values())
        print(f"({len(tensors)} tensors, {plain} of them not quantised)")


if __name__ == "__main__":
    main()
