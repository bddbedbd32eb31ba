"""What the GPU tests share: the device, and a run that was trained and exported on it.

Without a CUDA device all of them are skipped. ``EVALKIT_TEST_DEVICE=cpu`` runs the same bodies on a CPU, through the
code that a GPU takes as far as a CPU can follow it: batches, tokens gathered on the device, compiled parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from gpu_inputs import DEVICE, SIZE, Inputs

from evalkit.model.regions import Compiled
from evalkit.network import network
from evalkit.prequential.sliding import SlidingForecaster
from evalkit.tokens.shards import write_shard
from evalkit.tokens.tokenizer import Tokenizer
from evalkit.train.export.pipeline import ExportConfig, export_run
from evalkit.train.folder import load_run
from evalkit.train.run import run_training


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def _needs_a_device() -> None:
    if DEVICE != "cpu" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device (EVALKIT_TEST_DEVICE=cpu runs the same bodies on a CPU)")


@pytest.fixture(scope="session", autouse=True)
def _a_cache_of_our_own(_needs_a_device: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _as_a_gpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, take the way of a GPU: batches, and parts that are traced as one graph each and then run as written."""
    if DEVICE == "cpu":
        monkeypatch.setattr(SlidingForecaster, "_on_cpu", False)
        monkeypatch.setattr(network, "Compiled", partial(Compiled, backend="eager"))


@pytest.fixture(scope="session")
def data(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tokenizer = Tokenizer(tokenizer_path)
    names = sorted(topics)
    for split, chosen in (("train", names[20:]), ("val", names[:20])):
        tokens = np.concatenate([tokenizer.encode_document(topics[name]) for name in chosen])
        write_shard(folder / f"x_{split}_000000.bin", tokens)
    return folder


@pytest.fixture(scope="session")
def inputs(data: Path, tokenizer_path: Path, text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Forty steps of the small recipe with every feature, exported with the data as calibration."""
    folder = tmp_path_factory.mktemp("run")
    result = run_training("tiny", data, tokenizer_path, folder / "run", SIZE, steps=40)
    assert result.status == "done"
    artifact = folder / "model.evk"
    export_run(
        load_run(folder / "run"),
        artifact,
        ExportConfig(calibration_tokens=4096, calibration_data=data, tokenizer=tokenizer_path),
    )
    return Inputs(run=folder / "run", artifact=artifact, data=data, tokenizer=tokenizer_path, text=text_path)
