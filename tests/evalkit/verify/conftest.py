"""A small submission folder, consistent until a test changes a part of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import Made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "records" / "track_10min_16mb" / "2026-04-01_Small")
