"""Fixtures of the training tests."""

from __future__ import annotations

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


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside the checkout")
    return SHARED
