"""Runs the audits within a budget of seconds, cheap and powerful ones first, and forms the verdict."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from evalkit.legality import agreement, known, ledger, replay, substitution, suffix
from evalkit.legality.childhost import ChildFactory, ChildHost
from evalkit.legality.fork_server import ForkServer
from evalkit.legality.hosts import Fault, Host, Ids, LocalHost, out_of_time
from evalkit.legality.noise import NoiseProfile
from evalkit.legality.options import FALSE_ALARM, AuditOptions
from evalkit.legality.outcome import LISTED, Outcome
from evalkit.legality.report import AXIOMS, Finding, LegalityReport
from evalkit.legality.subject import Repeatability, Subject
from evalkit.plumbing.errors import InputError
from evalkit.prequential.forecaster import Forecaster

Make = Callable[[], Forecaster] | str | ChildFactory
T = TypeVar("T")


def audit(
    make: Make,
    tokens: np.ndarray[Any, Any],
    options: AuditOptions | None = None,
    *,
    fork_server: ForkServer | None = None,
) -> LegalityReport:
    """Judge a forecaster by its behaviour on a stream.

    Args:
        make: A factory of our own, run in this process; or ``FILE.py:FACTORY`` or ``package.module:FACTORY``, a
            stranger's, run in child processes that see only what they may.
        tokens: The stream, token ids; the first is given, the rest are scored. What lies beyond ``max_tokens`` is
            salted as far as the budget reaches: a forecaster may turn to fiction only after thousands of tokens.
        options: Span, budget and so on.
        fork_server: Begins a stranger's processes; one that several audits share saves the time to start one for each.

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
    with _Hosts(make, options, began + options.budget_seconds, fork_server) as hosts:
        audits = _Audits(hosts, stream.astype(np.int64), options)
        audits.run()
    return _report(make, options, len(stream), audits.outcomes, audits.gaps, time.monotonic() - began)


def _report(
    make: Make, options: AuditOptions, stream_tokens: int, outcomes: list[Outcome], gaps: list[str], seconds: float
) -> LegalityReport:
    """Put together what the audits say."""
    command = f"evalkit check --forecaster {make} --" if isinstance(make, str) else "the same command with "
    findings: list[Finding] = []
    cuts: list[str] = []
    listed: Counter[tuple[str, str]] = Counter()
    counts: Counter[str] = Counter()
    covered: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        audit = outcome.audit
        how = f"To see it again: {command}span {options.span}, seed {options.seed}, audit {audit}."
        for finding in outcome.findings:
            listed[audit, finding.axiom] += 1
            if listed[audit, finding.axiom] <= LISTED:
                findings.append(replace(finding, message=f"{finding.message} {how}"))
        counts.update({f"{audit}/{axiom}": count for axiom, count in outcome.counts.items()})
        cuts.extend(outcome.cuts)
        if outcome.covered:
            covered.setdefault(audit, {}).update(outcome.covered)
    uncovered = dict.fromkeys([sentence for outcome in outcomes for sentence in outcome.uncovered] + gaps)
    audited = covered.get(ledger.AUDIT, {}).get("positions", 0)
    covered["audit"] = {
        "span": options.span,
        "stream_tokens": max(stream_tokens, options.stream_tokens),
        "audited_tokens": audited and audited + 1,
        "false_alarm_probability": FALSE_ALARM,
        "in_child_process": isinstance(make, str | ChildFactory),
        "findings": dict(sorted(counts.items())),
        "cut_short": cuts,
        "seed": options.seed,
    }
    rank = {axiom: place for place, axiom in enumerate(AXIOMS)}
    findings.sort(key=lambda f: (rank[f.axiom], -abs(float(f.evidence.get("nats") or 0.0))))
    return LegalityReport(findings=tuple(findings), covered=covered, uncovered=tuple(uncovered), seconds=seconds)


