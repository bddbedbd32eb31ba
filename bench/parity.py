"""Scores beside those of the published systems' own code, position by position.

python bench/parity.py ../shared/parity --tokenizer ../shared/data/tokenizers/fineweb_1024_bpe.model
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from common import parser_of, print_header, print_row

from evalkit.tokens.shards import write_shard
from evalkit.verbs.score import score
from evalkit.verbs.session import ScoreOptions

SETTINGS = {"333": {"xsa_last_n": "2"}, "592": {"xsa_last_n": "2"}}
TTT = ("plain", "mixer_only", "ttt_only", "both", "ttt_only_no_averaging", "both_no_averaging")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--ttt", action="store_true", help="also PR849's test-time training and mixer, whole streams")
    options = parser.parse_args()
    print_header("system", "positions", "max difference, nats", "rms", "bpb", "reference", "relative")
    for system in ("333", "344", "592", "634", "849"):
        folder = options.folder / system / "small"
        artifact = next(folder.glob("*.ptz"))
        compare(system, folder, artifact, options.tokenizer, {"settings": {"model": SETTINGS.get(system, {})}})
    for variant in TTT if options.ttt else ():
        folder = options.folder / "849/small/ttt" / variant
        ttt = {"preset": "published", "chunk_tokens": "2048", "epochs": "2", "batch_sequences": "2"}
        ttt |= {"epochs": "0"} if variant in ("plain", "mixer_only") else {}
        ttt |= {"polyak_decay": "0"} if variant.endswith("no_averaging") else {}
        extra = {
            "ttt": True,
            "mixer": "published" if variant.startswith(("mixer", "both")) else "none",
            "batch_windows": 2,
            "settings": {"ttt": ttt},
        }
        compare(f"849 {variant}", folder, next(folder.parents[1].glob("*.ptz")), options.tokenizer, extra)


def compare(label: str, folder: Path, artifact: Path, tokenizer: str, extra: dict) -> None:
    reference = np.load(folder / "nll.npz")
    expected = json.loads((folder / "result.json").read_text())["exactly_once"]
    with tempfile.TemporaryDirectory() as temporary:
        shard = Path(temporary) / "val.bin"
        write_shard(shard, reference["tokens"])
        report = score(
            ScoreOptions(
                artifact=str(artifact), tokens=str(shard), tokenizer=tokenizer, seq_len=256, dtype="float32", **extra
            )
        )
    difference = np.abs(report.nll - reference["nll"])
    print_row(
        label, f"{len(difference):,}", f"{difference.max():.1e}", f"{np.sqrt((difference**2).mean()):.1e}",
        f"{report.bpb:.6f}", f"{expected['bpb']:.6f}", f"{report.bpb / expected['bpb'] - 1:+.1e}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
