"""Where compiled functions are kept between runs, also in an installation that nobody may write to."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"


def name_cache_folder() -> None:
    """Name a folder for numba's cache in the environment, where numba would find none and refuse to compile.

    Numba keeps compiled functions beside their source or in the user's cache folder. With neither, they go into a
    folder of this user's alone among the temporary files, or into a fresh one if another user holds that name.
    """
    if VARIABLE in os.environ or os.access(Path(__file__).parents[1], os.W_OK) or _has_user_cache():
        return
    folder = Path(tempfile.gettempdir()) / f"evalkit-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        # What is read from a cache is executed: it must be nobody else's.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            os.environ[VARIABLE] = str(folder)
            return
    with suppress(OSError):
        os.environ[VARIABLE] = tempfile.mkdtemp(prefix="evalkit-")


def _has_user_cache() -> bool:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "numba"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
