"""A short run of bench/fuzz.py: readers answer every mutation with a value or with one sentence."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.artifact.layouts import read_layout
from evalkit.artifact.torchfile import RawTensor
from evalkit.model.config import coerce_field
from evalkit.plumbing.errors import ArtifactError, InputError
from evalkit.report.load import SavedReport, read_token_scores
from tests.evalkit.reports import invented_report

BENCH = Path(__file__).resolve().parents[2] / "bench" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz() -> Any:
    spec = importlib.util.spec_from_file_location("evalkit_bench_fuzz", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_reader_on_a_hundred_mutations(fuzz: Any, tmp_path: Path) -> None:
    fuzz.make_tokenizer(tmp_path)
    targets = fuzz.build_targets(tmp_path)
    assert len(targets) >= 9
    messages: list[str] = []
    for target in targets:
        target.read(target.valid)
        refused = 0
        for i in range(100):
            data = target.make(random.Random(f"test-{target.name}-{i}"))
            try:
                target.read(data)
            except InputError as error:
                refused += 1
                messages.append(str(error))
        # Else the mutations do not reach the reader; of a submission folder even a broken file has a verdict.
        assert refused > 20 or target.name == "submission folder", target.name
    assert not [message for message in messages if "\n" in message]


def test_a_kind_that_is_a_tensor_is_refused() -> None:
    tensor = RawTensor(np.zeros((2, 2), dtype=np.int8), "int8")
    with pytest.raises(ArtifactError, match="unknown kind"):
        read_layout({"w": {"a.q": tensor}, "m": {"a": {"type": tensor}}})


def test_a_per_token_file_that_inflates_too_far_is_refused(tmp_path: Path) -> None:
    zeros = np.zeros(2_000_000)
    np.savez_compressed(tmp_path / "bomb.npz", position=zeros, nll=zeros, bytes=zeros)
    report = SavedReport(path=tmp_path / "r.json", report=invented_report(tokens_scored=100))
    with pytest.raises(InputError, match="too much for 100 scored tokens"):
        read_token_scores(tmp_path / "bomb.npz", report)


def test_an_infinite_layer_number_is_refused() -> None:
    with pytest.raises(InputError, match="whole numbers"):
        coerce_field("value_embed_layers", [float("inf")])
