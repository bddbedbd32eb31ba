"""Every position of the reference artifacts scores what the published systems' own code scored."""

import json
from pathlib import Path

import numpy as np
import pytest

from evalkit.tokens.shards import write_shard
from evalkit.verbs.score import score
from evalkit.verbs.session import ScoreOptions

CASES = {
    "333": ("final_model.quant.ptz", {"xsa_last_n": "2"}),
    "344": ("final_model.int8.ptz", {}),
    "592": ("final_model.int6.ptz", {"xsa_last_n": "2"}),
    "634": ("final_model.int6.ptz", {}),
    "849": ("final_model.int6.ptz", {}),
}


@pytest.mark.parametrize("system", CASES)
def test_scores_match_the_reference_at_every_position(shared: Path, tmp_path: Path, system: str) -> None:
    folder = shared / "parity" / system / "small"
    name, settings = CASES[system]
    reference = np.load(folder / "nll.npz")
    expected = json.loads((folder / "result.json").read_text())["exactly_once"]
    write_shard(tmp_path / "val.bin", reference["tokens"])
    report = score(
        ScoreOptions(
            artifact=str(folder / name),
            tokens=str(tmp_path / "val.bin"),
            tokenizer=str(shared / "data/tokenizers/fineweb_1024_bpe.model"),
            settings={"model": settings},
            seq_len=256,
            dtype="float32",
        )
    )
    assert report.recipe == f"pr{system}"
    assert np.abs(report.nll - reference["nll"]).max() < 1e-4
    np.testing.assert_array_equal(report.num_bytes, reference["bytes"])
    assert report.bpb == pytest.approx(expected["bpb"], rel=1e-6)
    assert report.tokens_scored == expected["tokens"]
    assert report.bytes_scored == expected["bytes"]


@pytest.mark.parametrize("system", CASES)
def test_dequantised_tensors_match_the_reference(shared: Path, system: str) -> None:
    from evalkit.artifact.layouts import held_values
    from evalkit.artifact.load import load_artifact

    folder = shared / "parity" / system / "small"
    tensors = load_artifact(folder / CASES[system][0]).tensors
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
