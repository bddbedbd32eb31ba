"""Evalkit's own network through ``--module`` beside the same artifact opened as one, in one run: scores and speed.

    python bench/any_model.py final_model.ptz --recipe pr849 --tokens 'val_*.bin' --tokenizer fineweb_1024_bpe.model

Both sides score the same tokens in turn, from opening the file to the report. Processor time counts, the least of
``--repeats`` runs, so that other load on the machine disturbs the ratio little. The scores must be equal bit for bit.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from common import print_header, print_row, scored_alike, scoring_parser

import evalkit

FACTORY = """\
from evalkit.artifact.load import load_artifact


def make(weights):
    artifact = load_artifact(weights)
    return artifact.build(artifact.resolve({recipe!r}).config)
"""


def main() -> None:
    parser = scoring_parser(__doc__, limit_tokens=8192)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--seq-len", type=int, help="window in tokens (default: the recipe's)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print_header("artifact", "tokens", "as an artifact, s", "through --module, s", "speed ratio", "largest difference")
    for artifact in options.artifacts:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "own.py"
            file.write_text(FACTORY.format(recipe=options.recipe), encoding="utf-8")
            alike = scored_alike(options)
            plain = evalkit.ScoreOptions(artifact=artifact, recipe=options.recipe, seq_len=options.seq_len, **alike)
            window = evalkit.open_session(plain).sliding.seq_len  # a module knows no recipe, so no window of one
            module = evalkit.ScoreOptions(module=f"{file}:make", weights=artifact, seq_len=window, **alike)
            seconds: dict[str, list[float]] = {"artifact": [], "module": []}
            reports = {}
            for _ in range(options.repeats):
                for name, given in (("artifact", plain), ("module", module)):
                    began = time.process_time()
                    reports[name] = evalkit.score(given)
                    seconds[name].append(time.process_time() - began)
        a, b = min(seconds["artifact"]), min(seconds["module"])
        difference = abs(reports["artifact"].nll - reports["module"].nll).max()
        tokens = f"{reports['module'].tokens_scored:,}"
        print_row(Path(artifact).name, tokens, f"{a:.2f}", f"{b:.2f}", f"{a / b:.3f}", f"{difference:.1e}")
        same = reports["artifact"].ledger_sha256 == reports["module"].ledger_sha256

        print(f"\nledgers {'equal' if same else 'DIFFER'}\n")


if __name__ == "__main__":
    main()
