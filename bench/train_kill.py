"""Kill a training run at random steps, resume it, and compare the final weights with an unbroken run's.

python bench/train_kill.py --data DIR --out DIR [--kills 10] [--steps 60] [--recipe best]
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import parser_of

from evalkit.train.files import load_tensors
from evalkit.train.metrics import read_metrics

CHILD = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from evalkit.train.run import run_training
keys = {"train.batch_tokens": "512", "train.spans": "2", "train.seq_len": "64", "train.checkpoint_every": "3",
        "train.val_tokens": "2000", "train.log_every": "1", "train.device": "cpu",
        "train.precision": "float32", "model.vocab_size": "1024"}
run_training(sys.argv[4], Path(sys.argv[1]), None, Path(sys.argv[2]), keys,
             scale="64x3", steps=int(sys.argv[3]), resume=True)
"""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with 1024-piece shards")
    parser.add_argument("--out", type=Path, required=True, help="where the run folders go")
    parser.add_argument("--kills", type=int, default=10, help="how often to kill")
    parser.add_argument("--steps", type=int, default=60, help="length of the run")
    parser.add_argument("--recipe", default="tiny", help="what to train")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    a = parser.parse_args()
    rng = random.Random(a.seed)

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", CHILD, str(a.data), str(out), str(a.steps), a.recipe])

    whole, broken = a.out / "whole", a.out / "broken"
    assert start(whole).wait() == 0
    kills: list[int] = []
    moments = sorted(rng.sample(range(4, a.steps - 1), a.kills))
    for moment in moments:
        child = start(broken)
        # A moment anywhere inside a step or a checkpoint.
        while max([line["step"] for line in read_metrics(broken / "metrics.jsonl")], default=0) < moment:
            assert child.poll() is None, "the run ended before it could be killed"
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.15))
        child.kill()
        child.wait()
        kills.append(max(line["step"] for line in read_metrics(broken / "metrics.jsonl")))
    assert start(broken).wait() == 0
    same = True
    for file in sorted(path.name for path in whole.glob("*.pt")):
        if file == "checkpoint.pt":
            continue
        first, second = load_tensors(whole / file), load_tensors(broken / file)
        same &= first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
    print(f"killed after steps {kills}; final weights identical: {same}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
