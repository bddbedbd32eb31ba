"""Where calibration text may come from: training shards or the model's own samples, never validation text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from evalkit.plumbing.errors import InputError

_VALIDATION_NAME = re.compile(r"(^|[^a-z])(val|valid|validation|test|eval)([^a-z]|$)")


def check_calibration_shards(
    paths: Iterable[Path], validation_sha256: Collection[str] = (), *, force: bool = False
) -> list[str]:
    """Refuse shards that look like, or are, validation data.

    Args:
        paths: files that calibration would read.
        validation_sha256: hex digests of known validation shards.
        force: go on all the same.

    Returns:
        What must be said in the report: one sentence for each suspicious shard, empty when there is none.

    Raises:
        InputError: a shard is named or hashed as validation data, and ``force`` is off.
    """
    notes = []
    known = {digest.lower() for digest in validation_sha256}
    for path in paths:
        reason = ""
        if known:
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() in known:
                    reason = "has the SHA-256 of a validation shard"
        if not reason and _VALIDATION_NAME.search(path.name.lower()):
            reason = "is named like a validation shard"
        if reason:
            notes.append(f"calibration shard {path.name} {reason}")
    if notes and not force:
        raise InputError(f"{notes[0]}: calibrate on training shards or on the model's own samples")
    return notes
