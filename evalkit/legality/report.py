"""What an audit says: findings, what was covered, and a verdict, ready for JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Axiom = Literal["causality", "normalisation", "ledger", "bytes", "budget"]
Verdict = Literal["legal", "illegal", "unproven"]
AXIOMS: tuple[Axiom, ...] = ("causality", "normalisation", "ledger", "bytes", "budget")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One proven breach.

    Attributes:
        axiom: Which axiom is broken.
        position: Index in the stream of the token whose score is concerned; None for the run as a whole.
        evidence: Numbers; ``nats`` is the size at the position, ``bpb`` the same in bits per byte where the bytes
            are known.
        message: What was seen and how to see it again.
    """

    axiom: Axiom
    position: int | None
    evidence: Mapping[str, Any]
    message: str

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as plain JSON types."""
        return {
            "axiom": self.axiom,
            "position": self.position,
            "evidence": plain(self.evidence),
            "message": self.message,
        }


@dataclass(frozen=True, kw_only=True)
class LegalityReport:
    """The verdict of an audit with everything it rests on.

    Attributes:
        findings: Breaches; one is enough for ``illegal``.
        covered: What ran, on how many positions, with which tolerances and p-values.
        uncovered: Sentences that name what a ``legal`` verdict would have needed and did not get.
        seconds: Wall time of the audit.
    """

    findings: tuple[Finding, ...] = ()
    covered: Mapping[str, Any] = field(default_factory=dict)
    uncovered: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """``illegal`` with a finding, ``unproven`` with a gap in coverage, else ``legal``."""
        if self.findings:
            return "illegal"
        return "unproven" if self.uncovered else "legal"

    def as_dict(self) -> dict[str, Any]:
        """Return the report of ``evalkit check --json``."""
        return {
            "verdict": self.verdict,
            "findings": [finding.as_dict() for finding in self.findings],
            "covered": plain(self.covered),
            "uncovered": list(self.uncovered),
            "seconds": round(self.seconds, 3),
        }

    def to_json(self) -> str:
        """Return the report as strict JSON text: no NaN, no infinity."""
        return json.dumps(self.as_dict(), indent=1, allow_nan=False)

    def summary(self) -> str:
        """Return the report in a few lines for a person."""
        lines = [f"verdict: {self.verdict} ({self.seconds:.1f} s)"]
        for finding in self.findings:
            where = "" if finding.position is None else f" at position {finding.position}"
            lines.append(f"  {finding.axiom}{where}: {finding.message}")
        lines.extend(f"  not covered: {sentence}" for sentence in self.uncovered)
        return "\n".join(lines)


def plain(value: Any) -> Any:
    """Return ``value`` with numpy types made Python's, and numbers that JSON lacks made strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value
