"""A user's module as a forecaster in the child process that strangers' forecasters have; ``evalkit check`` asks for it.

What is imported here is imported once, before any process knows which module it is for; every fresh forecaster calls
the module's factory again, in a forked copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

import evalkit.prequential.mixed
import evalkit.prequential.sliding  # noqa: F401 - before the fork, so that copies share torch
from evalkit.legality.childhost import ChildFactory
from evalkit.tokens.stream import TokenStream
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.session import Session, open_model

if TYPE_CHECKING:
    from evalkit.prequential.forecaster import Forecaster

_SENT = (
    "module", "weights", "tokenizer", "seq_len", "stride", "mixer", "ttt", "context", "device", "dtype",
    "batch_windows", "threads",
)  # fmt: skip


def child_factory(session: Session) -> ChildFactory:
    """Return what makes the session's forecaster in a child, which is told nothing of where the stream lies."""
    options = {name: getattr(session.options, name) for name in _SENT}
    options["settings"] = {section: dict(values) for section, values in session.options.settings.items()}
    name = f"{__name__}:{make_forecaster.__name__}"
    return ChildFactory(name, {"options": options, "stream_tokens": len(session.stream)}, modules=(__name__,))


def make_forecaster(options: Mapping[str, Any], stream_tokens: int) -> Forecaster:
    """Return a fresh forecaster of a module, for a stream of which only the length is known."""
    session = open_model(ScoreOptions(text="-", **options))
    length_alone = TokenStream(parts=(np.broadcast_to(np.uint16(0), stream_tokens),), names=("-",))
    return replace(session, stream=length_alone).make_forecaster()
