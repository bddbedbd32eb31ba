"""This process's place among those that ``torchrun`` started, read without importing torch."""

from __future__ import annotations

import os

from evalkit.plumbing.errors import InputError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def place_among_processes() -> tuple[int, int, int]:
    """Return rank, number of processes and place on this machine; ``(0, 1, 0)`` where nothing started several.

    Raises:
        InputError: the variables hold something else than a place.
    """
    values = {name: os.environ.get(name) for name in _NAMES}
    if values["RANK"] is None and values["WORLD_SIZE"] is None:
        return 0, 1, 0
    try:
        rank, count, local_rank = (
            int(values["RANK"] or ""),
            int(values["WORLD_SIZE"] or ""),
            int(values["LOCAL_RANK"] or 0),
        )
    except ValueError:
        found = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise InputError(
            f"{found} in the environment; expected whole numbers, as torchrun sets them, or none of the three"
        ) from None
    if not 0 <= rank < count or local_rank < 0:
        raise InputError(
            f"RANK={rank}, WORLD_SIZE={count}, LOCAL_RANK={local_rank} in the environment are no place among "
            "processes; start them with torchrun, or unset all three"
        )
    return rank, count, local_rank
