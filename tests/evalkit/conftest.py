"""A tiny artifact of a published layout, made here, and quick fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evalkit.artifact.native import NativeMetadata
from evalkit.model.gpt import GPT
from evalkit.recipes import load_recipe
from evalkit.train.export.export import quantize_state_dict, write_artifact
from evalkit.train.export.torch_layouts import LAYOUTS
from evalkit.train.quantization.plan import PLANS

TINY = {
    "vocab_size": 384,
    "num_layers": 2,
    "model_dim": 32,
    "num_heads": 2,
    "num_kv_heads": 2,
    "mlp_hidden": 48,
    "bigram_buckets": 64,
    "bigram_dim": 8,
    "value_embed_dim": 8,
    "rope_dims": 8,
}


def random_state(recipe: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return weights of a tiny model of ``recipe`` that are far from their initial values."""
    torch.manual_seed(seed)
    model = GPT(load_recipe(recipe).model_config(**TINY))
    return {name: torch.randn_like(value) * 0.15 + (value.ndim < 2) for name, value in model.state_dict().items()}


def write_tiny(path: Path, seed: int, *, published: bool = False) -> Path:
    """Write an artifact of a tiny PR849-shaped model in evalkit's container, or in layout B, zstd."""
    tensors = quantize_state_dict(random_state("pr849", seed), PLANS["pr849"])
    if published:
        write_artifact(path, tensors, "torch-zstd", layout=LAYOUTS["pr849"])
        return path
    config = load_recipe("pr849").model_config(**TINY).to_dict()
    metadata = NativeMetadata(config=config, recipe={"name": "pr849", "seq_len": 2048})
    write_artifact(path, tensors, "evalkit", metadata=metadata)
    return path


@pytest.fixture(scope="session")
def forked_evalkit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command ``evalkit``, each call in a process of its own that need not import everything again."""
    program, path = Path(__file__).parent / "forked_cli.py", tmp_path_factory.mktemp("server") / "s"
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program), "serve", str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield [sys.executable, "-S", str(program), str(path)]
        process.kill()


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PR849-shaped model with two layers, which says so itself: about 10 kB."""
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny.evk", 0)


@pytest.fixture(scope="session")
def published_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in layout B, zstd, whose settings are nowhere in the file."""
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny.ptz", 0, published=True)


@pytest.fixture(scope="session")
def other_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights."""
    return write_tiny(tmp_path_factory.mktemp("artifact") / "other.evk", 1)


@pytest.fixture(scope="session")
def scored(tiny_artifact: Path, tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A report with its per-token file, and the shards it is about: a tiny artifact with mixer and TTT."""
    from pydoc_data.topics import topics

    import numpy as np

    import evalkit
    from evalkit.plumbing.files import write_json
    from evalkit.tokens.shards import write_shard
    from evalkit.tokens.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("scored")
    tokenizer = Tokenizer(tokenizer_path)
    texts = [topics[name][:400] + " na\u00efve \u2192 \U0001f600 </script>" for name in sorted(topics)[:6]]
    shard = folder / "tiny_val_000000.bin"
    write_shard(shard, np.concatenate([tokenizer.encode_document(text) for text in texts]))
    report = evalkit.score(
        evalkit.ScoreOptions(
            artifact=str(tiny_artifact),
            tokenizer=str(tokenizer_path),
            tokens=str(shard),
            seq_len=128,
            mixer="hedge",
            ttt=True,
            settings={"ttt": {"chunk_tokens": "256"}},
            threads=1,
            reliability=10_000,
        )
    )
    write_json(folder / "score.json", report.to_dict())
    report.save_nll(str(folder / "score.npz"))
    return folder / "score.json", shard
