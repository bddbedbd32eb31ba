"""evalkit's own container: stored tensors and what is needed to use them, entropy-coded and checksummed.

Layout of the bytes::

    8   magic, 0x89 "evalkit"
    1   version, 1
    32  SHA-256 of everything that follows
    4   length of the header, little endian
    ..  header: canonical JSON (sorted keys, no spaces, UTF-8), LZMA-compressed
    ..  payload: one range-coded stream that holds every tensor in the order of the header (sorted by name)

There is no pickle. The same tensors and metadata give the same bytes; nothing in them depends on time, host or path.
Every size is checked against a bound before memory is taken, and decoding ends after the declared number of values
whatever the bytes are.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from evalkit.artifact.entropy import floats, integers, prediction, rangecoder
from evalkit.artifact.tensors import INT_BITS, PlainTensor, QuantizedTensor, StoredTensor
from evalkit.plumbing.errors import ArtifactError, InputError
from evalkit.plumbing.typed_json import refuse_constant

MAGIC = b"\x89evalkit"
VERSION = 1
DEFAULT_MAX_BYTES = 1 << 30
_PREFIX = len(MAGIC) + 1 + 32 + 4
_MAX_HEADER = 1 << 20
_MAX_TENSORS = 1 << 14
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 1 << 40  # of the dimensions that are not 0: numpy refuses shapes beyond its own bound
_MAX_GROUPS = 256  # further groups of floats share one set of tables, which bounds the memory
# A payload of n bytes may declare this many values plus as many again per byte; the writer pads to keep the promise.
_FREE_VALUES = 1 << 20
_VALUES_PER_BYTE = 4096
_HEADER_FILTERS = [{"id": lzma.FILTER_LZMA1, "preset": 9, "dict_size": 1 << 20, "lc": 3, "lp": 0, "pb": 0}]

# How the integers of a tensor are coded: within [-32, 31]; any int8; any int8 by the residuals of linear prediction.
NARROW, WIDE, PREDICTED = 0, 1, 2
_MAX_PREDICTION_WORK = 2 * prediction.MAX_WORK  # of a whole artifact

_MODEL_DTYPES = ("float32", "bfloat16")
_NUMPY_OF = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32}


@dataclass(frozen=True, kw_only=True)
class NativeMetadata:
    """What an artifact says about itself.

    Attributes:
        config: every field of the model's configuration, JSON values only.
        recipe: how it was trained and exported, JSON values only.
        tokenizer_sha256: hex digest of the tokenizer's model file, or "" when unknown.
        evalkit_version: version that wrote the artifact.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_sha256: str = ""
    evalkit_version: str = ""


