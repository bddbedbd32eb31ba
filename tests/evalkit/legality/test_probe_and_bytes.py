"""Programs that cannot be imported, byte counts, files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evalkit.legality.bytes import budget, recount
from evalkit.legality.probe import emit, judge, reported
from evalkit.plumbing.errors import InputError
from evalkit.tokens.shards import open_shard

V = 64


def published_like(tokens: np.ndarray) -> np.ndarray:
    """The hashed ratio of V1, as a program would report it: nats of every position."""
    pairs, contexts = np.zeros(64), np.zeros(16)
    nats = np.empty(len(tokens) - 1)
    for i in range(1, len(tokens)):
        context, pair = tokens[i - 1] % 16, (tokens[i - 1] * 7 + tokens[i] * 13) % 64
        ratio = min(pairs[pair] / contexts[context], 1.0) if contexts[context] > 3 else 1 / V
        nats[i - 1] = -np.log(0.5 / V + 0.5 * ratio) if contexts[context] > 3 else np.log(V)
        contexts[context] += 1
        pairs[pair] += 1
    return nats


def honest(tokens: np.ndarray) -> np.ndarray:
    """Order-0 counts."""
    counts = np.ones(V)
    nats = np.empty(len(tokens) - 1)
    for i in range(1, len(tokens)):
        nats[i - 1] = -np.log(counts[tokens[i]] / counts.sum())
        counts[tokens[i]] += 1
    return nats


def emitted(tmp_path, kind, count=4097):
    return emit(kind, count, tmp_path / kind, seed=5, vocab_size=V, multiple=256, control_ids=0)


@pytest.mark.parametrize("kind", ["uniform", "ngram"])
def test_shards_are_the_challenges_and_one_is_a_prefix_of_the_other(tmp_path, kind):
    made = emitted(tmp_path, kind)
    raw = (made.whole / "fineweb_val_000000.bin").read_bytes()
    header = np.frombuffer(raw[:1024], "<i4")
    assert header[:3].tolist() == [20240520, 1, made.tokens]
    assert not header[3:].any()
    whole = open_shard(made.whole / "fineweb_val_000000.bin")
    prefix = open_shard(made.prefix / "fineweb_val_000000.bin")
    assert whole[0] == 1
    assert (len(whole) - 1) % 256 == 0
    assert (len(prefix) - 1) % 256 == 0
    assert np.array_equal(whole[: len(prefix)], prefix)


@pytest.mark.parametrize("like", [None, np.array([1, 7, 8, 2, 7, 9, 1, 7, 8])])
@pytest.mark.parametrize("kind", ["uniform", "ngram"])
def test_control_ids_are_never_drawn(tmp_path, kind, like):
    made = emit(kind, 4097, tmp_path / kind, seed=5, vocab_size=V, multiple=256, like=like)
    whole = open_shard(made.whole / "fineweb_val_000000.bin")
    assert whole[0] == 1
    assert whole[1:].min() >= 4
    assert whole.max() < V
    if kind == "uniform":
        assert made.entropy_nats == pytest.approx(np.log(V - 4))
    with pytest.raises(InputError, match="leave fewer"):
        emit(kind, 4097, tmp_path / "none", vocab_size=V, control_ids=V - 1)


@pytest.mark.parametrize("kind", ["uniform", "ngram"])
def test_a_fiction_is_caught_from_losses_alone(tmp_path, kind):
    made = emitted(tmp_path, kind)
    tokens = np.array(open_shard(made.whole / "fineweb_val_000000.bin"), np.int64)
    cheat = published_like(tokens)
    report = judge(made.folder, val_loss=f"{cheat.mean():.4f}", bytes_per_token=2.4)
    if kind == "uniform":
        assert report.verdict == "illegal"
        assert report.findings[0].axiom == "normalisation"
        assert report.findings[0].evidence["p_value"] < 1e-6
    assert judge(made.folder, nll=cheat).covered["probe"]["p_value"] <= 1.0
    report = judge(made.folder, val_loss=f"{honest(tokens).mean():.4f}")
    assert report.verdict == "unproven"
    assert report.covered["probe"]["p_value"] == 1.0
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_pair_shows_what_a_poor_start_hides(tmp_path):
    made = emitted(tmp_path, "uniform")
    n, head = made.tokens - 1, made.prefix_tokens - 1
    nats = np.full(n, np.log(V) + 0.5)
    nats[head:] = np.log(V) - 0.1  # later fiction, hidden by the start
    alone = judge(made.folder, val_loss=f"{nats.mean():.6f}")
    pair = judge(made.folder, val_loss=f"{nats.mean():.6f}", prefix_loss=f"{nats[:head].mean():.6f}")
    assert alone.verdict == "unproven"
    assert pair.verdict == "illegal"
    assert pair.findings[0].position == head + 1
    assert pair.findings[0].evidence["nats"] == pytest.approx(0.1, abs=0.001)
    by_position = judge(made.folder, nll=nats)
    assert by_position.verdict == "illegal"
    assert abs(by_position.findings[0].position - head - 1) <= 1


def test_rounding_is_given_the_benefit_of_the_doubt(tmp_path):
    assert reported("1.23") == (1.23, pytest.approx(0.005))
    assert reported("1.2300e-1") == (0.123, pytest.approx(5e-6))
    made = emitted(tmp_path, "uniform")
    assert judge(made.folder, val_loss="4.16").covered["probe"]["p_value"] == 1.0  # ln 64 = 4.1589
    p_values = [judge(made.folder, val_loss=text).covered["probe"]["p_value"] for text in ("4.155", "4.15500")]
    assert p_values[0] > 5 * p_values[1] > 0


def test_a_tampered_probe_is_refused(tmp_path):
    made = emitted(tmp_path, "uniform")
    record = made.folder / "record.json"
    changed = json.loads(record.read_text()) | {"commitment": "0" * 64}
    record.write_text(json.dumps(changed))
    with pytest.raises(InputError, match="commitment"):
        judge(made.folder, val_loss=4.0)
    with pytest.raises(InputError, match="already holds"):
        emitted(tmp_path, "uniform")
    with pytest.raises(InputError, match="no readable probe"):
        judge(tmp_path / "nothing", val_loss=4.0)
    with pytest.raises(InputError, match="too few"):
        emit("uniform", 10, tmp_path / "short")


def decode(ids: list[int]) -> str:
    return "".join("é" if t == 3 else chr(97 + t % 26) for t in ids)


def test_bytes_are_recounted_from_the_text():
    tokens = np.array([1, 3, 5, 6, 1, 3, 3, 7])
    true = np.array([2, 1, 1, 0, 2, 2, 1])
    assert recount(tokens, true, decode) == ([], {"bytes_claimed": 9, "bytes_counted": 9, "documents": 2})
    findings, _ = recount(tokens, true + (tokens[1:] == 7), decode, nats=9 * np.log(2))
    assert [f.axiom for f in findings] == ["bytes"]
    assert findings[0].position == 4  # the second document
    assert findings[0].evidence["bpb"] == pytest.approx(1.0 - 0.9)
    findings, _ = recount(tokens, 12, decode)
    assert "divides by 12" in findings[0].message
    swapped = true[::-1].copy()
    assert recount(tokens, swapped, decode)[0] != []  # right total, wrong documents


def test_a_stream_that_begins_inside_a_document():
    tokens = np.array([3, 5, 6])
    assert recount(tokens, np.array([1, 1]), decode)[0] == []


def test_what_ships_is_added_up(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x" * 900)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_bytes(b"y" * 200)
    assert budget([tmp_path / "model.bin"], cap=1000)[0] == []
    findings, covered = budget([tmp_path / "model.bin", tmp_path / "code"], cap=1000)
    assert [f.axiom for f in findings] == ["budget"]
    assert covered["bytes"] == 1100
    with pytest.raises(InputError, match="does not exist"):
        budget([tmp_path / "absent"])
