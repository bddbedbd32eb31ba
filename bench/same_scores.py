"""Prove that two revisions give the same scores, to the last digit.

    python bench/same_scores.py f10fb48                        # that revision against the working tree
    python bench/same_scores.py f10fb48 HEAD --limit-tokens 4096
    python bench/same_scores.py old.json . --save new.json     # results that an earlier --save kept

Each revision is checked out into a temporary folder and run with this interpreter, one process a row: the parity
artifacts, the online mixer alone, test-time training, and a tiny model trained and exported. What is compared is read
from the JSON reports: bits per byte, the hash of the ledger (the nats of every position), sizes, hashes of files.
``--speed`` also times the online mixer of both, in turns. The exit code is 1 when anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = {  # parity artifact: its settings
    "333": ("--recipe", "pr333", "--set", "model.xsa_last_n=2"),
    "344": ("--recipe", "pr344"),
    "592": ("--recipe", "pr592", "--set", "model.xsa_last_n=2"),
    "634": ("--recipe", "pr634"),
    "849": ("--recipe", "pr849"),
}
NO_MODEL = ("--no-model", "--mixer", "hedge")
PUBLISHED_TTT = ("--ttt", "--set", "ttt.preset=published", "--set", "ttt.chunk_tokens=2048")
COMPARED = {"bpb": ("bpb",), "ledger": ("ledger_sha256", "ledger"), "tokens": ("tokens_scored",)}
"""What is compared, and the names it has had in the JSON report."""

SPEED = """
import sys, time
import numpy as np
try:
    from evalkit.mixers import Mixer, best_config, default_config
except ImportError:
    from mixers import Mixer, best_config, default_config
path, limit, preset = sys.argv[1:]
tokens = np.fromfile(path, dtype="<u2", offset=1024)[: int(limit) or None]
config = {"fast": default_config, "best": best_config}[preset](1024, network=False)
Mixer(config).score_stream(tokens[:2000])
seconds = []
for _ in range(3):
    start = time.process_time()
    Mixer(config).score_stream(tokens)
    seconds.append(time.process_time() - start)
print(len(tokens) / min(seconds))
"""


class Revision:
    """The code of one revision in a folder, and the folder for what it writes."""

    def __init__(self, code: Path, work: Path) -> None:
        self.code, self.work = code, work
        self.work.mkdir()
        found = self.python("-c", "import evalkit; print(evalkit.__file__)").strip()
        if not Path(found).resolve().is_relative_to(code.resolve()):
            raise SystemExit(f"the interpreter imports {found} in place of the code in {code}")

    def python(self, *arguments: str) -> str:
        """Run this interpreter on the revision's code and return what it prints."""
        environment = os.environ | {"PYTHONPATH": str(self.code), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} in {self.code}: exit code {done.returncode}\n{done.stderr[-3000:]}")
        return done.stdout

    def evalkit(self, *arguments: object) -> None:
        """Run one command of the revision's ``evalkit``."""
        self.python("-m", "evalkit", *map(str, arguments), "--quiet")

    def score(self, *arguments: object) -> dict[str, str]:
        """Return what is compared of one ``evalkit score``."""
        report = self.work / "report.json"
        report.unlink(missing_ok=True)
        self.evalkit("score", *arguments, "--threads", 1, "--json", report)
        content = json.loads(report.read_text())
        return {name: _lookup(content, names) for name, names in COMPARED.items()}


def _lookup(content: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the value of the first of ``names`` that the report has, at the top or in one of its parts, in full."""
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        for name in names:
            if name in part:
                return repr(part[name])
    raise SystemExit(f"the report has none of {', '.join(names)}; it has {', '.join(content)}")


def rows(revision: Revision, shared: Path, limit: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (what was run, what is compared) for one revision.

    Args:
        revision: the code.
        shared: folder with ``parity`` and ``data``.
        limit: most tokens of each stream; 0 takes all.
    """
    tokenizer = shared / "data/tokenizers/fineweb_1024_bpe.model"
    common = ("--tokenizer", tokenizer, "--limit-tokens", limit)
    prefix = ("--tokens", shared / "data/fineweb_val_prefix/sp1024/fineweb_val_000000.bin", *common)
    yield "mixer alone, default preset", revision.score(*NO_MODEL, "--set", "mixer.preset=default", *prefix)
    yield "mixer alone, best preset", revision.score(*NO_MODEL, "--set", "mixer.preset=best", *prefix)
    float32 = ("--seq-len", 256, "--dtype", "float32")
    for system, settings in SYSTEMS.items():
        folder = shared / "parity" / system / "small"
        artifact = next(folder.glob("*.ptz"))
        tokens = ("--tokens", _shard(revision.work / f"{system}.bin", folder / "nll.npz"), *common)
        yield f"parity {system}", revision.score(artifact, *settings, *tokens, *float32)
    short = (artifact, *settings, *tokens[:-1], min(limit or 20480, 20480), *float32)
    yield "849, hedge", revision.score(*short, "--mixer", "hedge")
    yield "849, streaming", revision.score(*short, "--context", "streaming")
    yield "849, test-time training", revision.score(*short, "--ttt")
    yield "849, published mixer and training", revision.score(*short, "--mixer", "published", *PUBLISHED_TTT)

    data, run = shared / "data/corpus/sp1024", revision.work / "run"
    size = ("--scale", "64x2", "--steps", 20, "--set", "train.batch_tokens=2048", "--set", "train.threads=1")
    size += ("--set", "train.seq_len=256", "--set", "train.val_tokens=8192")
    for number_type in ("train.precision", "optimizer.ns_precision"):  # of which `auto` depends on the machine
        size += ("--set", f"{number_type}=bfloat16")
    revision.evalkit("train", "--recipe", "pr634", "--data", data, "--tokenizer", tokenizer, "--out", run, *size)
    summary = json.loads((run / "summary.json").read_text())
    yield "train pr634 at 64x2", {name: repr(loss["val_bpb"]) for name, loss in summary["validation"].items()}
    for source in ((), ("--data", data)):
        label = "training text" if source else "own samples"
        export = ("export", run, *source, "--calibration-tokens", 4096)
        # The published layout holds nothing but tensors: its bytes must not move. Ours names the version that wrote it.
        revision.evalkit(*export, "-o", run / "published", "--container", "torch-zlib")
        yield f"export on {label}, torch-zlib", {"sha256": hashlib.sha256((run / "published").read_bytes()).hexdigest()}
        revision.evalkit(*export, "-o", run / "own.evk")
        yield f"export on {label}, scored", revision.score(run / "own.evk", *prefix[:-1], min(limit or 4096, 4096))


def _shard(path: Path, reference: Path) -> Path:
    tokens = np.load(reference)["tokens"]
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())
    return path


