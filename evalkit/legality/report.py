"""What a check says: findings, what was covered, and a verdict; frozen, and ready for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from evalkit.plumbing.typed_json import read_versioned, to_json

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


@dataclass(frozen=True, kw_only=True)
class LegalityReport:
    """The verdict of a check with everything that it rests on.

    Attributes:
        format: Of the JSON; a reader takes no other.
        findings: Breaches; one is enough for ``illegal``.
        covered: What ran, on how many positions, with which tolerances and p-values, by audit; under ``subject``, what
            was checked.
        uncovered: Sentences that name what a ``legal`` verdict would have needed and did not get.
        seconds: Wall time of the audits.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("verdict",)

    format: Literal[2] = 2
    findings: tuple[Finding, ...] = ()
    covered: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    uncovered: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """``illegal`` with a finding, ``unproven`` with a gap in coverage, else ``legal``."""
        if self.findings:
            return "illegal"
        return "unproven" if self.uncovered else "legal"

    def with_(
        self,
        *,
        findings: Iterable[Finding] = (),
        covered: Mapping[str, Mapping[str, Any]] | None = None,
        uncovered: Iterable[str] = (),
        seconds: float = 0.0,
    ) -> LegalityReport:
        """Return a report that holds these findings, facts, gaps and seconds as well."""
        return replace(
            self,
            findings=(*self.findings, *findings),
            covered={**self.covered, **(covered or {})},
            uncovered=tuple(dict.fromkeys((*self.uncovered, *uncovered))),
            seconds=self.seconds + seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report of ``evalkit check --json``."""
        result: dict[str, Any] = to_json(self)
        return result

    @classmethod
    def from_dict(cls, values: Any, where: str = "the check") -> LegalityReport:
        """Return the report that ``values`` hold.

        Raises:
            InputError: they are of another format, incomplete, or contradict each other.
        """
        return read_versioned(cls, values, where, "check again with evalkit check --json")

    def summary(self) -> str:
        """Return the report in a few lines for a person.

        One bug breaks many positions, and more than one axiom: the first finding stands for all that the audits found.
        """
        lines = [f"verdict: {self.verdict} ({self.seconds:.1f} s)"]
        of_audits = [finding for finding in self.findings if finding.axiom not in ("bytes", "budget")]
        apart = [finding for finding in self.findings if finding.axiom in ("bytes", "budget")]
        for finding in (*of_audits[:1], *apart):
            where = "" if finding.position is None else f" at position {finding.position}"
            lines.append(f"  {finding.axiom}{where}: {finding.message}")
        counts: Counter[str] = Counter(finding.axiom for finding in of_audits)
        breaches: Counter[str] = Counter()
        for name, count in self.covered.get("audit", {}).get("findings", {}).items():
            breaches[name.rpartition("/")[2]] += count
        counts |= breaches  # the larger of the two: an audit lists its first breaches and counts the rest
        counts.subtract([finding.axiom for finding in of_audits[:1]])
        if more := [f"{counts[axiom]:,} of {axiom}" for axiom in AXIOMS if counts[axiom] > 0]:
            lines.append(f"  and {', '.join(more)} more, which --json lists or counts")
        lines.extend(f"  not covered: {sentence}" for sentence in self.uncovered)
        cuts = self.covered.get("audit", {}).get("cut_short", ())
        if cuts:
            lines.append(f"  cut short by the budget: {'; '.join(cuts)}")
        return "\n".join(lines)
