"""Training as one call, for the command line and for scripts.

On several processes::

    torchrun --nproc-per-node 4 -m evalkit train --recipe pr634 --data DIR --out DIR
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch

from evalkit.model.kernels import fastest_attention
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.log import LOG
from evalkit.plumbing.ranks import Ranks
from evalkit.recipes import load_recipe
from evalkit.train.automatic import settle
from evalkit.train.config import RunConfig
from evalkit.train.data import ByteCounter, TrainingTokens, find_shards, load_validation
from evalkit.train.folder import TrainingFolder
from evalkit.train.loop import Trainer, TrainResult
from evalkit.train.parameters import DTYPES
from evalkit.train.resolve import resolve
from evalkit.train.validation import Validator


def run_training(
    recipe: str | None,
    data: Path,
    tokenizer: Path | None,
    out: Path,
    overrides: Mapping[str, str] | None = None,
    *,
    scale: str | None = None,
    steps: int | None = None,
    max_seconds: float | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a recipe's model and leave everything in the run folder; see :mod:`evalkit.train.folder`.

    Args:
        recipe: name of a recipe, or a ``.toml`` file; None for that of the run that is resumed.
        data: folder with shards.
        tokenizer: of the shards, for bits per byte; None reports nats per token alone.
        out: run folder.
        overrides: ``section.key`` to value.
        scale: smaller size, ``0.25`` or ``128x4``.
        steps: budget in steps; without ``max_seconds``, no clock budget.
        max_seconds: budget in seconds of training.
        resume: go on from the folder's checkpoint if it has one.

    Raises:
        InputError: anything the user can put right. A checkpoint that was written stays usable.
    """
    if recipe is None and not resume:
        raise InputError("--recipe is missing; name what to train, or go on with the run in --out by --resume")
    base = load_recipe(recipe) if recipe is not None else TrainingFolder(path=out).recipe()
    config = resolve(base, overrides, scale=scale, steps=steps, max_seconds=max_seconds)
    for section in dataclasses.fields(config):
        LOG.debug("%s: %s", section.name, getattr(config, section.name))
    return train_model(config, data=data, tokenizer=tokenizer, out=out, resume=resume)


def train_model(
    config: RunConfig,
    *,
    data: Path,
    tokenizer: Path | None,
    out: Path,
    resume: bool = False,
) -> TrainResult:
    """Train a resolved recipe; see :func:`run_training`."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    ranks, vocab_size = Ranks.from_environment(), config.model.vocab_size
    train_shards, val_shards = find_shards(data, config.data)
    stream = TrainingTokens(train_shards, vocab_size=vocab_size)
    counter = ByteCounter(tokenizer, vocab_size) if tokenizer is not None else None
    tokens = load_validation(val_shards, vocab_size=vocab_size, limit=config.train.val_tokens)
    with ranks.joined(_device(config.train.device, ranks)) as ranks:
        folder = TrainingFolder(path=out)
        before, began_on = (folder.settings(), folder.device()) if resume else (None, None)
        config = settle(config, ranks, before, began_on)
        validator = None
        if tokens is not None:
            validator = Validator(
                tokens,
                seq_len=config.train.seq_len,
                batch_tokens=config.train.val_batch_tokens,
                byte_counter=counter,
                ranks=ranks,
            )
        trainer = Trainer(config, stream=stream, validator=validator, ranks=ranks, folder=folder)
        # The first rank alone looks at the folder, so that no other one meets what it has just written.
        found = ranks.is_first and folder.open(config, stream.identity(), device=ranks.device.type, resume=resume)
        resumed = ranks.largest(float(found))[0] > 0
        kernel = fastest_attention(
            config.model,
            seq_len=config.train.seq_len,
            device=ranks.device,
            dtype=DTYPES[config.train.precision],
            training=True,
        )
        if kernel is not None:
            LOG.info("%s", kernel)
        with nullcontext() if kernel is None else kernel.active():
            return trainer.run(resume=resumed)


def _device(name: str, ranks: Ranks) -> str:
    """Return ``cpu``, ``cuda`` or ``cuda:N`` for the setting ``train.device``.

    Raises:
        InputError: the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdecimal() or name == kind):
        raise InputError(f"train.device is {name!r}; expected auto, cpu, cuda or cuda:N")
    index = int(number) if number else ranks.local_rank
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise InputError(f"train.device is {name}, GPU {index}, but torch sees {torch.cuda.device_count()} GPUs")
    return name
