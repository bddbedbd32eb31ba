"""Names and bounds that help texts show; this module imports nothing, so that help stays instant."""

from __future__ import annotations

SIZE_CAP = 16_000_000
"""The challenge's cap on artifact plus code, in bytes (decimal megabytes)."""

MIXERS = ("none", "hedge", "published")
"""Choices of ``--mixer``."""

CONTEXTS = ("sliding", "documents", "streaming")
"""Choices of ``--context``."""

SECTIONS = ("model", "mixer", "ttt", "streaming")
"""Sections of ``--set`` when scoring."""
