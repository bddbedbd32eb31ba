"""How often are honest forecasters accused? Runs the gallery's honest ones over many seeds.

    python bench/legality_false_alarms.py --runs 200

Every run draws its own stream, span and audit seed. Anything but 0 accused is a defect.
"""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
from common import BENCH, parser_of

from evalkit.legality.audit import audit
from evalkit.legality.options import AuditOptions
from evalkit.legality.sources import BigramSource

GALLERY = BENCH.parent / "tests/evalkit/legality/gallery"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=20.0, help="budget of one audit: an upper limit")
    parser.add_argument("--positions", type=int, default=64, help="sums over the vocabulary in each mode")
    parser.add_argument("--only", default="h_*", help="file pattern in the gallery")
    arguments = parser.parse_args()
    files = sorted(GALLERY.glob(f"{arguments.only}.py"))
    verdicts: Counter[str] = Counter()
    began = time.monotonic()
    for seed in range(arguments.runs):
        tokens, _ = BigramSource.invented(32, seed).sample(arguments.tokens, 1, np.random.default_rng(seed))
        options = AuditOptions(
            budget_seconds=arguments.seconds,
            positions=arguments.positions,
            seed=seed,
            span=(16, 64, 100)[seed % 3],
        )
        report = audit(f"{files[seed % len(files)]}:make", tokens, options)
        verdicts[report.verdict] += 1
        if report.findings:
            print(seed, files[seed % len(files)].stem, report.summary(), flush=True)
    print(f"{dict(verdicts)} in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