@dataclass(frozen=True, kw_only=True)
class NativeArtifact:
    """An artifact that was read.

    Attributes:
        tensors: name to stored tensor, sorted by name.
        metadata: the artifact's own description.
        payload_bytes: bytes each tensor took, with all that it brings (integers and scales), by name.
    """

    tensors: dict[str, StoredTensor]
    metadata: NativeMetadata
    payload_bytes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One tensor's line in the header."""

    name: str
    kind: str  # "q" or "p"
    shape: tuple[int, ...]
    dtype: str
    stored: str  # format of the values (plain) or of the scale (quantised)
    bits: int = 0
    mode: int = NARROW
    scalar_scale: bool = False

    def to_json(self) -> list[Any]:
        line: list[Any] = [self.name, self.kind, list(self.shape), self.dtype, self.stored]
        return [*line, self.bits, self.mode, int(self.scalar_scale)] if self.kind == "q" else line

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape the coder sees: rows by all the rest; vectors are columns of one value each row."""
        if not self.shape:
            return (1, 1)
        return (self.shape[0], self.count // self.shape[0] if self.shape[0] else 0)

    @property
    def wide(self) -> bool:
        return self.mode != NARROW

    @property
    def prediction_work(self) -> int:
        return prediction.prediction_work(self.matrix_shape) if self.mode == PREDICTED else 0

    @property
    def scale_count(self) -> int:
        if self.kind != "q":
            return 0
        return 1 if self.scalar_scale else self.shape[0]

    @property
    def n_bytes(self) -> int:
        itemsize = 1 if self.kind == "q" else np.dtype(_NUMPY_OF[self.stored]).itemsize
        return self.count * itemsize + 4 * self.scale_count


class _Tables:
    """The adaptive tables of a stream, made when a group is first met."""

    def __init__(self) -> None:
        self.codes = integers.make_code_bank()
        self.float_codes = integers.make_code_bank()
        self._integers: dict[tuple[int, bool], integers.IntegerTables] = {}
        self._floats: dict[tuple[str, str], floats.FloatTables] = {}

    def for_integers(self, entry: _Entry) -> integers.IntegerTables:
        key = (entry.bits, entry.wide)
        if key not in self._integers:
            self._integers[key] = integers.make_tables(entry.wide)
        return self._integers[key]

    def for_floats(self, entry: _Entry) -> floats.FloatTables:
        key = (_float_group(entry), entry.stored)
        if key not in self._floats and len(self._floats) >= _MAX_GROUPS:
            key = ("", entry.stored)
        if key not in self._floats:
            self._floats[key] = floats.make_tables()
        return self._floats[key]


def _float_group(entry: _Entry) -> str:
    """Return the group that shares its tables: of other than matrices, a name with layer numbers taken out."""
    if entry.kind == "q":
        return "scale"
    return "matrix" if min(entry.matrix_shape) >= 8 else re.sub(r"\d+", "#", entry.name)


Modes = dict[str, tuple[npt.NDArray[np.int8], int]]
"""By tensor name, integers and how they are best coded, which is measured."""


def write_native(tensors: Mapping[str, StoredTensor], metadata: NativeMetadata, *, modes: Modes | None = None) -> bytes:
    """Return the artifact's bytes.

    Args:
        tensors: what it holds.
        metadata: what it says about itself.
        modes: what was measured for an earlier artifact; taken where a tensor holds the same array, and brought up to
            date. Arrays that are in it must not be modified.

    Raises:
        InputError: a tensor is not what :mod:`evalkit.artifact.tensors` says, or the metadata is not JSON.
    """
    measured = {} if modes is None else modes
    entries = [_entry_of(name, tensors[name], measured) for name in sorted(tensors)]
    header = _header_bytes(entries, metadata)
    coder = rangecoder.make_encoder()
    tables = _Tables()
    for entry in entries:
        _encode_tensor(coder, tables, entry, tensors[entry.name])
    payload = rangecoder.finish(coder)
    values = sum(e.count + e.scale_count for e in entries)
    payload = payload.ljust(-(-max(0, values - _FREE_VALUES) // _VALUES_PER_BYTE), b"\0")
    body = len(header).to_bytes(4, "little") + header + payload
    return MAGIC + bytes([VERSION]) + hashlib.sha256(body).digest() + body


def is_native(data: bytes) -> bool:
    """Return whether the bytes begin like an artifact of this container."""
    return data[: len(MAGIC)] == MAGIC


def read_native(data: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES) -> NativeArtifact:
    """Read an artifact's bytes; the decoded tensors may take ``max_bytes`` of memory together.

    Raises:
        ArtifactError: the bytes are not such an artifact, are damaged, or declare more than ``max_bytes``.
    """
    header, payload = _checked_parts(data)
    entries, metadata = _parse_header(header)
    total = sum(e.n_bytes for e in entries)
    if total > max_bytes:
        raise ArtifactError(f"the artifact declares {total} bytes of tensors, more than the limit of {max_bytes}")
    values = sum(e.count + e.scale_count for e in entries)
    if values > _FREE_VALUES + _VALUES_PER_BYTE * len(payload):
        raise ArtifactError(f"the artifact declares {values} values, more than its {len(payload)} bytes can hold")
    work = [e.prediction_work for e in entries]
    if max(work, default=0) > prediction.MAX_WORK or sum(work) > _MAX_PREDICTION_WORK:
        raise ArtifactError("the artifact asks for more prediction than any model's tables need")
    coder = rangecoder.make_decoder(payload)
    tables = _Tables()
    tensors: dict[str, StoredTensor] = {}
    spent: dict[str, int] = {}
    for entry in entries:
        before = int(coder.state[2])
        tensors[entry.name] = _decode_tensor(coder, tables, entry)
        spent[entry.name] = 4 * (int(coder.state[2]) - before)
    return NativeArtifact(tensors=tensors, metadata=metadata, payload_bytes=spent)


def _entry_of(name: str, tensor: StoredTensor, modes: Modes) -> _Entry:
    if tensor.dtype not in _MODEL_DTYPES:
        raise InputError(f"tensor {name}: dtype {tensor.dtype!r} is none of {', '.join(_MODEL_DTYPES)}")
    if tensor.values.ndim > _MAX_DIMENSIONS:
        raise InputError(f"tensor {name} has {tensor.values.ndim} dimensions, more than {_MAX_DIMENSIONS}")
    shape = tuple(int(n) for n in tensor.values.shape)
    if isinstance(tensor, PlainTensor):
        expected = {"float16": np.float16, "float32": np.float32, "bfloat16": np.uint16}.get(tensor.stored)
        if expected is None or tensor.values.dtype != expected:
            raise InputError(f"tensor {name}: {tensor.values.dtype} values do not hold {tensor.stored!r}")
        return _Entry(name=name, kind="p", shape=shape, dtype=tensor.dtype, stored=tensor.stored)
    if tensor.values.dtype != np.int8 or not shape:
        raise InputError(f"tensor {name}: quantised values must be int8 with at least one dimension")
    if tensor.bits not in INT_BITS:
        raise InputError(f"tensor {name}: {tensor.bits} bits is none of {INT_BITS}")
    if tensor.scale.dtype not in (np.float16, np.float32) or tensor.scale.shape not in ((), shape[:1]):
        raise InputError(
            f"tensor {name}: the scale must be float16 or float32 of shape () or {shape[:1]}, "
            f"not {tensor.scale.dtype} of shape {tensor.scale.shape}"
        )
    known = modes.get(name)
    if known is None or known[0] is not tensor.values:
        modes[name] = known = tensor.values, _mode_of(tensor.values)
    return _Entry(
        name=name,
        kind="q",
        shape=shape,
        dtype=tensor.dtype,
        stored=str(tensor.scale.dtype),
        bits=tensor.bits,
        mode=known[1],
        scalar_scale=tensor.scale.ndim == 0,
    )


def _mode_of(values: npt.NDArray[np.int8]) -> int:
    """Choose how integers are coded: by prediction where that is affordable, plausible and measured to be smaller."""
    if not values.size:
        return NARROW
    wide = bool(values.min() < -32 or values.max() > 31)
    plain = WIDE if wide else NARROW
    matrix = np.ascontiguousarray(values).reshape(values.shape[0], -1)
    rows, cols = matrix.shape
    table = min(rows, cols) >= 8 and (wide or rows >= 4 * cols)
    if not table or prediction.prediction_work((rows, cols)) > prediction.MAX_WORK:
        return plain
    saved = _coded_size(matrix, wide) - _coded_size(prediction.residuals(matrix), True)
    return PREDICTED if saved > 0 else plain


def _coded_size(matrix: npt.NDArray[np.int8], wide: bool) -> int:
    coder = rangecoder.make_encoder()
    integers.encode_matrix(coder, integers.make_code_bank(), integers.make_tables(wide), matrix, wide)
    return len(rangecoder.finish(coder))


def _header_bytes(entries: list[_Entry], metadata: NativeMetadata) -> bytes:
    content = {**vars(metadata), "tensors": [e.to_json() for e in entries]}
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        raw = text.encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"the artifact's metadata cannot be written as JSON: {error}") from error
    if len(raw) > _MAX_HEADER:
        raise InputError(f"the artifact's header has {len(raw)} bytes, more than {_MAX_HEADER}")
    return lzma.compress(raw, format=lzma.FORMAT_RAW, filters=_HEADER_FILTERS)


def _bits_of(values: npt.NDArray[Any], stored: str) -> npt.NDArray[np.uint32]:
    contiguous = np.ascontiguousarray(values).reshape(values.shape)
    return contiguous.view(_NUMPY_OF[stored]).astype(np.uint32)


def _values_of(bits: npt.NDArray[np.uint32], stored: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    narrow = bits.astype(_NUMPY_OF[stored]).reshape(shape)
    return narrow if stored == "bfloat16" else narrow.view(np.dtype(stored))


def _encode_floats(coder: rangecoder.Coder, tables: _Tables, entry: _Entry, bits: npt.NDArray[np.uint32]) -> None:
    floats.encode_bits(coder, tables.float_codes, tables.for_floats(entry), bits, entry.stored)


def _encode_tensor(coder: rangecoder.Coder, tables: _Tables, entry: _Entry, tensor: StoredTensor) -> None:
    rows, cols = entry.matrix_shape
    if isinstance(tensor, QuantizedTensor):
        if entry.scale_count:
            scale = _bits_of(tensor.scale, entry.stored).reshape(-1, 1)
            _encode_floats(coder, tables, entry, scale)
        if entry.count:
            values = np.ascontiguousarray(tensor.values).reshape(rows, cols)
            if entry.mode == PREDICTED:
                values = prediction.residuals(values)
            integers.encode_matrix(coder, tables.codes, tables.for_integers(entry), values, entry.wide)
    elif entry.count:
        _encode_floats(coder, tables, entry, _bits_of(tensor.values, entry.stored).reshape(rows, cols))


def _decode_tensor(coder: rangecoder.Coder, tables: _Tables, entry: _Entry) -> StoredTensor:
    def decode_floats(shape: tuple[int, int]) -> npt.NDArray[np.uint32]:
        return floats.decode_bits(coder, tables.float_codes, tables.for_floats(entry), shape, entry.stored)

    if entry.kind == "p":
        bits = decode_floats(entry.matrix_shape) if entry.count else np.zeros(0, dtype=np.uint32)
        values = _values_of(bits, entry.stored, entry.shape)
        return PlainTensor(values=values, stored=entry.stored, dtype=entry.dtype)
    scale_shape: tuple[int, ...] = () if entry.scalar_scale else entry.shape[:1]
    scale_bits = decode_floats((entry.scale_count, 1)) if entry.scale_count else np.zeros(0, dtype=np.uint32)
    scale = _values_of(scale_bits, entry.stored, scale_shape)
    if entry.count:
        matrix = integers.decode_matrix(coder, tables.codes, tables.for_integers(entry), entry.matrix_shape, entry.wide)
        if entry.mode == PREDICTED:
            matrix = prediction.restore(matrix)
    else:
        matrix = np.zeros(0, dtype=np.int8)
    return QuantizedTensor(values=matrix.reshape(entry.shape), scale=scale, bits=entry.bits, dtype=entry.dtype)


def _checked_parts(data: bytes) -> tuple[bytes, bytes]:
    """Return header (compressed) and payload after checking magic, version, digest and length."""
    if not is_native(data):
        raise ArtifactError("not an evalkit artifact: the magic bytes are missing")
    if len(data) < _PREFIX:
        raise ArtifactError(f"the artifact is cut short: {len(data)} bytes, at least {_PREFIX} expected")
    version = data[len(MAGIC)]
    if version != VERSION:
        raise ArtifactError(f"the artifact has format version {version}; this evalkit reads version {VERSION}")
    digest, body = data[len(MAGIC) + 1 : len(MAGIC) + 33], data[len(MAGIC) + 33 :]
    if hashlib.sha256(body).digest() != digest:
        raise ArtifactError("the artifact is damaged: its SHA-256 does not match its content")
    length = int.from_bytes(body[:4], "little")
    if length > len(body) - 4:
        raise ArtifactError(f"the artifact declares a header of {length} bytes and holds {len(body) - 4}")
    return body[4 : 4 + length], body[4 + length :]


def _parse_header(compressed: bytes) -> tuple[list[_Entry], NativeMetadata]:
    try:
        reader = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_HEADER_FILTERS)
        raw = reader.decompress(compressed, max_length=_MAX_HEADER + 1)
        if len(raw) > _MAX_HEADER:
            raise ArtifactError(f"the artifact's header is longer than {_MAX_HEADER} bytes")
        content = json.loads(raw.decode(), parse_constant=refuse_constant)
    except (lzma.LZMAError, UnicodeDecodeError, ValueError, RecursionError, EOFError) as error:
        raise ArtifactError(f"the artifact's header cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ArtifactError("the artifact's header is not a JSON object")
    wanted: dict[str, type] = {
        "config": dict,
        "evalkit_version": str,
        "recipe": dict,
        "tensors": list,
        "tokenizer_sha256": str,
    }
    for key, kind in wanted.items():
        if not isinstance(content.get(key), kind):
            raise ArtifactError(f"the artifact's header lacks {key!r} or holds another type than {kind.__name__}")
    lines = content["tensors"]
    if len(lines) > _MAX_TENSORS:
        raise ArtifactError(f"the artifact declares {len(lines)} tensors, more than {_MAX_TENSORS}")
    entries = [_parse_entry(line) for line in lines]
    names = [e.name for e in entries]
    if any(a >= b for a, b in pairwise(names)):
        raise ArtifactError("the artifact's tensors are not sorted by name, or a name occurs twice")
    return entries, NativeMetadata(**{name: content[name] for name in wanted if name != "tensors"})


def _parse_entry(line: Any) -> _Entry:
    if not isinstance(line, list) or len(line) < 5 or not isinstance(line[0], str):
        raise ArtifactError("a tensor's line in the artifact's header is malformed")
    name, kind, shape, dtype, stored = line[:5]
    problem = f"tensor {name[:80]!r} in the artifact's header"
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        raise ArtifactError(f"{problem} has no shape of at most {_MAX_DIMENSIONS} dimensions")
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise ArtifactError(f"{problem} has a dimension that is not a size")
    if math.prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:
        raise ArtifactError(f"{problem} has more than {_MAX_ELEMENTS} elements")
    if dtype not in _MODEL_DTYPES:
        raise ArtifactError(f"{problem} has an unknown dtype")
    if kind == "p" and len(line) == 5 and stored in ("float16", "bfloat16", "float32"):
        return _Entry(name=name, kind="p", shape=tuple(shape), dtype=dtype, stored=stored)
    if kind == "q" and len(line) == 8 and stored in ("float16", "float32") and shape:
        bits, mode, scalar_scale = line[5:]
        if bits in INT_BITS and mode in (NARROW, WIDE, PREDICTED) and scalar_scale in (0, 1):
            return _Entry(
                name=name,
                kind="q",
                shape=tuple(shape),
                dtype=dtype,
                stored=stored,
                bits=int(bits),
                mode=int(mode),
                scalar_scale=bool(scalar_scale),
            )
    raise ArtifactError(f"{problem} is of no known kind")
