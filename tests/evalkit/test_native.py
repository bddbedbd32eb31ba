"""evalkit's container: exact round trips, reproducible bytes, bounded and polite on hostile input."""

from __future__ import annotations

import hashlib
import lzma
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.artifact import native
from evalkit.artifact.entropy import prediction
from evalkit.artifact.load import load_artifact
from evalkit.artifact.native import NativeMetadata, read_native, write_native
from evalkit.artifact.tensors import PlainTensor, QuantizedTensor, StoredTensor
from evalkit.plumbing.errors import ArtifactError, InputError

PARITY = Path(__file__).resolve().parents[2] / "../shared/parity"
METADATA = NativeMetadata(
    config={"num_layers": 2, "rope_base": 1e4, "name": "ü"},
    recipe={"steps": [1, 2], "nested": {"a": None}},
    tokenizer_sha256="ab" * 32,
    evalkit_version="0.1.0",
)

shapes = st.lists(st.integers(0, 12), min_size=0, max_size=4).map(tuple)


@st.composite
def stored_tensors(draw: Any) -> StoredTensor:
    shape = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    dtype = draw(st.sampled_from(["float32", "bfloat16"]))
    kind = draw(st.sampled_from(["q", "float16", "bfloat16", "float32"]))
    if kind == "q" and shape:
        spread = draw(st.sampled_from([0.0, 0.3, 5.0, 60.0]))
        values = np.clip(np.rint(rng.normal(0, spread, shape)), -128, 127).astype(np.int8)
        scale_shape = draw(st.sampled_from([(), shape[:1]]))
        scale = np.asarray(rng.random(scale_shape)).astype(draw(st.sampled_from([np.float16, np.float32])))
        return QuantizedTensor(values=values, scale=scale, bits=draw(st.integers(4, 8)), dtype=dtype)
    stored = kind if kind != "q" else "float16"
    if draw(st.booleans()):  # every bit pattern: infinities, NaN, subnormals, -0
        wide = rng.integers(0, 1 << 32, shape, dtype=np.uint64)
        bits = np.asarray(wide & (0xFFFFFFFF if stored == "float32" else 0xFFFF))
        raw = bits.astype(np.uint32 if stored == "float32" else np.uint16)
        values = raw if stored == "bfloat16" else raw.view(stored)
    else:
        values = np.asarray(rng.normal(0, 1, shape)).astype(np.float32)
        high_half = (values.view(np.uint32) >> 16).astype(np.uint16)
        values = high_half if stored == "bfloat16" else values.astype(stored)
    return PlainTensor(values=values, stored=stored, dtype=dtype)


def assert_same(a: StoredTensor, b: StoredTensor) -> None:
    assert type(a) is type(b)
    assert (a.values.dtype, a.values.shape, a.dtype) == (b.values.dtype, b.values.shape, b.dtype)
    assert a.values.tobytes() == b.values.tobytes()
    if isinstance(a, QuantizedTensor) and isinstance(b, QuantizedTensor):
        assert (a.bits, a.scale.dtype, a.scale.shape) == (b.bits, b.scale.dtype, b.scale.shape)
        assert a.scale.tobytes() == b.scale.tobytes()
    elif isinstance(a, PlainTensor) and isinstance(b, PlainTensor):
        assert a.stored == b.stored


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(st.text(max_size=8), stored_tensors(), max_size=6))
def test_round_trip_and_same_bytes_twice(tensors: dict[str, StoredTensor]) -> None:
    data = write_native(tensors, METADATA)
    again = write_native(dict(reversed(tensors.items())), METADATA)
    assert data == again
    artifact = read_native(data)
    assert artifact.metadata == METADATA
    assert list(artifact.tensors) == sorted(tensors)
    for name, tensor in tensors.items():
        assert_same(tensor, artifact.tensors[name])


def test_a_large_matrix_survives_with_every_value_at_every_spread() -> None:
    rng = np.random.default_rng(0)
    spread = np.exp2(rng.uniform(-5, 7, (300, 1)))
    values = np.clip(np.rint(rng.normal(0, 1, (300, 257)) * spread), -128, 127).astype(np.int8)
    tensors: dict[str, StoredTensor] = {
        "wide": QuantizedTensor(values=values, scale=np.ones(300, np.float16), bits=8),
        "narrow": QuantizedTensor(values=np.clip(values, -32, 31), scale=np.ones(300, np.float16), bits=6),
        "noncontiguous": QuantizedTensor(values=values.T[::2], scale=np.ones(129, np.float16), bits=8),
        "zeros": PlainTensor(values=np.zeros((1500, 1500), np.float32), stored="float32"),
    }
    data = write_native(tensors, METADATA)
    for name, tensor in read_native(data).tensors.items():
        assert_same(tensor, tensors[name])


