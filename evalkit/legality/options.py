"""The settings of an audit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evalkit.plumbing.constants import BUDGET_SECONDS
from evalkit.plumbing.errors import InputError

FALSE_ALARM = 1e-6
"""Probability that an honest forecaster is called illegal by any of the statistical tests of one audit."""


OFFSETS = 256
"""Places of a span from which on the suffix audit replaces the tokens: all of a short one."""


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """How to audit.

    How much an audit does is a number that follows from these settings and the stream; the seconds are an upper limit
    that can only cut it short. With an infinite budget nothing that an audit says depends on a clock.

    Attributes:
        span: Tokens per span; a forecaster's ``next_boundary`` may cut a span shorter.
        budget_seconds: Wall time that the audits may take together: no call begins later.
        seed: Seed of every random choice; the same seed makes the same audit.
        positions: Positions at which a substitution audit asks for every token of the vocabulary; None for as many as
            make about a quarter of a million calls, and fewer where whole rows are stated.
        offsets: Places of a span from which on the suffix audit replaces the tokens, in each of its passes.
        max_tokens: Length of the part of the stream that every audit looks at, from its start.
        stream_tokens: Length of the whole stream, where the tokens at hand are only its beginning.
        call_seconds: How long one call may take before the forecaster counts as hanging.
        workers: Processes, or passes of work, at a time (1 or 2). In-process forecasters use one.
        bytes_per_token: For sizes in bits per byte; None leaves them out.
        stream_files: Files that hold the stream; a stranger's forecaster that opens one reads what it is to predict.
        bos: Id of the token that starts a document; a place where leaks live.
    """

    span: int = 64
    budget_seconds: float = BUDGET_SECONDS
    seed: int = 0
    positions: int | None = None
    offsets: int = OFFSETS
    max_tokens: int = 8192
    stream_tokens: int = 0
    call_seconds: float = 30.0
    workers: int = 2
    bytes_per_token: float | None = None
    stream_files: tuple[str, ...] = ()
    bos: int = 1

    def __post_init__(self) -> None:
        if self.span < 1:
            raise InputError(f"span is {self.span}; a span holds at least one token")
        if not self.budget_seconds > 0:
            raise InputError(f"the budget is {self.budget_seconds} seconds; it must be positive")
        if self.positions is not None and self.positions < 1:
            raise InputError(f"positions is {self.positions}; at least 1 is needed, or None for the usual number")
        if self.offsets < 1:
            raise InputError(f"offsets is {self.offsets}; at least 1 is needed")
        if self.seed < 0:
            raise InputError(f"the seed is {self.seed}; expected 0 or more")
        if self.max_tokens < 2:
            raise InputError(f"max_tokens is {self.max_tokens}; at least 2 are needed to score one")
        if self.workers not in (1, 2):
            raise InputError(f"workers is {self.workers}; it must be 1 or 2")
        if self.bytes_per_token is not None and not self.bytes_per_token > 0:
            raise InputError(f"bytes_per_token is {self.bytes_per_token}; it must be positive")

    @property
    def timed(self) -> bool:
        """Whether the seconds are limited."""
        return math.isfinite(self.budget_seconds)

    def size(self, nats: float) -> dict[str, float | None]:
        """Return a size in nats, in bits, and in bits per byte where the bytes are known."""
        return size_of(nats, self.bytes_per_token)


def size_of(nats: float, bytes_per_token: float | None) -> dict[str, float | None]:
    """Return a size per token in nats, in bits, and in bits per byte where the bytes are known."""
    bits = nats / math.log(2)
    return {"nats": nats, "bits": bits, "bpb": None if bytes_per_token is None else bits / bytes_per_token}
