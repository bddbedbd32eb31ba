"""Token shards: 256 little-endian int32 header words, then little-endian tokens.

Header word 0 is the magic number, word 1 the version, word 2 the number of tokens; the rest is zero. The challenge's
shards hold uint16 tokens (magic 20240520, version 1); llm.c's for large vocabularies hold uint32 (20240801, version 7).
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.errors import TokenError
from evalkit.plumbing.files import write_atomically

HEADER_BYTES = 1024


@dataclass(frozen=True)
class ShardForm:
    """How a shard is written: what its header starts with, and how wide a token is."""

    magic: int
    version: int
    dtype: np.dtype[Any]


FORMS = (ShardForm(20240520, 1, np.dtype("<u2")), ShardForm(20240801, 7, np.dtype("<u4")))


def form_for(vocab_size: int) -> ShardForm:
    """Return the narrowest form that holds every id below ``vocab_size``."""
    return next(form for form in FORMS if vocab_size - 1 <= np.iinfo(form.dtype).max)


def open_shard(path: str | Path) -> npt.NDArray[Any]:
    """Map one shard's tokens (uint16, or uint32) into memory, read-only, after checking its header and size.

    Raises:
        TokenError: the file is missing, is not a shard, or its size is not what its header says.
    """
    path = Path(path)
    if not path.is_file():
        raise TokenError(f"shard {path} does not exist or is not a file")
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise TokenError(f"shard {path} is {size:,} bytes; a shard has a header of {HEADER_BYTES:,}")
    header = np.fromfile(path, dtype="<i4", count=3)
    form = next((form for form in FORMS if (form.magic, form.version) == (int(header[0]), int(header[1]))), None)
    if form is None:
        forms = " or ".join(f"{form.magic}, {form.version}" for form in FORMS)
        raise TokenError(
            f"shard {path} starts with {int(header[0])}, {int(header[1])}; a token shard starts with {forms}"
        )
    count = int(header[2])
    expected = HEADER_BYTES + form.dtype.itemsize * count
    if count < 0 or size != expected:
        raise TokenError(
            f"shard {path} is {size:,} bytes; its header announces {count:,} tokens, which take {expected:,} bytes"
        )
    if count == 0:
        raise TokenError(f"shard {path} holds no tokens")
    return np.memmap(path, dtype=form.dtype, mode="r", offset=HEADER_BYTES, shape=(count,))


def write_shard(path: str | Path, tokens: npt.NDArray[np.integer]) -> None:
    """Write a shard, atomically.

    Raises:
        TokenError: an id does not fit.
        InputError: the file cannot be written.
    """
    form = FORMS[0]
    if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) > np.iinfo(form.dtype).max):
        raise TokenError("a shard holds token ids from 0 to 65,535; some ids are outside")
    header = np.zeros(256, dtype="<i4")
    header[:3] = form.magic, form.version, tokens.size
    write_atomically(path, header.tobytes() + tokens.astype(form.dtype).tobytes())


def find_shards(pattern: str) -> list[Path]:
    """Return the files that a glob pattern matches, sorted by name; a folder means every ``.bin`` file in it.

    Raises:
        TokenError: nothing matches.
    """
    if Path(pattern).is_dir():
        pattern = str(Path(pattern) / "*.bin")
    paths = sorted(Path(match) for match in glob.glob(pattern))
    if not paths:
        raise TokenError(
            f"no shard matches {pattern!r}; give a file, a folder or a quoted glob such as 'data/val_*.bin'"
        )
    return paths