def test_correlated_tables_are_predicted_and_survive() -> None:
    rng = np.random.default_rng(5)
    table = rng.normal(0, 12, (400, 6)) @ rng.normal(0, 1, (6, 40)) + rng.normal(0, 6, (400, 40))
    values = np.clip(np.rint(table), -128, 127).astype(np.int8)
    shuffled = rng.permuted(values, axis=0)  # the same columns without their correlation
    sizes = []
    for matrix in (values, shuffled):
        tensor = QuantizedTensor(values=matrix, scale=np.ones(400, np.float16), bits=8)
        data = write_native({"tok_emb.weight": tensor}, METADATA)
        assert_same(read_native(data).tensors["tok_emb.weight"], tensor)
        sizes.append(len(data))
    assert sizes[0] < 0.95 * sizes[1]
    extreme = np.where(rng.random((300, 20)) < 0.5, -128, 127).astype(np.int8)  # residuals wrap around
    assert np.array_equal(prediction.restore(prediction.residuals(extreme)), extreme)


def small_artifact() -> bytes:
    rng = np.random.default_rng(1)
    return write_native(
        {
            "w": QuantizedTensor(
                values=np.clip(np.rint(rng.normal(0, 4, (40, 30))), -32, 31).astype(np.int8),
                scale=rng.random(40).astype(np.float16),
                bits=6,
            ),
            "g": PlainTensor(values=rng.normal(0, 1, (16, 16)).astype(np.float32), stored="float32"),
        },
        METADATA,
    )


def resign(data: bytes) -> bytes:
    """Give damaged bytes a matching digest, as an attacker would."""
    start = len(native.MAGIC) + 1
    return data[:start] + hashlib.sha256(data[start + 32 :]).digest() + data[start + 32 :]


def test_every_truncation_and_every_flip_is_noticed() -> None:
    data = small_artifact()
    for cut in range(0, len(data), 7):
        with pytest.raises(ArtifactError):
            read_native(data[:cut])
    for position in range(0, len(data), 5):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        with pytest.raises(ArtifactError):
            read_native(bytes(flipped))


def test_damage_under_a_valid_digest_never_crashes() -> None:
    data = small_artifact()
    rng = np.random.default_rng(2)
    outcomes = set()
    for _ in range(400):
        damaged = bytearray(data)
        for position in rng.integers(len(native.MAGIC) + 33, len(data), 3):
            damaged[position] = rng.integers(256)
        cut = int(rng.integers(len(data) // 2, len(data) + 1))
        try:
            read_native(resign(bytes(damaged[:cut])))
            outcomes.add("read")
        except ArtifactError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def forge(header: Any, payload: bytes = b"") -> bytes:
    import json

    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    packed = lzma.compress(raw, format=lzma.FORMAT_RAW, filters=native._HEADER_FILTERS)
    body = len(packed).to_bytes(4, "little") + packed + payload
    return native.MAGIC + bytes([1]) + hashlib.sha256(body).digest() + body


def header(*tensors: Any) -> dict[str, Any]:
    return {"config": {}, "recipe": {}, "evalkit_version": "", "tokenizer_sha256": "", "tensors": list(tensors)}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "magic"),
        (b"\x89evalkit", "cut short"),
        (native.MAGIC + bytes([9]) + bytes(40), "version 9"),
        (forge(b"\xff\xfe"), "cannot be read"),
        (forge([]), "not a JSON object"),
        (forge({}), "lacks"),
        (forge(b"[" * 100_000), "cannot be read"),
        (forge(b" " * (native._MAX_HEADER + 10)), "longer"),
        (forge(b'{"config": NaN}'), "cannot be read"),
        (forge(header(["a", "p", [1 << 39], "float32", "float32"])), "declares"),
        (forge(header(["a", "p", [1 << 27], "float32", "float32"])), "can hold"),
        (forge(header(["a", "p", [0, 1 << 30, 1 << 30], "float32", "float32"])), "elements"),
        (forge(header(["a", "p", [-1], "float32", "float32"])), "not a size"),
        (forge(header(["a", "p", [True], "float32", "float32"])), "not a size"),
        (forge(header(["a", "p", [1] * 9, "float32", "float32"])), "dimensions"),
        (forge(header(["a", "p", [1], "float64", "float32"])), "dtype"),
        (forge(header(["a", "p", [1], "float32", "int8"])), "no known kind"),
        (forge(header(["a", "q", [], "float32", "float16", 6, 0, 0])), "no known kind"),
        (forge(header(["a", "q", [2], "float32", "float16", 60, 0, 0])), "no known kind"),
        (forge(header(["a", "q", [2], "float32", "float16", [], 0, 0])), "no known kind"),
        (forge(header(["a", "p", [1], [], {}])), "dtype"),
        (forge(header(["a", "q", [2], "float32", "float16", 6, 3, 0])), "no known kind"),
        (forge(header(["a", "q", [4, 1 << 17], "float32", "float16", 8, 2, 0])), "prediction"),
        (forge(header(["a", "q", [1, 2049], "float32", "float16", 8, 2, 0])), "prediction"),
        (forge(header(["b", "p", [1], "float32", "float32"], ["a", "p", [1], "float32", "float32"])), "sorted"),
        (forge(header("nonsense")), "malformed"),
    ],
)
def test_hostile_headers_get_one_sentence(data: bytes, said: str) -> None:
    with pytest.raises(ArtifactError, match=said) as caught:
        read_native(data)
    assert "\n" not in str(caught.value)


