"""Sliding scoring beside a straightforward window loop, in one run.

The baseline does what the published evaluators do: every window through all layers and the head at all positions,
cross-entropy over all of them in float32, and then the last ``stride`` losses of each window are kept. Both sides use
the same model, windows and threads. On a GPU: bench/gpu.py.

    python bench/scoring.py --recipe pr849 --windows 32 --batch 32
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from common import parser_of, print_header, print_row

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


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--recipe", default="pr849")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8, help="windows at a time in the plain loop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
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
        return model.to_compute_dtype(getattr(torch, dtype))

    sides: dict[str, Callable[[], np.ndarray]] = {}
    for dtype in ("float32", "bfloat16"):
        sides[f"plain loop, {dtype}"] = partial(
            plain_loop, fresh(dtype), tokens, options.windows, options.seq_len, options.batch, "cpu"
        )
        sliding = SlidingForecaster(fresh(dtype), SlidingConfig(seq_len=options.seq_len, stride=STRIDE, dtype=dtype))
        sides[f"evalkit, {dtype}"] = lambda sliding=sliding: sliding.score(tokens[:stop], first, stop)
    block = min(StreamingConfig.block, options.seq_len // 4)
    for name in ("float32", "bfloat16"):
        stream = StreamingForecaster(fresh(name), StreamingConfig(seq_len=options.seq_len, block=block, dtype=name))
        stream.score(tokens[:first], 1, first)
        stream.observe(tokens[:first], 1, first)
        sides[f"evalkit streaming, {name}"] = lambda stream=stream: stream.score(
            tokens[: first + streamed], first, first + streamed
        )

    seconds: dict[str, list[float]] = {name: [] for name in sides}
    scores: dict[str, np.ndarray] = {}
    for repeat in range(options.repeats + 1):
        for name, work in sides.items():  # side by side, so that a noisy neighbour disturbs all alike
            began = time.perf_counter()
            scores[name] = work()
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds["plain loop, float32"])
    base /= options.windows * STRIDE  # seconds a scored token
    print(f"{options.recipe}, window {options.seq_len}, stride {STRIDE}, {options.windows} windows, ")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {options.repeats}\n")
    print_header("what", "seconds", "scored tokens/s", "times plain float32", "max difference, nats")
    for name, values in seconds.items():
        median = statistics.median(values)
        count = len(scores[name])
        off = "" if "streaming" in name else f"{np.abs(scores[name] - scores['plain loop, float32']).max():.1e}"
        print_row(name, f"{median:.2f}", f"{count / median:,.0f}", f"{base * count / median:.2f}", off)


if __name__ == "__main__":
    main()
