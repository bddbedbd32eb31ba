"""What encoder and decoder must agree on besides the artifact, as it is stored in the compressed file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from evalkit.codec.container import Header
from evalkit.network.factory import ModuleSource
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.log import LOG
from evalkit.plumbing.progress import format_seconds
from evalkit.prequential.forecaster import next_distribution_of, preferred_span
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.session import Session, open_model

_QUICK = 0.5
"""Seconds: a window that takes less is timed twice."""

_STORED = ("recipe", "seq_len", "stride", "mixer", "ttt", "context", "dtype", "batch_windows")


def open_for_coding(options: ScoreOptions) -> Session:
    """Open artifact and tokenizer; the text is not part of what both sides have.

    Raises:
        InputError: the options ask for a score that no decoder can follow.
    """
    session = open_model(options)
    if options.mixer == "published":
        raise InputError("--mixer published is no probability model, so there is nothing to code with; use hedge")
    if session.ttt is not None:
        if session.ttt.schedule == "cosine":
            raise InputError(
                "the cosine schedule needs the number of chunks, which a decoder does not have; use "
                "--set ttt.schedule=constant or inverse_sqrt"
            )
        if session.ttt.time_limit:
            raise InputError("ttt.time_limit makes scores depend on the machine's speed; a decoder cannot follow")
    return session


def span_of(session: Session) -> int:
    """Return the positions between two calls of ``observe``."""
    if session.streaming is not None:
        # Blocks that are not kept yet are computed again for every token.
        return session.streaming.block
    return preferred_span(session.make_forecaster())


def announce_rate(session: Session, count: Callable[[], int]) -> None:
    """Say how long coding will take where a model has no ``step``, so that every token costs a whole window.

    Args:
        session: opened for coding.
        count: tells how many tokens will be coded; asked only where the rate is said, since it may encode the text.
    """
    source = session.artifact
    if not isinstance(source, ModuleSource) or hasattr(source.model, "step"):
        return
    network = session.make_network()
    next_distribution = None if network is None else next_distribution_of(network)
    if next_distribution is None:
        return
    tokens = count()
    window = session.sliding.seq_len if session.sliding else 1
    prefix = np.zeros(min(window, max(tokens, 1)), dtype=np.int64)
    seconds = _QUICK
    for _ in range(2):  # the first call may load kernels; a slow one is not worth repeating
        began = time.monotonic()
        next_distribution(prefix)
        seconds = time.monotonic() - began
        if seconds >= _QUICK:
            break
    LOG.info(
        "the model offers no step(ids, state), so each token costs a window of %s: about %.3g tokens/s, %s for all %s",
        f"{window:,}",
        1 / max(seconds, 1e-9),
        format_seconds(tokens * seconds),
        f"{tokens:,}",
    )


def stored_options(session: Session) -> dict[str, Any]:
    """Return the options that the decoder needs, with what was resolved in place of what was left open."""
    stored: dict[str, Any] = {name: getattr(session.options, name) for name in _STORED}
    stored["settings"] = session.settings()  # a decoder has no script: it gets what the script told
    stored["tokenizer_sha256"] = session.tokenizer.sha256
    if session.sliding is not None:
        dtype = session.sliding.dtype
        # a module's own type is what "auto" finds, on the decoder's side too
        stored |= {"seq_len": session.sliding.seq_len, "dtype": "auto" if dtype == "own" else dtype}
    stored["device"] = session.options.device.split(":")[0]
    return stored


def restored_options(
    header: Header, artifact: str | None, tokenizer: str, *, module: str | None = None, weights: str | None = None
) -> ScoreOptions:
    """Return the encoder's options for the decoder's files.

    Raises:
        InputError: the header lacks an option, the tokenizer is another one, or the file was compressed on a GPU, whose
            arithmetic is not a CPU's, and there is none here.
    """
    import torch

    from evalkit.tokens.kinds import open_tokenizer

    stored = header.options
    device = stored.get("device", "cpu")  # files of earlier versions do not say it
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "the file was compressed on a GPU, whose arithmetic no CPU repeats to the last digit, and torch sees none "
            "here: decompress it on such a GPU, or compress again with --device cpu"
        )
    if open_tokenizer(tokenizer).sha256 != stored.get("tokenizer_sha256"):
        raise InputError(f"the file was compressed with another tokenizer than {tokenizer}")
    try:
        values = {name: stored[name] for name in _STORED}
        settings = {str(k): {str(a): str(b) for a, b in v.items()} for k, v in stored["settings"].items()}
    except (KeyError, AttributeError) as error:
        raise InputError(f"the compressed file's options are incomplete: {error}") from None
    return ScoreOptions(
        artifact=artifact,
        module=module,
        weights=weights,
        tokenizer=tokenizer,
        text="-",
        settings=settings,
        device=str(device),
        **values,
    )