def test_hostile_sizes_take_little_memory() -> None:
    lines = [[f"{i:05d}-x", "p", [1], "float32", "float32"] for i in range(5000)]
    lines = [[name.replace("0", "a").replace("1", "b"), *rest] for name, *rest in lines]
    distinct = sorted({line[0]: line for line in lines}.values(), key=lambda line: str(line[0]))
    read_native(forge(header(["a", "p", [2], "float32", "float32"])))  # compile outside the measurement
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError):
            read_native(forge(header(["a", "q", [1 << 20, 1 << 9], "float32", "float16", 8, 1, 0])))
        read_native(forge(header(*distinct)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def test_the_limit_is_the_readers_to_choose() -> None:
    data = small_artifact()
    with pytest.raises(ArtifactError, match="limit of 100"):
        read_native(data, max_bytes=100)


@pytest.mark.parametrize(
    "tensor",
    [
        PlainTensor(values=np.zeros(2, np.float64), stored="float32"),
        PlainTensor(values=np.zeros(2, np.float32), stored="float8"),
        PlainTensor(values=np.zeros(2, np.float32), stored="float32", dtype="float16"),
        QuantizedTensor(values=np.zeros((), np.int8), scale=np.ones((), np.float16), bits=8),
        QuantizedTensor(values=np.zeros((2, 2), np.int8), scale=np.ones(3, np.float16), bits=8),
        QuantizedTensor(values=np.zeros((2, 2), np.int8), scale=np.ones(2, np.float64), bits=8),
        QuantizedTensor(values=np.zeros((2, 2), np.int8), scale=np.ones(2, np.float16), bits=3),
    ],
)
def test_tensors_that_cannot_be_stored_are_refused(tensor: StoredTensor) -> None:
    with pytest.raises(InputError):
        write_native({"x": tensor}, METADATA)


def test_metadata_that_is_not_json_is_refused() -> None:
    with pytest.raises(InputError, match="JSON"):
        write_native({}, NativeMetadata(config={"a": float("nan")}))


def entropy_bytes(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


@pytest.mark.parametrize("system", ["333", "344", "592", "634", "849"])
def test_parity_artifacts_are_below_their_order_0_entropy(system: str) -> None:
    if not PARITY.is_dir():
        pytest.skip("the parity references are not here")
    [path] = (PARITY / system / "small").glob("*.ptz")
    tensors = load_artifact(path).tensors
    data = write_native(tensors, NativeMetadata())
    integers = [t for t in tensors.values() if isinstance(t, QuantizedTensor)]
    rest = [t.values if isinstance(t, PlainTensor) else t.scale for t in tensors.values()]
    bound = sum(entropy_bytes(t.values) for t in integers)
    bound += len(lzma.compress(b"".join(np.ascontiguousarray(v).tobytes() for v in rest)))
    assert len(data) < bound
    for name, tensor in read_native(data).tensors.items():
        assert_same(tensor, tensors[name])