class _Hosts(ExitStack):
    """Where the forecasters of an audit run, whose processes end with the ``with`` block.

    Hosts are kept from one bundle of audits to the next: importing a stranger's code may take longer than an audit, and
    every fresh forecaster is a copy of what was imported, whatever earlier ones did.
    """

    def __init__(self, make: Make, options: AuditOptions, deadline: float, fork_server: ForkServer | None) -> None:
        super().__init__()
        shared = make.modules if isinstance(make, ChildFactory) else ()
        self.fork_server = self.enter_context(ForkServer(shared)) if fork_server is None else fork_server
        self.make, self.options, self.deadline = make, options, deadline
        self.workers = options.workers if isinstance(make, str | ChildFactory) else 1
        self._idle: list[Host] = []

    def together(self, *bundles: Callable[[Host], T]) -> list[T]:
        """Run bundles of audits side by side where there are workers, each on one host; return what they return."""
        hosts = [self._idle.pop() if self._idle else self._start() for _ in bundles]
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                results = list(pool.map(lambda bundle, host: bundle(host), bundles, hosts))
            except BaseException:  # Ctrl-C: the bundles, which the pool waits for, end at their next call
                for host in hosts:
                    host.deadline = -math.inf
                raise
        self._idle.extend(host for host in hosts if host.alive)
        return results

    def alone(self, bundle: Callable[[Host], T]) -> T:
        """Run one bundle."""
        return self.together(bundle)[0]

    def _start(self) -> Host:
        options = self.options
        host: Host
        if isinstance(self.make, str | ChildFactory):
            if time.monotonic() > self.deadline:
                raise out_of_time()
            host = ChildHost(
                self.make,
                call_seconds=min(options.call_seconds, options.budget_seconds),
                deadline=self.deadline,
                stream_files=options.stream_files,
                fork_server=self.fork_server,
            )
        else:
            host = LocalHost(self.make, deadline=self.deadline)
        return self.enter_context(host)


