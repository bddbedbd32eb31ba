"""What a check looked at, in words: which audits ran, on how many tokens, and what each of them asks."""

from __future__ import annotations

from typing import Any

from evalkit.legality.report import LegalityReport

_ASKS = {
    "ledger": "every position is scored once, in order, with a finite number",
    "known source": "the score does not beat tokens drawn from a source whose entropy is known",
    "replay": "two fresh runs give the same scores",
    "repeated calls": "asked twice, it gives the same scores",
    "deep salting": "random tokens put in place of real ones, far into the stream: the probabilities still sum to 1",
    "suffix": "other tokens later on leave the scores before them as they were",
    "distribution": "the stated probabilities sum to 1 and are those of the scores",
    "substitution": "every token of the vocabulary put at a position: the probabilities sum to 1",
    "module causality": "the model's rows do not depend on later ids",
    "bytes": "the bytes of the text, counted again from the decoded tokens",
    "budget": "the bytes of all files that ship",
    "decode": "compressed for real, and decompressed again",
}


def coverage(check: LegalityReport) -> dict[str, Any]:
    """Return what the legality card shows besides the findings.

    Returns:
        ``summary``: a sentence on how much of the stream was audited, empty where the check does not say;
        ``audits``: ``name``, ``asks`` and ``extent`` of each.
    """
    audit = check.covered.get("audit", {})
    rows = [
        {
            "name": name,
            "asks": next((asks for begin, asks in _ASKS.items() if name.startswith(begin)), ""),
            "extent": _extent(name, facts),
        }
        for name, facts in check.covered.items()
        if name not in ("audit", "subject")
    ]
    return {"summary": _summary(audit), "audits": rows}


def _summary(audit: Any) -> str:
    audited, stream = audit.get("audited_tokens"), audit.get("stream_tokens")
    if not audited or not stream:
        return ""
    return (
        f"{audited:,} of {stream:,} tokens audited ({audited / stream:.1%}), in spans of {audit.get('span', 0):,}; an "
        f"honest forecaster is accused with probability {audit.get('false_alarm_probability', 0):.0e} at most"
    )


def _extent(name: str, facts: Any) -> str:
    """Return on how much of the stream an audit ran; empty where it does not count positions."""
    if name == "budget":
        return f"{facts.get('bytes', 0):,} bytes"
    if name == "bytes":
        return f"{facts.get('bytes_counted', 0):,} bytes"
    count = facts.get("positions", facts.get("tokens"))
    if count is None:
        return ""
    reach = f", up to token {facts['last']:,}" if facts.get("last") else ""
    return f"{count:,} {'tokens' if 'positions' not in facts else 'positions'}{reach}"
