"""Names and bounds that help texts show; this module imports nothing, so that help stays instant."""

from __future__ import annotations

SIZE_CAP = 16_000_000
"""The challenge's cap on artifact plus code, in bytes (decimal megabytes)."""

RECORD_NATS = 0.005
"""Nats per token by which the challenge at first asked a record to be lower than the one before, at p < 0.01."""

MIXERS = ("none", "hedge", "published")
"""Choices of ``--mixer``."""

CONTEXTS = ("sliding", "documents", "streaming")
"""Choices of ``--context``."""

SECTIONS = ("model", "mixer", "ttt", "streaming")
"""Sections of ``--set`` when scoring."""

BUDGET_SECONDS = 120.0
"""What the audits of one check may take: some three times what they need as planned on a quiet machine."""

DEEP_TOKENS = 1 << 18
"""Length of the part of a stream that a stranger's forecaster may be asked about at all."""

DEMO_STEPS = 200
"""Training steps of the demo."""
