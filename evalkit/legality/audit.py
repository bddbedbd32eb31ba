"""Runs the audits within a budget of seconds, cheap and powerful ones first, and forms the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from evalkit.errors import InputError
from evalkit.legality import agreement, known, ledger, replay, substitution, suffix
from evalkit.legality.context import Context
from evalkit.legality.hosts import ChildHost, Host, LocalHost
from evalkit.legality.options import FALSE_ALARM, AuditOptions
from evalkit.legality.report import AXIOMS, LegalityReport
from evalkit.prequential.forecaster import Forecaster

FIRST_PASS = 0.05
"""Share of the budget that one pass over the stream may take: some ten passes come before the substitutions."""

Job = Callable[[Host], None]


def audit(
    make: Callable[[], Forecaster] | str, tokens: np.ndarray[Any, Any], options: AuditOptions | None = None
) -> LegalityReport:
    """Judge a forecaster by its behaviour on a stream.

    Args:
        make: A factory of our own, run in this process; or ``FILE.py:FACTORY`` or ``package.module:FACTORY``, a
            stranger's, run in child processes that see only what they may.
        tokens: The stream, token ids; the first is given, the rest are scored.
        options: Span, budget and so on.

    Raises:
        InputError: the stream is too short, or the factory cannot be loaded.
    """
    options = options or AuditOptions()
    stream = np.asarray(tokens)
    if stream.ndim != 1 or stream.dtype.kind not in "iu":
        raise InputError(f"the stream is {stream.dtype} of shape {list(stream.shape)}; token ids in a row are needed")
    if len(stream) < 2:
        raise InputError(f"the stream holds {len(stream)} tokens; at least 2 are needed to score one")
    began = time.monotonic()
    visible = stream[: options.max_tokens].astype(np.int64)
    context = Context(
        tokens=visible,
        stream=visible,
        options=options,
        deadline=began + options.budget_seconds,
    )
    if isinstance(make, str):
        context.how = f"evalkit check --forecaster {make} --span {options.span}, "
    else:
        context.how = f"the same command with span {options.span}, "
    _run(context, make)
    report = context.report
    report.seconds = time.monotonic() - began
    report.covered["audit"] = {
        "span": options.span,
        "stream_tokens": len(stream),
        "audited_tokens": len(context.tokens),
        "false_alarm_probability": FALSE_ALARM,
        "in_child_process": isinstance(make, str),
        "findings": context.counts(),
        "seed": options.seed,
    }
    rank = {axiom: place for place, axiom in enumerate(AXIOMS)}
    report.findings.sort(key=lambda f: (rank[f.axiom], -abs(float(f.evidence.get("nats") or 0.0))))
    return report


def _run(context: Context, make: Callable[[], Forecaster] | str) -> None:
    options = context.options
    seeds = [np.random.default_rng([options.seed, k]) for k in range(8)]

    def host() -> Host:
        if isinstance(make, str):
            return ChildHost(make, call_seconds=min(options.call_seconds, options.budget_seconds))
        return LocalHost(make)

    def with_host(*jobs: Job) -> None:
        """Run jobs one after another on a host of their own."""
        place = host()
        try:
            for job in jobs:
                job(place)
        finally:
            place.close()

    workers = options.workers if isinstance(make, str) else 1
    with ThreadPoolExecutor(workers) as pool:

        def together(*bundles: tuple[Job, ...]) -> None:
            for future in [pool.submit(with_host, *bundle) for bundle in bundles]:
                future.result()

        alive: list[bool] = []
        memory: list[replay.Breach | None] = []

        def start(place: Host) -> None:
            alive.append(ledger.first_pass(context, place, FIRST_PASS * options.budget_seconds))
            if alive[0]:
                memory.append(replay.again(context, place) if place.remote else None)

        with_host(start)
        if not alive[0]:
            if not context.report.findings:
                context.gap("the first pass over the stream did not succeed")
            return
        if len(context.tokens) < 2:
            context.gap("no position could be scored in the time given")
            return
        bait: tuple[Job, ...] = ()
        if isinstance(make, str):
            bait = (lambda h: replay.beside_bait(context, h),)  # type: ignore[arg-type, return-value]
        # where calls are dear and whole rows are stated, the rows say more than two further passes would
        dear = "distribution" in context.offers and context.base.seconds > 0.02 * options.budget_seconds
        sources: tuple[Job, ...] = (lambda h: known.whole_stream(context, h, "uniform", seeds[1]),)
        if not dear:
            sources += (
                lambda h: known.whole_stream(context, h, "ngram", seeds[2]),
                lambda h: known.salted_stream(context, h, seeds[3]),
            )
        together(
            (
                lambda h: replay.fresh(context, h, memory[0]),
                lambda h: replay.repeated_calls(context, h, seeds[0]),
                *bait,
            ),
            sources,
        )
        if len(context.tokens) < len(context.stream) and "distribution" not in context.offers:
            share = 0.5 * max(context.left(), 1.0)
            with_host(lambda h: known.deep_salting(context, h, share, np.random.default_rng([options.seed, 9])))
        with_host(lambda h: suffix.audit(context, h, 0.4 * max(context.left(), 1.0), seeds[4]))
        covered: dict[str, int] = {}

        def single(place: Host) -> None:
            seconds = max(context.left(), 1.0) * 0.9
            covered["single"] = substitution.audit(context, place, "single", seconds, seeds[5])

        def in_span(place: Host) -> None:
            if "distribution" in context.offers:
                seconds = max(context.left(), 1.0) * (0.4 if workers == 2 else 0.8)
                covered["distribution"] = agreement.audit(context, place, seconds, seeds[6])
            seconds = max(context.left(), 1.0) * (0.9 if workers == 2 else 0.4)
            covered["span"] = substitution.audit(context, place, "span", seconds, seeds[7])

        # with one worker the stated distribution comes first: it covers most where a call is dear
        together(*(((single,), (in_span,)) if workers == 2 else ((in_span, single),)))
    too_few = covered.get("single", 0) + covered.get("span", 0) < min(substitution.RUN, len(context.base.nats))
    if too_few and "distribution" not in context.offers and context.left() > 1.0:
        with_host(lambda h: known.salted_rows(context, h, 0.9 * context.left(), np.random.default_rng(options.seed)))
    _conclude(context, covered)


def _conclude(context: Context, covered: dict[str, int]) -> None:
    """Say what a verdict of ``legal`` would still need."""
    positions = len(context.base.nats)
    sums = covered.get("single", 0) + covered.get("span", 0)
    needed = min(substitution.RUN, positions)
    stated = covered.get("distribution", 0)
    if sums < needed and stated < positions // 2:
        context.gap(f"substitution: the budget allowed {sums} positions of {positions}; {needed} are needed")
    if sums == 0 and stated < positions // 2:
        context.gap("substitution: no position could be covered")
