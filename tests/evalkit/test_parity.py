"""The reference artifacts score what the published systems' own code scored, and hold the tensors that it held.

Here the first and the last windows of every stream, the cut one among them; bench/parity.py compares all positions.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from evalkit.report.score_report import ScoreReport
from evalkit.tokens.shards import write_shard
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.score import score

LOOP = "0,1,2,1,2,1,2,3,4"
CASES = {
    "333": (1024, {"xsa_last_n": "2"}),
    "344": (1024, {}),
    "592": (1024, {"xsa_last_n": "2"}),
    "634": (1024, {}),
    "849": (1024, {}),
    "1218": (4096, {"value_embed_layers": "2,4"}),
    "1334": (4096, {"value_embed_layers": "2,4", "layer_order": "0,1,2,1,2,3,4", "parallel_start": "1"}),
    "1394": (8192, {"layer_order": LOOP[:-2]}),
    "1493": (8192, {"layer_order": LOOP, "parallel_start": "3"}),
    "1477": (8192, {"layer_order": LOOP, "parallel_start": "3"}),
    "1529": (8192, {"layer_order": LOOP, "parallel_start": "3"}),
}
"""Vocabulary, and what neither artifact nor recipe tells of the small models."""

WINDOW, STRIDE = 256, 64
FIRST, LAST = 960, 576
"""Positions that are scored from the start of a stream, and about as many from its end."""


@pytest.mark.parametrize("system", CASES)
def test_first_and_last_windows_score_what_the_reference_scored(shared: Path, tmp_path: Path, system: str) -> None:
    folder = shared / "parity" / system / "small"
    vocabulary, settings = CASES[system]
    reference = np.load(folder / "nll.npz")
    tokens, nll, num_bytes = (reference[name] for name in ("tokens", "nll", "bytes"))

    def scored(part: np.ndarray, limit: int = 0) -> ScoreReport:
        write_shard(tmp_path / "val.bin", part)
        return score(
            ScoreOptions(
                artifact=str(next(folder.glob("*.ptz"))),
                recipe=f"pr{system}",
                tokens=str(tmp_path / "val.bin"),
                tokenizer=str(shared / f"data/tokenizers/fineweb_{vocabulary}_bpe.model"),
                settings={"model": settings},
                seq_len=WINDOW,
                stride=STRIDE,
                limit_tokens=limit,
                dtype="float32",
            )
        )

    report = scored(tokens, FIRST)
    assert report.recipe == f"pr{system}"
    assert np.abs(report.nll - nll[:FIRST]).max() < 1e-4
    np.testing.assert_array_equal(report.num_bytes, num_bytes[:FIRST])
    bpb = nll[:FIRST].sum(dtype=np.float64) / np.log(2) / num_bytes[:FIRST].sum()
    assert report.bpb == pytest.approx(bpb, rel=1e-6)
    # A window sees nothing before it. Of the first one here the reference took the last STRIDE positions alone.
    start = (len(nll) - LAST) // STRIDE * STRIDE
    same = WINDOW - STRIDE
    assert np.abs(scored(tokens[start:]).nll[same:] - nll[start + same :]).max() < 1e-4


@pytest.mark.parametrize("system", CASES)
def test_dequantised_tensors_match_the_reference(shared: Path, system: str) -> None:
    from evalkit.artifact.layouts import held_values
    from evalkit.artifact.load import load_artifact

    folder = shared / "parity" / system / "small"
    tensors = load_artifact(next(folder.glob("*.ptz"))).tensors
    reference = json.loads((folder / "tensors.json").read_text())
    reference = reference.get("tensors", reference)
    assert len(tensors) == len(reference)
    renamed = {"smeargate": "smear", "bigram_embed": "bigram", "trigram_embed": "trigram"}
    for published, expected in reference.items():
        head, _, tail = published.partition(".")
        tail = tail.replace("bigram_scale", "scale").replace("trigram_scale", "scale")
        values = held_values(tensors[f"{renamed[head]}.{tail}" if head in renamed else published]).astype(np.float64)
        assert values.sum() == pytest.approx(expected["sum"], rel=1e-12, abs=1e-9)
        assert np.abs(values).sum() == pytest.approx(expected["abs_sum"], rel=1e-12)
        assert (values**2).sum() == pytest.approx(expected["sq_sum"], rel=1e-12)
