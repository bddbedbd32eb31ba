"""The logger of evalkit: INFO for the stages of a long run, DEBUG for what was chosen, why, and how long it took.

Silent in programs that do not ask for it (``logging.getLogger("evalkit").setLevel(...)``); the command line shows INFO,
and DEBUG with ``--verbose``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOG = logging.getLogger("evalkit")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long a ``with`` block took, as DEBUG."""
    began = time.monotonic()
    yield
    LOG.debug("%s: %.2f s", what, time.monotonic() - began)
