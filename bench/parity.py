"""Scores beside those of the published systems' own code, position by position.

python bench/parity.py ../shared/parity --tokenizers ../shared/data/tokenizers
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import BENCH, parser_of, print_header, print_row

from evalkit.tokens.shards import write_shard
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.score import score

sys.path.append(str(BENCH.parent))
from tests.evalkit.test_parity import CASES

SHORT = {"chunk_tokens": "2048", "epochs": "2", "batch_sequences": "2"}
LATER_TTT = (("1493", "ttt"), ("1477", "ttt"), ("1529", "ttt_hash"), ("1529", "ttt_no_hash"))
TTT = ("plain", "mixer_only", "ttt_only", "both", "ttt_only_no_averaging", "both_no_averaging")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizers", type=Path, required=True, help="folder with fineweb_{1024,4096,8192}_bpe.model")
    parser.add_argument("--systems", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--ttt", action="store_true", help="also test-time training, and PR849's mixer, whole streams")
    parser.add_argument(
        "--limit-tokens", type=int, default=0, help="the first positions of the artifacts' streams alone"
    )
    options = parser.parse_args()
    print_header("system", "positions", "max difference, nats", "rms", "bpb", "reference", "relative")
    for system in options.systems:
        extra = {"settings": {"model": CASES[system][1]}, "limit_tokens": options.limit_tokens}
        compare(system, system, options.folder / system / "small", options.tokenizers, extra)
    for variant in TTT if options.ttt and "849" in options.systems else ():
        folder = options.folder / "849/small/ttt" / variant
        ttt = {"preset": "published"} | SHORT
        ttt |= {"epochs": "0"} if variant in ("plain", "mixer_only") else {}
        ttt |= {"polyak_decay": "0"} if variant.endswith("no_averaging") else {}
        extra = {
            "ttt": True,
            "mixer": "published" if variant.startswith(("mixer", "both")) else "none",
            "batch_windows": 2,
            "settings": {"ttt": ttt},
        }
        compare(f"849 {variant}", "849", folder, options.tokenizers, extra)
    for system, variant in LATER_TTT if options.ttt else ():
        if system in options.systems:
            folder = options.folder / system / "small/ttt" / variant
            ttt = {"preset": f"pr{system}"} | SHORT | ({"hash_buckets": "0"} if variant == "ttt_no_hash" else {})
            extra = {"ttt": True, "settings": {"model": CASES[system][1], "ttt": ttt}}
            compare(f"{system} {variant}", system, folder, options.tokenizers, extra)


def compare(label: str, system: str, folder: Path, tokenizers: Path, extra: dict) -> None:
    artifact = next((folder if "ttt" not in folder.parts else folder.parents[1]).glob("*.ptz"))
    tokenizer = str(tokenizers / f"fineweb_{CASES[system][0]}_bpe.model")
    reference = np.load(folder / "nll.npz")
    expected = json.loads((folder / "result.json").read_text())["exactly_once"]["bpb"]
    with tempfile.TemporaryDirectory() as temporary:
        shard = Path(temporary) / "val.bin"
        write_shard(shard, reference["tokens"])
        report = score(
            ScoreOptions(
                artifact=str(artifact),
                recipe=f"pr{system}",
                tokens=str(shard),
                tokenizer=tokenizer,
                seq_len=256,
                dtype="float32",
                **extra,
            )
        )
    count = report.tokens_scored
    if count < len(reference["nll"]):
        expected = reference["nll"][:count].sum() / np.log(2) / reference["bytes"][:count].sum()
    difference = np.abs(report.nll - reference["nll"][:count])
    print_row(
        label, f"{len(difference):,}", f"{difference.max():.1e}", f"{np.sqrt((difference**2).mean()):.1e}",
        f"{report.bpb:.6f}", f"{expected:.6f}", f"{report.bpb / expected - 1:+.1e}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
