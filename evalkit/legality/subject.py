"""What is audited: a forecaster on a text, as the first pass showed them to be."""

from __future__ import annotations

import time
from dataclasses import dataclass

from evalkit.legality.driver import Run
from evalkit.legality.hosts import Ids
from evalkit.legality.noise import Grid
from evalkit.legality.options import AuditOptions

COSTLY_VOCABULARY = 128
"""Tokens from which on a sum over the vocabulary counts as costly."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What every audit knows of the forecaster and the text.

    Attributes:
        tokens: The part of the stream that the first pass got through; all audits but one keep to it.
        stream: The part of the stream that may be looked at.
        options: Of the audit.
        deadline: Of the whole audit, on the monotonic clock.
        base: The first pass: the ledger.
        grid: Float type of the scores.
        vocab_size: Of the forecaster.
        states_rows: Whether the forecaster offers whole distributions.
    """

    tokens: Ids
    stream: Ids
    options: AuditOptions
    deadline: float
    base: Run
    grid: Grid
    vocab_size: int
    states_rows: bool

    def left(self) -> float:
        """Return the seconds that are left of the budget, or one."""
        return max(self.deadline - time.monotonic(), 1.0)

    @property
    def costly(self) -> bool:
        """Whether a sum over the vocabulary takes many calls."""
        return self.vocab_size > COSTLY_VOCABULARY


@dataclass(frozen=True, kw_only=True)
class Repeatability:
    """How far the forecaster repeats itself.

    Attributes:
        drift: Root mean square of what fresh forecasters differ by, nats.
        exact: Whether a fresh forecaster repeats every score to the bit.
        unstable: Whether fresh forecasters differ so much that the ledger cannot be reproduced.
        in_place: Whether a call may be repeated; else every call must be the first after its prefix.
        call_noise: Root mean square of what two equal calls differ by, nats.
    """

    drift: float = 0.0
    exact: bool = False
    unstable: bool = False
    in_place: bool = True
    call_noise: float = 0.0