@contextlib.contextmanager
def checkout(name: str, work: Path) -> Iterator[Path]:
    """Give the folder with the code of a revision; ``.`` is the working tree as it is."""
    if name == ".":
        yield ROOT
        return
    path = work / f"code-{name.replace('/', '-')}"
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(path), name], cwd=ROOT, check=True)
    try:
        yield path
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(path)], cwd=ROOT, check=True)


def results(name: str, work: Path, shared: Path, limit: int) -> dict[str, str]:
    """Return {row, figure: value} of a revision, or of the file in which they were saved."""
    if name.endswith(".json"):
        saved: dict[str, str] = json.loads(Path(name).read_text())
        return saved
    found = {}
    with checkout(name, work) as code, tempfile.TemporaryDirectory(dir=work) as folder:
        for label, figures in rows(Revision(code, Path(folder) / "work"), shared, limit):
            print(f"{name}: {label}: {', '.join(figures.values())}", file=sys.stderr, flush=True)
            found |= {f"{label}: {figure}": value for figure, value in figures.items()}
    return found


def speeds(names: Sequence[str], work: Path, shared: Path, limit: int) -> None:
    """Print tokens per second of the online mixer alone, the best of three turns of each revision."""
    shard = str(shared / "data/fineweb_val_prefix/sp1024/fineweb_val_000000.bin")
    with contextlib.ExitStack() as stack:
        codes = [
            Revision(stack.enter_context(checkout(name, work)), work / f"speed-{i}") for i, name in enumerate(names)
        ]
        print("\n| mixer alone, tokens/s | old | new | new / old |\n|---|---:|---:|---:|")
        for preset in ("fast", "best"):
            turns = [[float(code.python("-c", SPEED, shard, str(limit), preset)) for code in codes] for _ in range(3)]
            old, new = np.max(turns, axis=0)
            print(f"| {preset} | {old:,.0f} | {new:,.0f} | {new / old:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="git revision, or a .json that --save wrote")
    parser.add_argument("new", nargs="?", default=".", help="likewise; . is the working tree")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with parity and data")
    parser.add_argument("--limit-tokens", type=int, default=0, help="of each stream, for a quick run; 0: all")
    parser.add_argument("--save", type=Path, help="keep the new results as JSON")
    parser.add_argument("--save-old", type=Path, help="keep the old results as JSON")
    parser.add_argument("--speed", action="store_true", help="also time the online mixer of both, in turns")
    options = parser.parse_args()
    shared = options.shared.resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        old, new = (results(name, work, shared, options.limit_tokens) for name in (options.old, options.new))
        for path, found in ((options.save_old, old), (options.save, new)):
            if path:
                path.write_text(json.dumps(found, indent=1))
        print("| what | old | new | same |\n|---|---|---|---|")
        moved = 0
        for label in dict.fromkeys([*old, *new]):
            before, after = old.get(label, "-"), new.get(label, "-")
            moved += before != after
            cells = (value if len(value) <= 24 else value.strip("'")[:16] for value in (before, after))
            print(f"| {label} | {' | '.join(cells)} | {'yes' if before == after else 'NO'} |")
        print(f"\n{moved} of {len(old)} figures moved" if moved else f"\nall {len(old)} figures are the same")
        if options.speed:
            speeds((options.old, options.new), work, shared, options.limit_tokens)
    sys.exit(1 if moved else 0)


if __name__ == "__main__":
    main()
