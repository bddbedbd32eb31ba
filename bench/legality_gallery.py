"""Verdict, axioms and seconds for every forecaster of the gallery, as a table.

python bench/legality_gallery.py --tokens 3000 --seconds 40
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from evalkit.legality.audit import audit
from evalkit.legality.options import AuditOptions
from evalkit.legality.sources import BigramSource

GALLERY = Path(__file__).resolve().parents[1] / "tests" / "evalkit" / "legality" / "gallery"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--only", default="[hvx]*", help="file pattern in the gallery")
    arguments = parser.parse_args()
    tokens, _ = BigramSource.invented(32, 1).sample(arguments.tokens, 1, np.random.default_rng(0))
    print("| forecaster | verdict | axioms (audits) | s |\n| --- | --- | --- | ---: |")
    for file in sorted(GALLERY.glob(f"{arguments.only}.py")):
        report = audit(f"{file}:make", tokens, AuditOptions(budget_seconds=arguments.seconds))
        by_axiom: dict[str, set[str]] = {}
        for finding in report.findings:
            by_axiom.setdefault(finding.axiom, set()).add(str(finding.evidence["audit"]))
        said = "; ".join(f"{axiom} ({', '.join(sorted(audits))})" for axiom, audits in by_axiom.items())
        print(f"| {file.stem} | {report.verdict} | {said} | {report.seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
