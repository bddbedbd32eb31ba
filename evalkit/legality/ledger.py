"""The first pass: every position scored once, in order, with a number that can be a code length."""

from __future__ import annotations

import numpy as np

from evalkit.legality.driver import Run, run_stream
from evalkit.legality.hosts import Fault, Host, Ids
from evalkit.legality.noise import FLOAT32, grid_of
from evalkit.legality.options import AuditOptions
from evalkit.legality.outcome import Notes, Outcome
from evalkit.legality.subject import Subject
from evalkit.plumbing.errors import InputError

AUDIT = "ledger"

FIRST_PASS = 0.05
"""Share of the budget that one pass over the stream may take: some ten passes come before the substitutions."""


def first_pass(host: Host, stream: Ids, options: AuditOptions, deadline: float) -> tuple[Outcome, Subject | None]:
    """Score the stream up to ``max_tokens``, or as far as its share of the budget reaches.

    Shape, dtype and untouched tokens are checked in every call of every audit; here the numbers are checked too:
    finite, and no probability above 1. Without a subject no further audit makes sense.
    """
    notes = Notes(AUDIT)
    planned = min(options.max_tokens, len(stream)) - 1
    run = _run(notes, host, stream, options)
    if run is None:
        notes.cut(0, planned, needed=1)
        return notes.outcome(), None
    nats = run.nats
    notes.cut(len(nats), planned)
    for index in np.flatnonzero(~np.isfinite(nats)):
        score = float(nats[index])
        notes.find("ledger", int(index) + 1, {"score": score}, f"The score is {score}: not a finite code length.")
    for index in np.flatnonzero(nats < -FLOAT32):
        score = float(nats[index])
        evidence = {"score": score, **options.size(-score)}
        notes.find("normalisation", int(index) + 1, evidence, f"The score is {score:.6g} nats: a probability above 1.")
    subject = Subject(
        tokens=stream[: len(nats) + 1],
        stream=stream,
        options=options,
        deadline=deadline,
        base=run,
        grid=grid_of(nats),
        vocab_size=host.vocab_size,
        states_rows="distribution" in host.offers,
    )
    notes.cover(
        positions=len(nats),
        spans=len(run.spans),
        seconds=run.seconds,
        mean_nats=float(np.mean(nats)),
        grid=subject.grid,
        vocab_size=host.vocab_size,
    )
    return notes.outcome(), subject if np.all(np.isfinite(nats)) else None


def _run(notes: Notes, host: Host, stream: Ids, options: AuditOptions) -> Run | None:
    """Start the forecaster and make the pass; None where it failed."""
    try:
        host.fresh(int(stream[0]))
    except Fault as fault:
        if fault.kind == "crash":
            raise InputError(f"the factory made no forecaster: {' '.join(str(fault).split())}") from None
        notes.failed(fault, real=True)
        return None
    largest = int(stream.max())
    if largest >= host.vocab_size:
        raise InputError(
            f"the stream holds token {largest} at position {int(np.argmax(stream))}, the forecaster's "
            f"vocabulary has {host.vocab_size}: give the shards that it was made for"
        )
    try:
        # A forecaster that learns at seams is judged there: the pass may take five times its share to get past one.
        seam = host.boundary() or 0
        seconds = FIRST_PASS * options.budget_seconds
        run = run_stream(
            host,
            stream[: options.max_tokens],
            options.span,
            allowance=lambda stop: 5 * seconds if stop <= seam + options.span and seam else seconds,
        )
    except Fault as fault:
        notes.failed(fault, real=True)
        return None
    if seam and run.spans[-1][1] <= seam + 1:
        notes.gap(
            f"no seam was reached: the forecaster learns at position {seam:,}, and {len(run.nats):,} could be "
            f"audited; give a larger --budget and --max-tokens, or smaller chunks"
        )
    return run
