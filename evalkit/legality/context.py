"""What the audits of one run share: the stream, the clock, the first scores, and the report."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evalkit.legality.driver import Run
from evalkit.legality.hosts import Fault, Ids
from evalkit.legality.noise import Grid, NoiseProfile, grid_of
from evalkit.legality.options import AuditOptions
from evalkit.legality.report import Axiom, Finding
from evalkit.plumbing.errors import InputError

DEAR_SECONDS = 0.2
"""What a sum over the vocabulary may take before it is dear."""

ENOUGH = 8
"""Sums, or offsets of a span, that are enough where calls are dear and the verdict stands."""

KEPT = 4
"""Findings that one audit lists for one axiom; the rest are counted."""


@dataclass
class Notes:
    """What the audits have found, covered and left open so far; the report is made of it once, in the end."""

    findings: list[Finding] = field(default_factory=list)
    covered: dict[str, dict[str, Any]] = field(default_factory=dict)
    uncovered: list[str] = field(default_factory=list)


@dataclass
class Context:
    """Shared state of one audit; the methods that write are safe to call from two threads.

    Attributes:
        tokens: The part of the stream that the first pass got through; all audits but one keep to it.
        options: Of the audit.
        deadline: Of the whole audit, on the monotonic clock.
        stream: The part of the stream that may be looked at.
        report: What is found and covered.
        base: The first pass: the ledger.
        noise: What is known of the forecaster's noise; measured by the suffix audit.
        grid: Float type of the scores.
        vocab_size: Of the forecaster.
        offers: Names of the protocol's methods that the forecaster has.
        recallable: Whether a call may be repeated; else every call must be the first after its prefix.
        drift: Root mean square of what fresh forecasters differ by, nats.
        unstable: Whether fresh forecasters differ so much that the ledger cannot be reproduced.
        repeats: Whether a fresh forecaster repeats every score to the bit.
        call_noise: Root mean square of what two equal calls differ by, nats.
        moved: Positions whose scores move with later tokens, once that is proven to be a leak.
        suspects: Positions where tokens that did not occur were given much, the most suspect first.
        how: Beginning of the words that tell how to see a finding again.
    """

    tokens: Ids
    options: AuditOptions
    deadline: float
    stream: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    report: Notes = field(default_factory=Notes)
    base: Run = field(default_factory=lambda: Run(nats=np.zeros(0)))
    noise: NoiseProfile = field(default_factory=NoiseProfile)
    grid: Grid = "float64"
    vocab_size: int = 0
    offers: frozenset[str] = frozenset()
    recallable: bool = True
    drift: float = 0.0
    unstable: bool = False
    repeats: bool = False
    call_noise: float = 0.0
    moved: set[int] = field(default_factory=set)
    suspects: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    how: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def states_rows(self) -> bool:
        """Whether the forecaster offers whole distributions."""
        return "distribution" in self.offers

    @property
    def dear(self) -> bool:
        """Whether a sum over the vocabulary takes long: each call a copy of the process, or slow by itself."""
        return not self.recallable or self.vocab_size * self.base.call_seconds > DEAR_SECONDS

    @property
    def settled(self) -> bool:
        """Whether an audit has convicted already, and what further ones could add takes long."""
        return self.dear and bool(self.report.findings)

    def left(self) -> float:
        """Return the seconds that are left of the budget."""
        return self.deadline - time.monotonic()

    def adopt(self, run: Run, vocab_size: int, offers: frozenset[str]) -> None:
        """Take ``run`` as the scores that all others are compared with."""
        self.base = run
        self.tokens = self.tokens[: run.stop]
        self.base.nats = run.nats[: run.stop - 1]
        self.vocab_size, self.offers = vocab_size, offers
        self.grid = grid_of(self.base.nats)

    def size(self, nats: float) -> dict[str, float | None]:
        """Return a size in nats, in bits, and in bits per byte where the bytes are known."""
        per_byte = self.options.bytes_per_token
        bits = nats / math.log(2)
        return {"nats": nats, "bits": bits, "bpb": None if per_byte is None else bits / per_byte}

    def find(self, audit: str, axiom: Axiom, position: int | None, evidence: Mapping[str, Any], message: str) -> None:
        """Record a finding, or count it where its audit has already said enough."""
        with self._lock:
            self._counts[audit, axiom] += 1
            if self._counts[audit, axiom] <= KEPT:
                recipe = f"{message} To see it again: {self.how}seed {self.options.seed}, audit {audit}."
                self.report.findings.append(
                    Finding(axiom=axiom, position=position, evidence={"audit": audit, **evidence}, message=recipe)
                )

    def cover(self, audit: str, **facts: Any) -> None:
        """Record what an audit did."""
        with self._lock:
            self.report.covered.setdefault(audit, {}).update(facts)

    def gap(self, sentence: str) -> None:
        """Record what was not covered."""
        with self._lock:
            if sentence not in self.report.uncovered:
                self.report.uncovered.append(sentence)

    def failed(self, audit: str, fault: Fault, *, real: bool) -> None:
        """Judge a failed call: a breach of the ledger on the real stream, else a gap in coverage."""
        if fault.kind == "import":
            raise InputError(str(fault))
        if fault.kind == "file":
            self.find(audit, "causality", fault.start, {"kind": fault.kind}, f"The forecaster reads ahead: {fault}.")
        elif fault.kind == "hang":
            self.gap(f"{audit}: {fault} (position {fault.start}); the forecaster is slow or it hangs")
        elif real or fault.kind in ("rewrite", "shape", "dtype"):
            self.find(audit, "ledger", fault.start, {"kind": fault.kind}, f"No valid score for the span: {fault}.")
        else:
            self.gap(f"{audit}: the forecaster failed on other valid tokens at {fault.start}: {fault}")

    def counts(self) -> dict[str, int]:
        """Return how many findings each audit made, listed or not."""
        return {f"{audit}/{axiom}": count for (audit, axiom), count in sorted(self._counts.items())}
