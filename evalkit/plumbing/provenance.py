"""Which code a number is of: versions of what it depends on, and the commit of this checkout."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from evalkit.plumbing.version import __version__

PACKAGES = ("torch", "numpy", "numba", "sentencepiece")
"""Packages that a score depends on; what only packs or unpacks (zstandard, constriction) changes no number."""


@dataclass(frozen=True, kw_only=True)
class CodeIdentity:
    """The commit of the checkout that ran.

    Attributes:
        commit: its hash.
        dirty: whether files that the commit holds had been changed.
    """

    commit: str
    dirty: bool


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    return {"evalkit": __version__, "python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def version(name: str) -> str:
    """Return the version of an installed package, ``missing`` where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def code_identity() -> CodeIdentity | None:
    """Return the commit of evalkit's own checkout; None where evalkit is installed, or git cannot say.

    An installation inside somebody's repository is not of that repository: git has to know this very file.
    """
    commit, tracked = _git("rev-parse", "HEAD"), _git("ls-files", Path(__file__).name)
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return CodeIdentity(commit=commit, dirty=bool(changed)) if commit and tracked and changed is not None else None


def _git(*arguments: str) -> str | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
