"""Read the files that ``torch.save`` writes, without torch and without executing anything in them.

The file is a zip that holds one pickle and one member for each storage. Before 2020 it was a row of pickles with the
storages behind them: magic number, version, machine, the object, the storages' keys; each storage is its length and its
values. The pickle is scanned first: only opcodes that build plain
containers are let through, and the only names that it may refer to are replaced by functions of this module.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.plumbing.errors import ArtifactError

_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_PICKLE_BYTES = 16 * 2**20
_MAX_MEMBERS = 20_000
_OPCODES = frozenset(
    """
    PROTO STOP MARK POP POP_MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND
    APPENDS BININT BININT1 BININT2 LONG1 BINFLOAT NONE NEWTRUE NEWFALSE BINUNICODE SHORT_BINUNICODE BINPUT BINGET
    LONG_BINPUT LONG_BINGET GLOBAL REDUCE BUILD BINPERSID
    """.split()  # noqa: SIM905
)
_DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "FloatStorage": ("float32", np.dtype("<f4")),
    "DoubleStorage": ("float64", np.dtype("<f8")),
    "HalfStorage": ("float16", np.dtype("<f2")),
    "BFloat16Storage": ("bfloat16", np.dtype("<u2")),
    "CharStorage": ("int8", np.dtype("i1")),
    "ByteStorage": ("uint8", np.dtype("u1")),
    "ShortStorage": ("int16", np.dtype("<i2")),
    "IntStorage": ("int32", np.dtype("<i4")),
    "LongStorage": ("int64", np.dtype("<i8")),
    "BoolStorage": ("bool", np.dtype("?")),
    "ComplexFloatStorage": ("complex64", np.dtype("<c8")),
}


@dataclass(frozen=True)
class RawTensor:
    """A tensor of the file: its values, and the name of its dtype (bfloat16 values are given as their 16 bits)."""

    values: npt.NDArray[Any]
    dtype: str


@dataclass(frozen=True)
class _Storage:
    data: npt.NDArray[Any]
    dtype: str


@dataclass(frozen=True)
class _StorageType:
    name: str


class _Mapping(dict[str, Any]):
    """Stands in for OrderedDict; attributes that a state dict carries (``_metadata``) are dropped."""

    def __setstate__(self, state: object) -> None:
        """Ignore the attributes."""


def is_torch_file(data: bytes) -> bool:
    """Whether the bytes start as what ``torch.save`` writes, now or before 2020."""
    return data[:4] == b"PK\x03\x04" or data.startswith(_OLD_MAGIC)


def read_torch_file(data: bytes) -> Any:
    """Return the object that was saved: dicts, lists, strings, numbers and :class:`RawTensor`.

    Raises:
        ArtifactError: the file is damaged, or asks for anything but plain containers and tensors.
    """
    try:
        return _read_old(data) if data.startswith(_OLD_MAGIC) else _read(data)
    except ArtifactError:
        raise
    except (Exception, MemoryError) as error:  # zipfile and pickle raise a dozen kinds of error on damaged input
        reason = str(error) or type(error).__name__
        raise ArtifactError(f"not a readable torch file ({reason}); expected what torch.save writes") from None


def _read(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) > _MAX_MEMBERS:
            raise ArtifactError(f"the torch file has {len(members):,} members; expected at most {_MAX_MEMBERS:,}")
        for member in members.values():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ArtifactError(f"member {member.filename!r} is compressed; torch.save stores members as they are")
        if sum(member.file_size for member in members.values()) > len(data):
            raise ArtifactError("the torch file's members are larger than the file; it is damaged")
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise ArtifactError(f"the torch file holds {len(pickles)} objects; expected 1 (a member NAME/data.pkl)")
        root = pickles[0].removesuffix("data.pkl")
        byte_order = archive.read(root + "byteorder") if root + "byteorder" in members else b"little"
        if byte_order != b"little":
            raise ArtifactError(f"the torch file's byte order is {byte_order!r}; expected b'little'")
        if members[pickles[0]].file_size > _MAX_PICKLE_BYTES:
            raise ArtifactError("the torch file's index is larger than 16 MiB; expected a few kilobytes")
        index = archive.read(pickles[0])
        _scan(index)
        return _Unpickler(index, lambda key: archive.read(f"{root}data/{key}")).load()


def _read_old(data: bytes) -> Any:
    pickles: list[bytes] = []
    file = io.BytesIO(data)
    while len(pickles) < 5:
        start = file.tell()
        for _ in pickletools.genops(file):
            if file.tell() - start > _MAX_PICKLE_BYTES:
                raise ArtifactError("the torch file's index is larger than 16 MiB; expected a few kilobytes")
        pickles.append(data[start : file.tell()])
        _scan(pickles[-1])
    index, position = pickles[3], file.tell()
    storages = _StorageSizes(index)
    storages.load()
    contents: dict[str, bytes] = {}
    for key in _Unpickler(pickles[4], lambda key: b"").load():
        count = int.from_bytes(data[position : position + 8], "little")
        stop = position + 8 + count * storages.sizes.get(key, 0)
        if key not in storages.sizes or stop > len(data):
            raise ArtifactError(f"the torch file ends inside storage {key}; it is cut short or damaged")
        contents[key], position = data[position + 8 : stop], stop
    return _Unpickler(index, contents.__getitem__).load()


def _scan(index: bytes) -> None:
    """Check every opcode before anything is interpreted."""
    for opcode, argument, position in pickletools.genops(index):
        if opcode.name not in _OPCODES:
            raise ArtifactError(f"the torch file's index uses {opcode.name}, which no plain container of tensors needs")
        if opcode.name == "LONG_BINPUT" and (argument or 0) > len(index):
            raise ArtifactError(f"the torch file's index is damaged at byte {position}: memo entry {argument}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, index: bytes, read: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(index), encoding="utf-8")
        self._read = read
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Mapping
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in _DTYPES:
            return _StorageType(name)
        raise ArtifactError(
            f"the file refers to {module}.{name}; an artifact may hold tensors, dicts, lists, strings and numbers only"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _location, count = pid[:5]
        if len(pid) > 5 and pid[5] is not None:
            raise ArtifactError("the torch file's storages overlap, as torch before 0.4 wrote them; save it again")
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise ArtifactError("the torch file's index refers to something that is not a tensor's storage")
        if key not in self._storages:
            label, dtype = _DTYPES[storage_type.name]
            content = self._read(key)
            if len(content) != count * dtype.itemsize:
                raise ArtifactError(
                    f"storage {key} holds {len(content):,} bytes; {count:,} values of {label} take "
                    f"{count * dtype.itemsize:,}"
                )
            self._storages[key] = _Storage(np.frombuffer(content, dtype=dtype), label)
        return self._storages[key]


class _StorageSizes(_Unpickler):
    """Goes through an index for the bytes of a value of each storage, without any storage at hand."""

    def __init__(self, index: bytes) -> None:
        super().__init__(index, lambda key: b"")
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return found if isinstance(found, _StorageType) or found is _Mapping else lambda *arguments: None

    def persistent_load(self, pid: Any) -> Any:
        _kind, storage_type, key, *_rest = pid
        if not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise ArtifactError("the torch file's index refers to something that is not a tensor's storage")
        self.sizes[key] = _DTYPES[storage_type.name][1].itemsize


def _rebuild_tensor(
    storage: _Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    backward_hooks: object = None,
    metadata: object = None,
) -> RawTensor:
    del requires_grad, backward_hooks, metadata
    if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > 8:
        raise ArtifactError("the torch file's index describes a tensor that cannot be built")
    if any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise ArtifactError(f"a tensor has shape {size}, strides {stride} and offset {offset}; it is damaged")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
    if count > len(storage.data) or (count and last >= len(storage.data)):
        raise ArtifactError(f"a tensor of shape {size} does not fit into its storage of {len(storage.data):,} values")
    item = storage.data.itemsize
    view = np.lib.stride_tricks.as_strided(
        storage.data[offset:], shape=size, strides=[step * item for step in stride], writeable=False
    )
    return RawTensor(np.ascontiguousarray(view).reshape(size), storage.dtype)


def _rebuild_parameter(data: RawTensor, requires_grad: bool = False, backward_hooks: object = None) -> RawTensor:
    del requires_grad, backward_hooks
    if not isinstance(data, RawTensor):
        raise ArtifactError("the torch file's index describes a parameter that is not a tensor")
    return data
