"""How the parts of a forward pass are run: as they are written, or compiled, once for all parts that are alike.

Compiling a whole network takes a time that grows with its depth, though its blocks are copies of a few kinds. So the
parts are compiled one by one ("regional compilation"): a part is a function, and blocks of one kind share what was
compiled for the first of them. What differs between blocks of a kind must reach them as a tensor, not as a number.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from evalkit.plumbing.hardware import cache_root

F = TypeVar("F", bound=Callable[..., Any])

KINDS = 64
"""Kinds of blocks that one part may be compiled for; torch gives up at 8, which layers of two models reach."""


class Regions:
    """Every part as it is written: what is called in place of a part is the part itself."""

    compiled = False

    def __call__(self, part: F) -> F:
        """Return what to call."""
        return part


EAGER = Regions()


class Compiled(Regions):
    """Every part compiled, each for the shapes that it meets, by a backend of ``torch.compile``."""

    compiled = True

    def __init__(self, backend: str = "inductor") -> None:
        self._backend = backend
        self._parts: dict[Callable[..., Any], Callable[..., Any]] = {}
        keep_compilations()

    def __call__(self, part: F) -> F:
        """Return the compiled part."""
        if part not in self._parts:
            compiler: Any = torch.compile  # whose type does not know its last argument
            self._parts[part] = compiler(
                part, dynamic=False, fullgraph=True, backend=self._backend, recompile_limit=KINDS
            )
        return cast(F, self._parts[part])


def keep_compilations() -> None:
    """Have compilations kept where a restart of the machine leaves them, unless the user named a place."""
    folder = cache_root() / "inductor"
    if os.access(next(path for path in folder.parents if path.exists()), os.W_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
