"""Sizes of evalkit's container beside zstd-22 and xz of the torch layouts and the order-0 entropy, and its decode time.

Times are processor seconds of one thread::

    python bench/export_container.py                      # the parity artifacts, if they are there
    python bench/export_container.py --artifact FILE...    # artifacts of one's own
    python bench/export_container.py --runs DIR --data DIR  # full-size runs of evalkit train, named like their recipe

A full-size run of a few steps has small weights, most of which round to 0 at the published step floors. ``--rms``
brings every block matrix to one root mean square by a factor (0.16 is what the published sizes imply), so that the
integers fill as those of a long run do, and the export's own GPTQ quantises the scaled network.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from common import SHARED, cpu_seconds, parser_of

from evalkit.artifact.load import load_artifact
from evalkit.artifact.native import NativeMetadata, read_native, write_native
from evalkit.artifact.tensors import PlainTensor, QuantizedTensor, StoredTensor
from evalkit.model.gpt import GPT
from evalkit.train.export.export import quantize_state_dict
from evalkit.train.export.pipeline import plan_of
from evalkit.train.export.text import TrainingText
from evalkit.train.export.torch_layouts import LAYOUTS, TorchLayout, compress_payload, torch_payload
from evalkit.train.folder import load_run
from evalkit.train.quantization.hessian import collect_hessians

PARITY = SHARED / "parity"
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
    written, data = cpu_seconds(lambda: write_native(tensors, NativeMetadata()))
    read, artifact = cpu_seconds(lambda: read_native(data), 3)
    for name, tensor in tensors.items():
        assert artifact.tensors[name].values.tobytes() == tensor.values.tobytes(), name
    assert hashlib.sha256(write_native(tensors, NativeMetadata())).digest() == hashlib.sha256(data).digest()
    n_values = sum(t.values.size for t in tensors.values())
    columns = " ".join(f"{size:11,.0f}" for size in (n_values, *sizes, len(data)))
    gains = " ".join(f"{100 * (1 - len(data) / size):6.2f}%" for size in sizes)
    return f"{label:34} {columns} {gains} {written:6.2f} {read:6.2f}"


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
    parser = parser_of(__doc__)
    parser.add_argument("--recipes", default="pr592,pr344,pr634,pr849", help="recipes of --runs")
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
