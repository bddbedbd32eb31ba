"""What ``auto`` stands for in ``[train]`` and ``[optimizer]``, on the device that a run has.

The answers follow from the device and from counts, never from how busy the machine is, and the run folder keeps them: a
resumed run asks nothing again, but on another kind of device whether to compile, which is a matter of speed.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sysconfig
from pathlib import Path

from evalkit.model.config import ModelConfig
from evalkit.plumbing.hardware import matrix_speed
from evalkit.plumbing.log import LOG
from evalkit.plumbing.ranks import Ranks
from evalkit.train.config import RunConfig

WORTH_COMPILING = 2e14
"""Floating-point operations of a run from which compiling for a CPU pays. A graph of PR849 at full size takes a minute
and more, and a compiled step saves a sixth: two graphs are paid for by 14 minutes of training, 6e13 operations."""

_CORE_RATE = 1e11
"""Floating-point operations a second of a fast core, for runs that end by the clock."""


def settle(config: RunConfig, ranks: Ranks, before: RunConfig | None = None, began_on: str | None = None) -> RunConfig:
    """Return ``config`` with nothing left at ``auto``.

    Args:
        config: a resolved recipe.
        ranks: the processes that train, and their device; a collective call.
        before: the settled settings of the run that is resumed, which answer first.
        began_on: the kind of device that run began on; None if not known.
    """
    train, optimizer, here = config.train, config.optimizer, ranks.device.type
    moved = before is not None and began_on not in (None, here)
    if before is not None:
        precision, products = before.train.precision, before.optimizer.ns_precision
    else:
        precision = products = "bfloat16" if _prefers_bfloat16(ranks) else "float32"
    if before is not None and not moved:
        compiled = before.train.compile
    else:
        compiled = "on" if here == "cuda" or _pays_on_a_cpu(config) else "off"
    settled = dataclasses.replace(
        config,
        train=dataclasses.replace(
            train,
            precision=precision if train.precision == "auto" else train.precision,
            compile=compiled if train.compile == "auto" else train.compile,
        ),
        optimizer=dataclasses.replace(
            optimizer, ns_precision=products if optimizer.ns_precision == "auto" else optimizer.ns_precision
        ),
    )
    if moved and ranks.is_first:
        LOG.info(
            "the run began on %s and goes on on %s: train.compile is %s here; train.precision stays %s and "
            "optimizer.ns_precision %s, which decide the weights",
            began_on,
            here,
            settled.train.compile,
            settled.train.precision,
            settled.optimizer.ns_precision,
        )
    LOG.debug("trains in %s, compile %s", settled.train.precision, settled.train.compile)
    return settled


def training_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Return the floating-point operations of a token, forward and backward, with causal attention counted once."""
    matrices = 2 * model.model_dim**2 + 2 * model.model_dim * model.kv_dim + 2 * model.model_dim * model.mlp_hidden
    weights = len(model.passes) * matrices + model.model_dim * model.vocab_size
    return 3 * (2 * weights + len(model.passes) * 4 * model.model_dim * (seq_len + 1) / 2)


def _prefers_bfloat16(ranks: Ranks) -> bool:
    """Whether the device multiplies faster in bfloat16: every GPU, and the CPUs where all ranks have measured it so."""
    if ranks.device.type == "cuda":
        return True
    slow = not matrix_speed("cpu").prefers_bfloat16
    return ranks.largest(float(slow))[0] == 0


def _pays_on_a_cpu(config: RunConfig) -> bool:
    """Whether a run on CPUs is so long that it gains by compilation, and the machine has what compilation needs."""
    train = config.train
    work = train.steps * train.batch_tokens * training_flops_per_token(config.model, train.seq_len)
    if train.max_seconds:
        work = min(work, train.max_seconds * _CORE_RATE)
    return work >= WORTH_COMPILING and _has_compiler()


def _has_compiler() -> bool:
    """Whether there is a C++ compiler and Python's header, both of which torch's compiler for CPUs uses."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    return compiler is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()
