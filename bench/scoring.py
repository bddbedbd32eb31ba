"""Sliding scoring beside a straightforward window loop, in one run.

The baseline does what the published evaluators do: every window through all layers and the head at all positions,
cross-entropy over all of them in float32, and then the last ``stride`` losses of each window are kept. Both sides use
the same model, windows and threads.

    python bench/scoring.py --recipe pr849 --windows 32 --batch 32
    python bench/scoring.py --recipe pr849 --windows 4096 --batch 64 --device cuda

On a GPU both sides are compiled, and the table also has tokens per second of context, peak memory, and the model FLOP
utilisation: arithmetic that a side asks for (the fact sheet's formula, causal attention counted once) over what a
bfloat16 matrix product reaches in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from common import parser_of

from evalkit.model.config import ModelConfig
from evalkit.model.gpt import GPT
from evalkit.prequential.sliding import SlidingConfig, SlidingForecaster
from evalkit.prequential.streaming import StreamingConfig, StreamingForecaster
from evalkit.recipes import load_recipe

STRIDE = 64


def plain_loop(model: GPT, tokens: np.ndarray, windows: int, seq_len: int, batch: int, device: str) -> np.ndarray:
    """Score the last stride of each window, computing everything for all positions."""
    kept = []
    starts = np.arange(1, windows + 1) * STRIDE
    with torch.inference_mode():
        for i in range(0, windows, batch):
            rows = [tokens[s : s + seq_len + 1] for s in starts[i : i + batch]]
            ids = torch.from_numpy(np.stack(rows).astype(np.int64)).to(device)
            logits = model(ids[:, :-1])
            losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            kept.append(losses.view(len(rows), seq_len)[:, -STRIDE:].flatten().double().cpu().numpy())
    return np.concatenate(kept)


def side_flops(config: ModelConfig, seq_len: int, scored: int) -> float:
    """Return the arithmetic of one window, with the last layer and the head on the last ``scored`` rows alone."""
    d, kv, hidden = config.model_dim, config.kv_dim, config.mlp_hidden
    keys_values, others = 4 * d * kv, 4 * d * d + 4 * d * hidden
    attention = 4 * d * (seq_len + 1) / 2
    layer = seq_len * (keys_values + others + attention)
    last = seq_len * keys_values + scored * (others + 4 * d * (seq_len - (scored - 1) / 2))
    head = scored * 2 * d * config.vocab_size
    return (len(config.passes) - 1) * layer + last + head


def matmul_rate(device: str) -> float:
    """Return the FLOP per second of a large bfloat16 matrix product, best of five."""
    size = 8192 if device == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)

    def work() -> np.ndarray:
        for _ in range(8):
            torch.mm(a, a)
        return np.empty(0)

    return 8 * 2 * size**3 / min(timed(work, device)[0] for _ in range(6))


def timed(work: Callable[[], np.ndarray], device: str) -> tuple[float, np.ndarray]:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--recipe", default="pr849")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8, help="windows at a time, on a CPU in the plain loop alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("not run: this machine has no CUDA device")
        return
    on_gpu = options.device == "cuda"
    config = load_recipe(options.recipe).model_config()
    torch.manual_seed(0)
    template = GPT(config).eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    streamed = max(options.windows * STRIDE, 1024)  # a few blocks, so that threads have something to share
    tokens = rng.integers(0, config.vocab_size, options.seq_len + streamed + STRIDE + 1)
    first = options.seq_len + 1
    stop = first + options.windows * STRIDE

    def fresh(dtype: str) -> GPT:
        model = GPT(config).eval().requires_grad_(False)
        model.load_state_dict(template.state_dict())
        return model.to(options.device).to_compute_dtype(getattr(torch, dtype))

    sides: dict[str, Callable[[], np.ndarray]] = {}
    for dtype in ("float32", "bfloat16"):
        model = fresh(dtype)
        forward = torch.compile(model, dynamic=False) if on_gpu else model
        sides[f"plain loop, {dtype}"] = lambda forward=forward: plain_loop(
            forward, tokens, options.windows, options.seq_len, options.batch, options.device
        )
        sliding = SlidingForecaster(
            fresh(dtype),
            SlidingConfig(
                seq_len=options.seq_len,
                stride=STRIDE,
                batch_windows=options.batch,
                device=options.device,
                dtype=dtype,
                compile=on_gpu,
            ),
        )
        sides[f"evalkit, {dtype}"] = lambda sliding=sliding: sliding.score(tokens[:stop], first, stop)
    for name in ("float32", "bfloat16"):
        stream = StreamingForecaster(
            fresh(name),
            StreamingConfig(
                seq_len=options.seq_len,
                block=min(StreamingConfig.block, options.seq_len // 4),
                device=options.device,
                dtype=name,
            ),
        )
        stream.score(tokens[:first], 1, first)
        stream.observe(tokens[:first], 1, first)
        sides[f"evalkit streaming, {name}"] = lambda stream=stream: stream.score(
            tokens[: first + streamed], first, first + streamed
        )

    seconds: dict[str, list[float]] = {name: [] for name in sides}
    scores: dict[str, np.ndarray] = {}
    peaks: dict[str, float] = {}
    for repeat in range(options.repeats + 1):
        for name, work in sides.items():  # side by side, so that a noisy neighbour disturbs all alike
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            took, scores[name] = timed(work, options.device)
            if repeat:  # the first round warms up
                seconds[name].append(took)
                peaks[name] = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else 0.0
    base = statistics.median(seconds["plain loop, float32"])
    base /= options.windows * STRIDE  # seconds a scored token
    print(f"{options.recipe}, window {options.seq_len}, stride {STRIDE}, {options.windows} windows, {options.device}, ")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {options.repeats}")
    rate = matmul_rate(options.device)
    print(f"a bfloat16 matrix product reaches {rate / 1e12:.2f} TFLOP/s\n")
    print("| what | seconds | scored tokens/s | times plain float32 | max difference, nats |", end="")
    print(" context tokens/s | MFU | peak MB |" if on_gpu else "")
    print("|---|---:|---:|---:|---:|" + ("---:|---:|---:|" if on_gpu else ""))
    for name, values in seconds.items():
        median = statistics.median(values)
        count = len(scores[name])
        off = "" if "streaming" in name else f"{np.abs(scores[name] - scores['plain loop, float32']).max():.1e}"
        row = f"| {name} | {median:.2f} | {count / median:,.0f} | {base * count / median:.2f} | {off} |"
        if on_gpu and "streaming" not in name:
            work_done = side_flops(config, options.seq_len, options.seq_len if "plain" in name else STRIDE)
            utilisation = options.windows * work_done / median / rate
            row += f" {options.windows * options.seq_len / median:,.0f} | {utilisation:.1%} | {peaks[name]:,.0f} |"
        elif on_gpu:
            row += f" | | {peaks[name]:,.0f} |"
        print(row)


if __name__ == "__main__":
    main()