class _Audits:
    """The audits of one forecaster in their order: each gets by name what it needs of those before.

    Attributes:
        outcomes: What each audit says, as far as the budget reached.
        gaps: What no single audit can say was not covered.
    """

    def __init__(self, hosts: _Hosts, stream: Ids, options: AuditOptions) -> None:
        self.hosts, self.stream, self.options = hosts, stream, options
        self.outcomes: list[Outcome] = []
        self.gaps: list[str] = []

    def run(self) -> None:
        """Run the audits, as far as the budget reaches."""
        try:
            self._in_turn()
        except Fault as fault:
            if fault.kind != "budget":
                raise
            self.gaps.append(f"the budget of {self.options.budget_seconds:g} s ended before all audits had begun")

    def _in_turn(self) -> None:
        """Run one audit after another; where the first pass fails, no other makes sense."""
        if not isinstance(self.hosts.make, str | ChildFactory):
            host = LocalHost(self.hosts.make, deadline=self.hosts.deadline)
            late = known.after_warm_up(host, self.stream, self.options)
            if late is not None:
                self.outcomes.append(late)
                if late.findings:
                    return  # convicted: nothing that the other audits could find would change the verdict
        first, subject, later = self.hosts.alone(self._first_pass)
        self.outcomes.append(first)
        if subject is None:
            if not first.findings:
                self.gaps.append("the first pass over the stream did not succeed")
            return
        self.outcomes.append(later.outcome)
        repetition, passes = self._passes(subject, later)
        self.outcomes += passes
        brief = self._settled(subject, repetition)
        outcome, noise, leaking = self.hosts.alone(
            lambda host: suffix.audit(subject, host, repetition, 0.4 * subject.left(), self._rng(4), brief=brief)
        )
        self.outcomes.append(outcome)
        self._sums(subject, repetition, noise, leaking)

    def _first_pass(self, host: Host) -> tuple[Outcome, Subject | None, replay.LaterForecasters]:
        first, subject = ledger.first_pass(host, self.stream, self.options, self.hosts.deadline)
        if subject is None or not host.remote:
            return first, subject, replay.LaterForecasters(outcome=Outcome(audit=replay.SAME_PROCESS))
        return first, subject, replay.later_forecasters(subject, host)

    def _passes(self, subject: Subject, later: replay.LaterForecasters) -> tuple[Repeatability, list[Outcome]]:
        """Make further passes over the stream, and over streams from known sources."""
        # where the budget is short and whole rows are stated, the rows say more than two further passes would
        few = subject.states_rows and subject.base.seconds > 0.02 * self.options.budget_seconds

        def sources(host: Host) -> tuple[Repeatability, list[Outcome]]:
            outcomes = [known.whole_stream(subject, host, "uniform", self._rng(1))]
            if few:
                cuts = (f"{known.SOURCE} (ngram), left out", f"{known.SALTING}, left out")
                outcomes.append(Outcome(audit=known.SALTING, cuts=cuts))
            else:
                outcomes.append(known.whole_stream(subject, host, "ngram", self._rng(2)))
                outcomes.append(known.salted_stream(subject, host, self._rng(3)))
            return Repeatability(), outcomes

        def repetitions(host: Host) -> tuple[Repeatability, list[Outcome]]:
            outcomes, drifts = replay.fresh(subject, host, later)
            calls, repetition = replay.repeated_calls(subject, host, drifts, self._rng(0))
            outcomes.append(calls)
            if host.remote:
                outcomes.append(replay.beside_bait(subject, host, drifts))
            return repetition, outcomes

        # the sources take the host of the first pass, so that the repetitions get a process that imports anew
        (_, outcomes), (repetition, repeated) = self.hosts.together(sources, repetitions)
        outcomes.extend(repeated)
        if len(subject.tokens) < len(subject.stream):
            # where the budget broke off the first pass, the others show even less
            cut = len(subject.tokens) < min(self.options.max_tokens, len(subject.stream))
            seconds = (0.5 if cut and not subject.states_rows else 0.2) * subject.left()
            deep = self.hosts.alone(lambda host: known.salted_stream(subject, host, self._rng(9), deep_seconds=seconds))
            outcomes.append(deep)
        return repetition, outcomes

    def _sums(self, subject: Subject, repetition: Repeatability, noise: NoiseProfile, leaking: frozenset[int]) -> None:
        """Add up probabilities at single positions."""
        suspects = np.zeros(0, np.int64)

        def salted(rows: int, share: float) -> tuple[Outcome, Ids]:
            return self.hosts.alone(
                lambda host: known.salted_rows(subject, host, repetition, rows, share * subject.left(), self._rng(8))
            )

        if not subject.states_rows and not self._settled(subject, repetition):
            outcome, suspects = salted(known.EVERY, 0.15)
            self.outcomes.append(outcome)
        asked = substitution.SumsAsked(
            known=repetition,
            noise=noise,
            suspects=suspects,
            leaking=leaking,
            brief=self._settled(subject, repetition),
        )
        side_by_side = self.hosts.workers == 2

        def single(host: Host) -> list[Outcome]:
            return [substitution.audit(subject, host, "single", asked, 0.9 * subject.left(), self._rng(5))]

        def in_span(host: Host) -> list[Outcome]:
            taken = []
            if subject.states_rows:
                seconds = (0.4 if side_by_side else 0.8) * subject.left()
                taken.append(agreement.audit(subject, host, repetition, noise, seconds, self._rng(6)))
            seconds = (0.9 if side_by_side else 0.4) * subject.left()
            mine = replace(asked, brief=self._settled(subject, repetition, *taken))
            return [*taken, substitution.audit(subject, host, "span", mine, seconds, self._rng(7))]

        def in_turn(host: Host) -> list[Outcome]:
            # the stated distribution comes first: it covers most where a call is costly
            return in_span(host) + single(host)

        bundles = (single, in_span) if side_by_side else (in_turn,)
        taken = [one for bundle in self.hosts.together(*bundles) for one in bundle]
        self.outcomes += taken
        stated = sum(one.covered["positions"] for one in taken if one.audit == agreement.AUDIT)
        sums = sum(one.covered["positions"] for one in taken) - stated
        positions = len(subject.base.nats)
        needed = min(substitution.RUN, positions)
        unsettled = not subject.states_rows and not self._settled(subject, repetition)
        if sums < needed and unsettled and subject.left() > 1.0:
            self.outcomes.append(salted(5 * known.EVERY, 0.9)[0])
        if sums < needed and stated < positions // 2:
            self.gaps.append(f"substitution: sums were made at {sums} positions of {positions}; {needed} are needed")

    def _settled(self, subject: Subject, repetition: Repeatability, *more: Outcome) -> bool:
        """Return whether an audit has convicted already, and what further ones could add takes many calls."""
        return (subject.costly or not repetition.in_place) and any(one.findings for one in (*self.outcomes, *more))

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.options.seed, number])
