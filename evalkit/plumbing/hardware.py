"""What this machine computes with: the device, and the number type that its matrix products are fastest in.

Flags of a processor say what it understands, not how fast: bfloat16 is slower than float32 on several that have
instructions for it. So products of the shapes of a network are timed, once a machine: the result is kept in a file, so
that every later run decides alike, and the margin is so wide that no other load on the machine turns the decision.
"""

from __future__ import annotations

import json
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import user_folder, write_json

FAST = 1.3
"""How many times as fast as float32 bfloat16 must be to be taken. Processors are far from it: those without the
instructions reach 0.2 to 0.3, those that emulate them 0.5, those with dot products 1.6 to 1.9, those with tiles 4."""

_SHAPES = ((512, 512), (512, 1536), (1536, 512))
"""Inputs and outputs of the products, a network's of 27 million parameters."""
_ROWS = {"cpu": 1024, "cuda": 65_536}
_REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class MatrixSpeed:
    """How fast a processor multiplies matrices of each type, in GFLOP/s; a CPU on one thread."""

    processor: str
    float32: float
    bfloat16: float

    @property
    def prefers_bfloat16(self) -> bool:
        """Whether bfloat16 is faster by more than any doubt."""
        return self.bfloat16 >= FAST * self.float32

    def __str__(self) -> str:
        """Say it in words."""
        return f"bfloat16 is {self.bfloat16 / self.float32:.1f} times as fast as float32 on this {self.processor}"


def cache_root() -> Path:
    """Folder of what can be found again: ``$EVALKIT_CACHE``, or evalkit's folder in the user's cache folder."""
    return user_folder("EVALKIT_CACHE", "XDG_CACHE_HOME", "~/.cache")


def resolve_device(name: str) -> str:
    """Return the device that ``auto`` stands for, a GPU where there is one; any other name as it is.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    require_device(name)
    return name


def require_device(name: str) -> None:
    """Raise an :class:`InputError` unless ``name`` is a device that torch can use here."""
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"--device is {name!r}; expected cpu or cuda, or auto for either")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this machine has no CUDA device that torch can use; use --device cpu")


def matrix_speed(device: str) -> MatrixSpeed:
    """Return how fast a device multiplies matrices, measured once for each processor and version of torch.

    Where the folder of :func:`cache_root` cannot be written, it is measured each time, in a fraction of a second.
    """
    path = cache_root() / "matrix-speed.json"
    processor = _processor(device)
    key = f"{processor}, torch {torch.__version__}"
    known = _read(path)
    if key in known:
        return known[key]
    speed = _measured(device, processor)
    with suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {name: asdict(value) for name, value in {**known, key: speed}.items()})
    return speed


def _read(path: Path) -> dict[str, MatrixSpeed]:
    """Return what was measured before; nothing where the file is missing or damaged."""
    try:
        found = {name: MatrixSpeed(**values) for name, values in json.loads(path.read_bytes()).items()}
        return found if all(speed.float32 > 0 and speed.bfloat16 > 0 for speed in found.values()) else {}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _processor(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _measured(device: str, processor: str) -> MatrixSpeed:
    """Time a network's products; the best of several rounds, in turns, which other load disturbs least."""
    rows, on_gpu = _ROWS[device.split(":")[0]], device.startswith("cuda")
    work = sum(2 * rows * inputs * outputs for inputs, outputs in _SHAPES)

    def seconds(dtype: torch.dtype) -> float:
        total = 0.0
        for inputs, outputs in _SHAPES:
            x = torch.ones(1, rows, inputs, device=device, dtype=dtype)
            weight = torch.ones(outputs, inputs, device=device, dtype=dtype)
            if on_gpu:
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            F.linear(x, weight)
            if on_gpu:
                torch.cuda.synchronize(device)
            total += time.perf_counter() - began
        return total

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as windows are computed
    try:
        with torch.inference_mode():
            rounds = [(seconds(torch.float32), seconds(torch.bfloat16)) for _ in range(_REPEATS)]
    finally:
        torch.set_num_threads(threads)
    float32, bfloat16 = (work / min(each) / 1e9 for each in zip(*rounds, strict=True))
    return MatrixSpeed(processor=processor, float32=float32, bfloat16=bfloat16)
