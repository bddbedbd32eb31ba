"""What evalkit runs on, and whether its parts work here: versions, hardware, a self-test of a few seconds."""

from __future__ import annotations

import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evalkit.plumbing.provenance import version

PACKAGES = ("torch", "numpy", "numba", "scipy", "sentencepiece", "zstandard", "constriction", "click")
OPTIONAL = {"huggingface_hub": "data", "matplotlib": "plot"}


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What was tried, whether it worked, with which numbers or which error, and in what wall time."""

    name: str
    passed: bool
    detail: str
    seconds: float


def describe_machine() -> dict[str, str]:
    """Return versions and hardware, name to text."""
    import torch

    from evalkit.plumbing.hardware import resolve_device
    from evalkit.plumbing.version import __version__

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    disk = shutil.disk_usage(tempfile.gettempdir())
    return {
        "evalkit": f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "extras": ", ".join(
            f"{name} {version(name)}" if version(name) != "missing" else f"no {name} (pip install 'evalkit[{extra}]')"
            for name, extra in OPTIONAL.items()
        ),
        "cpu": f"{cores} cores, torch uses {torch.get_num_threads()} threads",
        "dtype": _dtype(resolve_device("auto")),
        "gpu": _gpu(torch),
        "attention": _attention(torch),
        "memory": _memory(),
        "disk": f"{disk.free / 2**30:.1f} GiB free in {tempfile.gettempdir()}",
    }


def self_tests() -> list[SelfTest]:
    """Run the self-tests; each takes about a second at most, besides numba's first compilation."""
    return [
        _run("model: a forward pass sums to 1 and is causal", _test_model),
        _run("mixer: probabilities sum to 1", _test_mixer),
        _run("range coder: round trip", _test_coder),
        _run("files: write, rename, read back", _test_files),
    ]


def _run(name: str, test: Callable[[], str]) -> SelfTest:
    started = time.perf_counter()
    try:
        detail, passed = test(), True
    except Exception as error:  # whatever fails here is the finding
        detail, passed = f"{type(error).__name__}: {error}", False
    return SelfTest(name=name, passed=passed, detail=detail, seconds=time.perf_counter() - started)


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _test_model() -> str:
    import torch

    from evalkit.model.config import ModelConfig
    from evalkit.model.gpt import GPT

    config = ModelConfig(vocab_size=64, num_layers=2, model_dim=32, num_heads=4, num_kv_heads=2, mlp_hidden=64)
    generator = torch.Generator().manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        tokens = torch.randint(0, 64, (1, 24), generator=generator)
        changed = tokens.clone()
        changed[0, 16:] = (changed[0, 16:] + 1) % 64
        rows = torch.log_softmax(model(tokens).double(), dim=-1)
        other = torch.log_softmax(model(changed).double(), dim=-1)
    error = float((rows.exp().sum(-1) - 1).abs().max())
    moved = float((rows[:, :16] - other[:, :16]).abs().max())
    _expect(math.isfinite(error) and error < 1e-9, f"a row sums to 1 {error:+.3g}")
    _expect(moved < 1e-5, f"changing later tokens moved earlier ones by {moved:.3g} nats")
    return f"largest error of a sum {error:.1e}; later tokens moved earlier ones by {moved:.1e} nats"


def _test_mixer() -> str:
    import numpy as np

    from evalkit.mixers import Mixer, default_config

    mixer = Mixer(default_config(32, network=False, document_token=None))
    tokens = np.random.default_rng(0).integers(0, 32, 96).astype(np.uint16)
    rows = mixer.distributions(tokens, 1, 96)
    nats = mixer.score(tokens, 1, 96)
    error = float(np.abs(np.exp(rows).sum(axis=1) - 1).max())
    stated = float(np.abs(nats + rows[np.arange(95), tokens[1:].astype(np.int64)]).max())
    _expect(error < 1e-9, f"a row sums to 1 {error:+.3g}")
    _expect(stated < 1e-9, f"a score differs from its row by {stated:.3g} nats")
    return f"largest error of a sum {error:.1e}, of a score against its row {stated:.1e}"


def _test_coder() -> str:
    import constriction
    import numpy as np

    from evalkit.codec.fixed import PRECISION, frequencies

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(256, 40))
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    symbols = np.array([rng.choice(40, p=np.exp(row) / np.exp(row).sum()) for row in rows], dtype=np.int32)
    table = np.array([frequencies(row, i) for i, row in enumerate(rows)], dtype=np.float64) / 2**PRECISION
    family = constriction.stream.model.Categorical(perfect=False)
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols, family, table)
    words = encoder.get_compressed()
    decoded = constriction.stream.queue.RangeDecoder(words).decode(family, table)
    _expect(bool(np.array_equal(decoded, symbols)), "what was decoded is not what was encoded")
    ideal = float(-rows[np.arange(256), symbols].sum() / math.log(2))
    return f"256 symbols in {32 * len(words):,} bits, {ideal:,.1f} by their probabilities"


def _test_files() -> str:
    from pathlib import Path

    from evalkit.plumbing.files import write_atomically

    content = os.urandom(1 << 16)
    with tempfile.TemporaryDirectory(prefix="evalkit-doctor-") as folder:
        path = Path(folder) / "file"
        write_atomically(path, content)
        _expect(path.read_bytes() == content and len(list(Path(folder).iterdir())) == 1, "the file came back changed")
    return f"in {tempfile.gettempdir()}"


def _gpu(torch: Any) -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    names = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        names.append(f"{torch.cuda.get_device_name(i)} ({free / 2**30:.1f} of {total / 2**30:.1f} GiB free)")
    return ", ".join(names)


def _dtype(device: str) -> str:
    from evalkit.plumbing.hardware import matrix_speed

    speed = matrix_speed(device)
    taken = "bfloat16" if speed.prefers_bfloat16 else "float32"
    return f"--dtype auto takes {taken} for large models on {device}: {speed}"


def _attention(torch: Any) -> str:
    if not torch.cuda.is_available():
        return "torch's scaled_dot_product_attention on the CPU"
    backends = [
        name
        for name, probe in (
            ("flash", torch.backends.cuda.flash_sdp_enabled),
            ("memory-efficient", torch.backends.cuda.mem_efficient_sdp_enabled),
            ("math", torch.backends.cuda.math_sdp_enabled),
        )
        if probe()
    ]
    return f"torch's scaled_dot_product_attention: {', '.join(backends)} enabled"


def _memory() -> str:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            values = {line.split(":")[0]: int(line.split()[1]) for line in file}
        return f"{values['MemAvailable'] / 2**20:.1f} of {values['MemTotal'] / 2**20:.1f} GiB available"
    except (OSError, KeyError, ValueError, IndexError):
        try:
            return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB in all"
        except (ValueError, OSError):
            return "unknown"
