"""The demo: a real run on text that every Python has, with nothing to download."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import numpy as np

from evalkit.data.documents import WordHasher
from evalkit.plumbing.constants import DEMO_STEPS
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_atomically
from evalkit.plumbing.log import LOG
from evalkit.tokens.kinds import open_tokenizer
from evalkit.tokens.shards import write_shard
from evalkit.verbs.check import CheckOptions
from evalkit.verbs.run import PipelineOptions, RunReport, run_pipeline

VOCAB_SIZE = 1024
LIMIT_TOKENS = 8_192
CHECK = CheckOptions(budget_seconds=math.inf, max_tokens=1025, offsets=8, decode_tokens=128)
"""What an audit of a row does; no clock has a say, so that the verdicts are the same everywhere."""

_VALIDATION_SHARE = 8  # one document in eight
_MODEL = {
    "model.num_layers": "2",
    "model.model_dim": "128",
    "model.num_heads": "4",
    "model.num_kv_heads": "2",
    "model.mlp_hidden": "320",
    "train.seq_len": "256",
    "train.batch_tokens": "1024",
    "train.val_tokens": "8192",
    "train.precision": "float32",  # what every machine has: bfloat16 is slow where hardware does not multiply it
    "train.threads": "1",  # as fast as two at this size, and unmoved by what else the machine is doing
}

_TTT = {"preset": "full", "chunk_tokens": "128", "learning_rate": "5e-4", "polyak_decay": "0.9"}
"""A model that trained for seconds has much to learn from 8,192 tokens: small chunks, large steps."""


def demo_documents() -> list[str]:
    """Return the language reference inside Python's own ``pydoc_data``, one document a topic, and long docstrings."""
    from pydoc_data.topics import topics

    documents = [topics[name] for name in sorted(topics)]
    for module in ("argparse", "decimal", "logging", "unittest", "typing", "statistics", "pickletools", "turtle"):
        documents += _docstrings(module)
    return [document for document in documents if len(document) > 200]


def _docstrings(module: str) -> list[str]:
    import importlib.util

    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return []
    source = Path(spec.origin).read_text(encoding="utf-8")
    return [text.strip() for text in re.findall(r'"""(.*?)"""', source, flags=re.DOTALL) if len(text) > 400]


def split(documents: list[str]) -> tuple[list[str], list[str]]:
    """Return training and validation documents; what shares 13 words in a row with validation trains nothing."""
    words = WordHasher(13)
    validation = documents[::_VALIDATION_SHARE]
    held_out = np.concatenate([words.ngrams(text) for text in validation])
    rest = [text for i, text in enumerate(documents) if i % _VALIDATION_SHARE]
    return [text for text in rest if not np.isin(words.ngrams(text), held_out).any()], validation


def prepare_data(out: Path) -> tuple[Path, Path]:
    """Train a tokenizer on the training documents and write shards; returns the shard folder and the tokenizer."""
    import sentencepiece

    training, validation = split(demo_documents())
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(line for text in training for line in text.splitlines() if line.strip()),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    path = out / "tokenizer.model"
    write_atomically(path, model.getvalue())
    tokenizer = open_tokenizer(path)
    for name, texts in (("train", training), ("val", validation)):
        tokens = np.concatenate([tokenizer.encode_document(text) for text in texts])
        write_shard(data / f"demo_{name}_000000.bin", tokens)
    return data, path


def run_demo(
    out: Path, steps: int = DEMO_STEPS, *, check: CheckOptions = CHECK, limit_tokens: int = LIMIT_TOKENS
) -> RunReport:
    """Train a tokenizer and a tiny model, export it, score it four ways, check and decode it; return the report.

    Nothing in it depends on a clock: steps, scored tokens and audited positions are counts.

    Raises:
        InputError: ``out`` holds another run.
    """
    if (out / "run").exists():
        raise InputError(f"{out} already holds a demo; name another folder with --out, or remove it")
    data, tokenizer = prepare_data(out)
    LOG.info("made a tokenizer of %d pieces and shards from Python's own documentation in %s", VOCAB_SIZE, out)
    return run_pipeline(
        PipelineOptions(
            recipe="tiny",
            data=data,
            tokenizer=tokenizer,
            out=out,
            settings=_MODEL
            | {"data.train_pattern": "*train*.bin", "data.val_pattern": "*val*.bin"}
            | {f"ttt.{key}": value for key, value in _TTT.items()},
            steps=steps,
            calibration_tokens=8_192,
            limit_tokens=limit_tokens,
            variants=(("none", False), ("hedge", False), ("none", True), ("hedge", True)),
            check=check,
            dtype="float32",
            threads=1,
        ),
    )
