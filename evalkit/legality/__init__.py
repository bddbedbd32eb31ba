"""Audits that prove a score legal or not, on behaviour alone: see docs/legality.md for the theory."""

from evalkit.legality.audit import audit
from evalkit.legality.options import AuditOptions
from evalkit.legality.report import Finding, LegalityReport

__all__ = ["AuditOptions", "Finding", "LegalityReport", "audit"]
