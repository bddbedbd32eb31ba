"""Token shards of the challenge: 256 little-endian int32 header words, then little-endian uint16 tokens.

Header word 0 is 20240520, word 1 the version 1, word 2 the number of tokens; the rest is zero.
"""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.errors import TokenError
from evalkit.plumbing.files import write_atomically

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024
_TOKEN = np.dtype("<u2")


def open_shard(path: str | Path) -> npt.NDArray[np.uint16]:
    """Map one shard's tokens into memory, read-only, after checking its header and size.

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
    if header[0] != MAGIC or header[1] != VERSION:
        raise TokenError(
            f"shard {path} starts with {int(header[0])}, {int(header[1])}; a token shard starts with {MAGIC}, {VERSION}"
        )
    count = int(header[2])
    expected = HEADER_BYTES + _TOKEN.itemsize * count
    if count < 0 or size != expected:
        raise TokenError(
            f"shard {path} is {size:,} bytes; its header announces {count:,} tokens, which take {expected:,} bytes"
        )
    if count == 0:
        raise TokenError(f"shard {path} holds no tokens")
    return np.memmap(path, dtype=_TOKEN, mode="r", offset=HEADER_BYTES, shape=(count,))


def write_shard(path: str | Path, tokens: npt.NDArray[np.integer]) -> None:
    """Write a shard, atomically.

    Raises:
        TokenError: an id does not fit.
        InputError: the file cannot be written.
    """
    if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) > np.iinfo(_TOKEN).max):
        raise TokenError("a shard holds token ids from 0 to 65,535; some ids are outside")
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, tokens.size
    write_atomically(path, header.tobytes() + tokens.astype(_TOKEN).tobytes())


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
