"""Test-time training beside the frozen network: bits per byte, cost, and the cost's distance from the minimum.

The minimum is arithmetic: a training row costs three forward passes (one forward, two for the gradients) of its window,
at the rate in tokens fed a second that scoring reached in the same run.

    python bench/test_time_training.py ARTIFACT... --tokens 'val_*.bin' --tokenizer fineweb.model --limit-tokens 131072
"""

from __future__ import annotations

from dataclasses import replace

from common import print_header, print_row, scored_alike, scoring_parser

from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.score import score

VARIANTS: dict[str, dict[str, str]] = {
    "adapters, mixed with the frozen network (default)": {},
    "adapters alone, 2e-2": {"frozen_weight": "0", "learning_rate": "2e-2"},
    "adapters alone": {"frozen_weight": "0"},
    "adapters, 4e-2, 2 epochs": {"learning_rate": "4e-2", "epochs": "2"},
    "adapters, chunks of 512": {"chunk_tokens": "512"},
    "all weights, Polyak 0.98": {"preset": "full"},
    "all weights, no averaging": {"preset": "full", "polyak_decay": "0"},
    "scales only": {"preset": "full", "trainable": "scales", "learning_rate": "3e-3", "polyak_decay": "0.9"},
    "last two blocks and scales, SGD": {
        "preset": "full", "trainable": "last_blocks_and_scales", "optimizer": "sgd", "learning_rate": "0.02",
        "polyak_decay": "0",
    },
    "PR849's recipe": {"preset": "published"},
}  # fmt: skip


def main() -> None:
    parser = scoring_parser(__doc__, 65536)
    parser.add_argument("--default-only", action="store_true", help="only the frozen network and the first three")
    options = parser.parse_args()
    columns = ("artifact", "what trains", "bpb", "gain", "95%", "steps", "score s", "train s", "train / minimum")
    print_header(*columns, left=2)
    for artifact in options.artifacts:
        common = ScoreOptions(artifact=artifact, **scored_alike(options))
        frozen = score(common)
        name = artifact.rsplit("/", 1)[-1]
        print_row(name, "nothing", f"{frozen.bpb:.4f}", "", "", "", f"{frozen.seconds:.0f}", "", "")
        seq_len, stride = frozen.seq_len, frozen.stride
        for label, settings in list(VARIANTS.items())[: 3 if options.default_only else None]:
            report = score(replace(common, ttt=True, settings={"ttt": settings | {"compare": "true"}})).to_dict()
            ttt, config = report["ttt_report"], report["ttt_config"]
            gain = ttt["gain"]
            score_seconds = ttt["score_seconds"]
            # scored twice: the comparison needs the frozen network too
            fed_per_second = 2 * report["tokens_scored"] / stride * seq_len / ttt["score_seconds"]
            rows = ttt["steps"] * min(config["batch_sequences"], max(config["chunk_tokens"] // seq_len, 1))
            minimum = rows * seq_len * 3 / fed_per_second
            low, high = gain["interval_95"] or (0.0, 0.0)
            print_row(
                name, label, f"{report['bpb']:.4f}", f"{gain['bpb']:.4f}", f"{low:.4f} to {high:.4f}",
                f"{ttt['steps']:,}", f"{score_seconds:.0f}", f"{ttt['train_seconds']:.0f}",
                f"{ttt['train_seconds'] / minimum if minimum else 0:.2f}",
            )  # fmt: skip


if __name__ == "__main__":
    main()
