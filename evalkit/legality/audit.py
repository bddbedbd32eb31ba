"""Runs the audits within a budget of seconds, cheap and powerful ones first, and forms the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from evalkit.legality import agreement, known, ledger, replay, substitution, suffix
from evalkit.legality.childhost import ChildHost
from evalkit.legality.context import Context
from evalkit.legality.hosts import Host, LocalHost
from evalkit.legality.options import FALSE_ALARM, AuditOptions
from evalkit.legality.report import AXIOMS, LegalityReport
from evalkit.plumbing.errors import InputError
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
        tokens: The stream, token ids; the first is given, the rest are scored. What lies beyond ``max_tokens`` is
            salted as far as the budget reaches: a forecaster may turn to fiction only after thousands of tokens.
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
    whole = stream.astype(np.int64)
    context = Context(
        tokens=whole[: options.max_tokens],
        stream=whole,
        options=options,
        deadline=began + options.budget_seconds,
    )
    if isinstance(make, str):
        context.how = f"evalkit check --forecaster {make} --span {options.span}, "
    else:
        context.how = f"the same command with span {options.span}, "
    _Audits(context, make).run()
    facts = {
        "span": options.span,
        "stream_tokens": max(len(stream), options.stream_tokens),
        "audited_tokens": len(context.tokens),
        "false_alarm_probability": FALSE_ALARM,
        "in_child_process": isinstance(make, str),
        "findings": context.counts(),
        "seed": options.seed,
    }
    rank = {axiom: place for place, axiom in enumerate(AXIOMS)}
    return LegalityReport(
        findings=tuple(
            sorted(
                context.report.findings,
                key=lambda f: (rank[f.axiom], -abs(float(f.evidence.get("nats") or 0.0))),
            )
        ),
        covered=context.report.covered | {"audit": facts},
        uncovered=tuple(context.report.uncovered),
        seconds=time.monotonic() - began,
    )


class _Audits:
    """The audits of one forecaster in their order.

    Hosts are kept from one bundle of audits to the next: importing a stranger's code may take longer than an audit, and
    every fresh forecaster is a copy of what was imported, whatever earlier ones did.
    """

    def __init__(self, context: Context, make: Callable[[], Forecaster] | str) -> None:
        self.context = context
        self.make = make
        self.covered: dict[str, int] = {}
        self._hosts: list[Host] = []
        self._idle: list[Host] = []

    def run(self) -> None:
        """Run all of them, and end every process."""
        try:
            self._run()
        finally:
            for host in self._hosts:
                host.close()

    def _run(self) -> None:
        """Run all of them; where the first pass fails, no other makes sense."""
        context = self.context
        memory: list[replay.Breach | None] = []

        def first(host: Host) -> None:
            if ledger.first_pass(context, host, FIRST_PASS * context.options.budget_seconds):
                memory.append(replay.again(context, host) if host.remote else None)

        self._together((first,))
        if not memory:
            if not context.report.findings:
                context.gap("the first pass over the stream did not succeed")
            return
        if len(context.tokens) < 2:
            context.gap("no position could be scored in the time given")
            return
        self._passes(memory[0])
        self._together((lambda host: suffix.audit(context, host, 0.4 * self._left(), self._rng(4)),))
        self._sums()
        _conclude(context, self.covered)

    def _passes(self, memory: replay.Breach | None) -> None:
        """Make further passes over the stream, and over streams from known sources."""
        context = self.context
        repeats: tuple[Job, ...] = (
            lambda host: replay.fresh(context, host, memory),
            lambda host: replay.repeated_calls(context, host, self._rng(0)),
            lambda host: replay.beside_bait(context, host),
        )
        sources: tuple[Job, ...] = (
            lambda host: known.whole_stream(context, host, "uniform", self._rng(1)),
            lambda host: known.whole_stream(context, host, "ngram", self._rng(2)),
            lambda host: known.salted_stream(context, host, self._rng(3)),
        )
        # where calls are dear and whole rows are stated, the rows say more than two further passes would
        dear = context.states_rows and context.base.seconds > 0.02 * context.options.budget_seconds
        # the sources take the host of the first pass, so that the repetitions get a process that imports anew
        self._together(sources[:1] if dear else sources, repeats)
        if len(context.tokens) < len(context.stream):
            # a forecaster so slow that the first pass broke off shows elsewhere even less
            cut = len(context.tokens) < min(context.options.max_tokens, len(context.stream))
            seconds = (0.5 if cut and not context.states_rows else 0.2) * self._left()
            self._together((lambda host: known.salted_stream(context, host, self._rng(9), deep_seconds=seconds),))

    def _sums(self) -> None:
        """Add up probabilities at single positions."""
        context, covered = self.context, self.covered

        def salted(rows: int, share: float) -> None:
            self._together((lambda host: known.salted_rows(context, host, share * self._left(), rows, self._rng(8)),))

        def single(host: Host) -> None:
            covered["single"] = substitution.audit(context, host, "single", 0.9 * self._left(), self._rng(5))

        def in_span(host: Host) -> None:
            side_by_side = self._workers == 2
            if context.states_rows:
                seconds = (0.4 if side_by_side else 0.8) * self._left()
                covered["distribution"] = agreement.audit(context, host, seconds, self._rng(6))
            seconds = (0.9 if side_by_side else 0.4) * self._left()
            covered["span"] = substitution.audit(context, host, "span", seconds, self._rng(7))

        if not context.states_rows and not context.settled:
            salted(known.EVERY, 0.15)
        # with one worker the stated distribution comes first: it covers most where a call is dear
        self._together(*(((single,), (in_span,)) if self._workers == 2 else ((in_span, single),)))
        too_few = covered.get("single", 0) + covered.get("span", 0) < min(substitution.RUN, len(context.base.nats))
        if too_few and not context.states_rows and not context.settled and context.left() > 1.0:
            salted(5 * known.EVERY, 0.9)

    @property
    def _workers(self) -> int:
        return self.context.options.workers if isinstance(self.make, str) else 1

    def _left(self) -> float:
        return max(self.context.left(), 1.0)

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.context.options.seed, number])

    def _together(self, *bundles: tuple[Job, ...]) -> None:
        """Run bundles of jobs side by side where there are workers, the jobs of one after another on one host."""
        hosts = [self._idle.pop() if self._idle else self._start() for _ in bundles]

        def run(host: Host, jobs: tuple[Job, ...]) -> None:
            for job in jobs:
                job(host)

        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(run, hosts, bundles))
        self._idle.extend(host for host in hosts if host.alive)

    def _start(self) -> Host:
        options = self.context.options
        host: Host
        if isinstance(self.make, str):
            patience = min(options.call_seconds, options.budget_seconds)
            host = ChildHost(self.make, call_seconds=patience, stream_files=options.stream_files)
        else:
            host = LocalHost(self.make)
        self._hosts.append(host)
        return host


def _conclude(context: Context, covered: dict[str, int]) -> None:
    """Say what a verdict of ``legal`` would still need."""
    positions = len(context.base.nats)
    sums = covered.get("single", 0) + covered.get("span", 0)
    needed = min(substitution.RUN, positions)
    stated = covered.get("distribution", 0)
    if sums < needed and stated < positions // 2:
        context.gap(f"substitution: sums were made at {sums} positions of {positions}; {needed} are needed")
    if sums == 0 and stated < positions // 2:
        context.gap("substitution: no position could be covered")
