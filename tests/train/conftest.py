"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from train_helpers import SHARED, markov_tokens, write_shard


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "x_train_000000.bin", markov_tokens(6000, 1))
    write_shard(folder / "x_train_000001.bin", markov_tokens(3001, 2))
    write_shard(folder / "x_val_000000.bin", markov_tokens(1000, 3))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_pictures() -> Iterator[None]:
    """A picture of the loss takes longer than the few steps that most runs here have: one test has it drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evalkit.train.loop.draw_losses", lambda log, picture: False)
        yield


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside the checkout")
    return SHARED
