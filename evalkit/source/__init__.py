"""The settings of a system, read from its own training script and the log of its run.

Nothing of a script is executed: it is parsed, and followed symbolically.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalkit.plumbing.errors import InputError

if TYPE_CHECKING:
    from evalkit.artifact.load import Artifact
    from evalkit.source.reading import SourceReading


def read_source_of(artifact: Artifact, source: str | None, log: str | None) -> SourceReading | None:
    """Read the script that made an artifact, and the log of its run; None without a script.

    Raises:
        InputError: a file cannot be read, the script is no Python, or there is a log without a script.
    """
    if source is None:
        if log is not None:
            raise InputError("--log goes with --source: a log alone does not say what the model computes")
        return None
    from evalkit.source.reading import read_source

    return read_source(source, () if log is None else (log,), shapes=artifact.shapes)
