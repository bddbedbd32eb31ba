"""What one audit says, and the notes from which it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evalkit.legality.hosts import Fault
from evalkit.legality.report import Axiom, Finding
from evalkit.plumbing.errors import InputError

LISTED = 4
"""Findings that one audit lists for one axiom; the rest are counted."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one audit found and did.

    Attributes:
        audit: Its name.
        findings: Breaches, at most :data:`LISTED` of one axiom.
        counts: How many breaches there were, listed or not, by axiom.
        covered: What was done, as far as it got.
        uncovered: Sentences that name what a ``legal`` verdict would have needed and did not get.
        cuts: Phrases that say how far the audit got where the budget ended it before its plan was done.
    """

    audit: str
    findings: tuple[Finding, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    covered: Mapping[str, Any] = field(default_factory=dict)
    uncovered: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()


class Notes:
    """What an audit writes down while it runs."""

    def __init__(self, audit: str) -> None:
        self.audit = audit
        self._findings: list[Finding] = []
        self._counts: Counter[str] = Counter()
        self._covered: dict[str, Any] = {}
        self._uncovered: list[str] = []
        self._cuts: list[str] = []
        self._failed = False

    def find(self, axiom: Axiom, position: int | None, evidence: Mapping[str, Any], message: str) -> None:
        """Note a breach; where the audit has already listed enough of them, count it."""
        self._counts[axiom] += 1
        if self._counts[axiom] <= LISTED:
            evidence = {"audit": self.audit, **evidence}
            self._findings.append(Finding(axiom=axiom, position=position, evidence=evidence, message=message))

    def cover(self, **facts: Any) -> None:
        """Note what was done."""
        self._covered.update(facts)

    def gap(self, sentence: str) -> None:
        """Note what was not covered."""
        self._uncovered.append(sentence)

    def cut(self, done: int, planned: int, *, needed: int = 0) -> None:
        """Note where the budget ended the audit after ``done`` of the positions that its plan has, if it did.

        With fewer than ``needed`` of them the verdict is not ``legal``.
        """
        if self._failed or done >= planned:
            return
        phrase = f"{self.audit}, {done:,} of {planned:,} positions"
        self._cuts.append(phrase)
        if done < needed:
            self.gap(f"the budget ended too early: {phrase}")

    def failed(self, fault: Fault, *, real: bool) -> None:
        """Judge a failed call: what a forecaster may not do is a breach, that it gave up is a gap in coverage.

        A crash proves nothing but itself. That no time was left is noted by :meth:`cut`, which knows how far it came.
        """
        if fault.kind == "import":
            raise InputError(str(fault))
        if fault.kind == "budget":
            return
        self._failed = True
        if fault.kind == "file":
            self.find("causality", fault.start, {"kind": fault.kind}, f"The forecaster reads ahead: {fault}.")
        elif fault.kind == "hang":
            self.gap(f"{self.audit}: {fault} (position {fault.start}); the forecaster is slow or it hangs")
        elif fault.kind in ("rewrite", "shape", "dtype") or (real and fault.kind == "protocol"):
            self.find("ledger", fault.start, {"kind": fault.kind}, f"No valid score for the span: {fault}.")
        else:
            tokens = "the stream" if real else "other valid tokens"
            self.gap(f"{self.audit}: the forecaster failed on {tokens} at position {fault.start}: {fault}")

    def outcome(self) -> Outcome:
        """Return what was noted."""
        return Outcome(
            audit=self.audit,
            findings=tuple(self._findings),
            counts=dict(self._counts),
            covered=dict(self._covered),
            uncovered=tuple(self._uncovered),
            cuts=tuple(self._cuts),
        )
