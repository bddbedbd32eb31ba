"""Token shards: 256 little-endian int32 header words, then little-endian tokens.

Header word 0 is the magic number, word 1 the version, word 2 the number of tokens; the rest is zero. The challenge's
shards hold uint16 tokens (magic 20240520, version 1); llm.c's for large vocabularies hold uint32 (20240801, version 7).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.errors import TokenError
from evalkit.plumbing.files import expand, in_order, no_match, write_atomically
from evalkit.tokens.texts import open_input

HEADER_BYTES = 1024
PACKED = (".bin.gz", ".bin.zst")
NAMES = (".bin", *PACKED)
_NAME = re.compile(r"(?:^|[_.-])(train|val)(?:id|idation)?(?:[_.-]?\d+)?\.bin(?:\.gz|\.zst)?$")
_BLOCK = 2**20


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

    A shard packed with gzip or zstd is inflated into a temporary file without a name, as far as its header announces.

    Raises:
        TokenError: the file is missing, is not a shard, or its size is not what its header says.
    """
    path = Path(path)
    if not path.is_file():
        raise TokenError(f"shard {path} does not exist or is not a file")
    if path.name.endswith(PACKED):
        return _open_packed(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        form, count = _read_header(path, file.read(HEADER_BYTES), size)
    expected = HEADER_BYTES + form.dtype.itemsize * count
    if size != expected:
        raise TokenError(
            f"shard {path} is {size:,} bytes; its header announces {count:,} tokens, which take {expected:,} bytes"
        )
    return np.memmap(path, dtype=form.dtype, mode="r", offset=HEADER_BYTES, shape=(count,))


def _open_packed(path: Path) -> npt.NDArray[Any]:
    with open_input(path) as packed, tempfile.TemporaryFile(prefix="evalkit-") as file:
        form, count = _read_header(path, packed.read(HEADER_BYTES), path.stat().st_size)
        expected = form.dtype.itemsize * count
        while piece := packed.read(min(_BLOCK, expected + 1 - file.tell())):
            file.write(piece)
        if file.tell() != expected:
            more = "more" if file.tell() > expected else f"only {file.tell():,}"
            raise TokenError(
                f"shard {path}: its header announces {count:,} tokens, which take {expected:,} bytes; it holds {more}"
            )
        file.flush()
        return np.memmap(file, dtype=form.dtype, mode="r", shape=(count,))


def _read_header(path: Path, content: bytes, size: int) -> tuple[ShardForm, int]:
    """Return a shard's form and its number of tokens."""
    if len(content) < HEADER_BYTES:
        raise TokenError(f"shard {path} is {size:,} bytes; a shard has a header of {HEADER_BYTES:,}")
    header = np.frombuffer(content, dtype="<i4", count=3)
    form = next((form for form in FORMS if (form.magic, form.version) == (int(header[0]), int(header[1]))), None)
    if form is None:
        forms = " or ".join(f"{form.magic}, {form.version}" for form in FORMS)
        raise TokenError(
            f"shard {path} starts with {int(header[0])}, {int(header[1])}; a token shard starts with {forms}"
        )
    count = int(header[2])
    if count < 0:
        raise TokenError(f"shard {path}: its header announces {count:,} tokens; it is damaged")
    if count == 0:
        raise TokenError(f"shard {path} holds no tokens")
    return form, count


def is_shard(head: bytes) -> bool:
    """Whether a file that starts so is a token shard."""
    return any(head[:8] == np.array([form.magic, form.version], dtype="<i4").tobytes() for form in FORMS)


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


def find_shards(pattern: str | Sequence[str]) -> list[Path]:
    """Return the files that a name or glob pattern stands for, in the order of the numbers in their names.

    Several patterns give their files one after another.

    A folder means every shard in it: ``.bin``, or such a file packed with gzip or zstd.

    Raises:
        TokenError: nothing matches, or a shard is there twice, packed and as it is.
    """
    paths: list[Path] = []
    for one in [pattern] if isinstance(pattern, str) else pattern:
        found = expand(one)
        if len(found) == 1 and found[0].is_dir():
            found = sorted((path for path in found[0].iterdir() if path.name.endswith(NAMES)), key=in_order)
        if not found:
            raise TokenError(no_match(one))
        paths += found
    plain: dict[str, Path] = {}
    for path in paths:
        name = re.sub(r"\.(?:gz|zst)$", "", str(path))
        if name in plain:
            raise TokenError(f"{plain[name]} and {path} are one shard, packed and as it is; name one of them")
        plain[name] = path
    return paths


def split_of(path: Path) -> str | None:
    """Return whether a shard is ``train`` or ``val``, or None if nothing says so.

    The folder's ``manifest.json``, as ``evalkit data tokenize`` writes it, decides; else the exact form of the name,
    ``train`` or ``val`` as its last word before the number: ``pretrain_val_000000.bin`` is of ``val``.
    """
    stated = _manifest_splits(path.parent).get(path.name)
    if stated is not None:
        return stated
    found = _NAME.search(path.name)
    return found[1] if found else None


def _manifest_splits(folder: Path) -> dict[str, str]:
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        return {
            str(shard["name"]): split
            for split in ("train", "val")
            for shard in manifest["splits"].get(split, {}).get("shards", ())
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # another program's manifest


def require_one_split(paths: list[Path]) -> None:
    """Refuse to read training and validation shards as one stream.

    Raises:
        TokenError: both are there.
    """
    first: dict[str, Path] = {}
    for path in paths:
        split = split_of(path)
        if split is not None:
            first.setdefault(split, path)
    if len(first) > 1:
        raise TokenError(
            f"{first['train']} is a training shard and {first['val']} a validation shard: they are no one text; name "
            f"one kind, such as '{first['val'].parent}/*_val_*.bin'"
        )
