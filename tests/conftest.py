"""Fixtures that several packages' tests share. Everything is made here; nothing is downloaded."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest

# Two workers on two cores: a thread each. Children that the tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Scores are compared bit for bit, which a GPU's are not: only the tests of tests/gpu, run by themselves, see one.
if not any("gpu" in argument for argument in sys.argv):
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference artifacts and real text, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("no folder ../shared with reference artifacts beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with 384 pieces and byte fallback, trained on Python's own language reference."""
    from pydoc_data.topics import topics

    import sentencepiece

    model = io.BytesIO()
    text = " ".join(" ".join(topics.values()).split())[:200_000]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(text[i : i + 1000] for i in range(0, len(text), 1000)),
        model_writer=model,
        vocab_size=384,
        character_coverage=0.999,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
        num_threads=1,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def text_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 12 kB of English that every Python has."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(topics[name] for name in sorted(topics))[:12_000], encoding="utf-8")
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20240520)
