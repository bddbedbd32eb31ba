"""The first pass: every position scored once, in order, with a number that can be a code length."""

from __future__ import annotations

import numpy as np

from evalkit.legality.context import Context
from evalkit.legality.driver import run_stream
from evalkit.legality.hosts import Fault, Host
from evalkit.legality.noise import FLOAT32
from evalkit.plumbing.errors import InputError

AUDIT = "ledger"


def first_pass(context: Context, host: Host, seconds: float) -> bool:
    """Score the first span and ``seconds`` more of the stream; return False where no further audit makes sense.

    The context adopts the scores. Shape, dtype and untouched tokens are checked in every call of every audit; here
    the numbers are checked too: finite, and no probability above 1.
    """
    try:
        host.fresh(int(context.tokens[0]))
    except Fault as fault:
        if fault.kind == "crash":
            raise InputError(f"the factory made no forecaster: {' '.join(str(fault).split())}") from None
        context.failed(AUDIT, fault, real=True)
        return False
    largest = int(context.stream.max())
    if largest >= host.vocab_size:
        raise InputError(
            f"the stream holds token {largest} at position {int(np.argmax(context.stream))}, the forecaster's "
            f"vocabulary has {host.vocab_size}: give the shards that it was made for"
        )
    try:
        span = context.options.span
        # A forecaster that learns at seams is judged there: the pass may take five times its share to get past one.
        seam = host.boundary() or 0
        run = run_stream(host, context.tokens, span, seconds=seconds, seam=seam + span, patience=4 * seconds)
        if seam and run.stop <= seam + 1:
            context.gap(
                f"no seam was reached: the forecaster learns at position {seam:,}, and {run.stop - 1:,} could be "
                f"audited; give a larger --budget and --max-tokens, or smaller chunks"
            )
    except Fault as fault:
        context.failed(AUDIT, fault, real=True)
        return False
    context.adopt(run, host.vocab_size, host.offers)
    nats = context.base.nats
    for index in np.flatnonzero(~np.isfinite(nats)):
        context.find(
            AUDIT,
            "ledger",
            int(index) + 1,
            {"score": float(nats[index])},
            f"The score is {nats[index]}: not a finite code length.",
        )
    for index in np.flatnonzero(nats < -FLOAT32):
        context.find(
            AUDIT,
            "normalisation",
            int(index) + 1,
            {"score": float(nats[index]), **context.size(float(-nats[index]))},
            f"The score is {nats[index]:.6g} nats: a probability above 1.",
        )
    context.cover(
        AUDIT,
        positions=len(nats),
        spans=len(run.spans),
        seconds=run.seconds,
        mean_nats=float(np.mean(nats)),
        grid=context.grid,
        vocab_size=host.vocab_size,
    )
    return bool(np.all(np.isfinite(nats)))
