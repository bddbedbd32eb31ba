"""The ledger takes each position once, in order, keeps it on disk and notices when it was changed."""

import math
from pathlib import Path

import numpy as np
import pytest

from evalkit.plumbing.errors import ForecasterError, InputError
from evalkit.prequential.ledger import Ledger, bits_per_byte


def fill(ledger: Ledger, spans: int = 3, rows: int = 5) -> np.ndarray:
    rng = np.random.default_rng(1)
    nll = rng.exponential(size=spans * rows)
    for i in range(spans):
        ledger.record(1 + i * rows, nll[i * rows : (i + 1) * rows], np.full(rows, 2, dtype=np.int32))
    return nll


def test_totals_in_nats_bytes_and_bits_per_byte() -> None:
    ledger = Ledger()
    nll = fill(ledger)
    assert ledger.nats == pytest.approx(math.fsum(nll), rel=1e-15)
    assert ledger.num_bytes == 30
    assert ledger.bpb == pytest.approx(nll.sum() / np.log(2) / 30, rel=1e-15)
    assert bits_per_byte(math.log(2) * 16, 2) == 8.0
    np.testing.assert_array_equal(ledger.scores(), nll)


@pytest.mark.parametrize("start", [1, 5, 7])
def test_positions_must_follow(start: int) -> None:
    ledger = Ledger()
    fill(ledger, spans=1)
    with pytest.raises(ForecasterError, match="position 6 was due"):
        ledger.record(start, np.ones(2), np.ones(2, dtype=np.int32))


@pytest.mark.parametrize(
    ("nll", "message"),
    [
        (np.array([1.0, np.nan]), "nan nats"),
        (np.array([1.0, np.inf]), "inf nats"),
        (np.array([1.0, -0.1]), "probability above 1"),
        (np.array([1.0]), "expected float64\\[2\\]"),
        (np.array([1.0, 2.0], dtype=np.float32), "expected float64\\[2\\]"),
        ([1.0, 2.0], "expected float64\\[2\\]"),
    ],
)
def test_what_is_no_score_is_refused(nll: object, message: str) -> None:
    with pytest.raises(ForecasterError, match=message):
        Ledger().record(1, nll, np.ones(2, dtype=np.int32))  # type: ignore[arg-type]


def test_an_interrupted_ledger_continues_after_its_last_whole_span(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    fill(ledger)
    chain = ledger.chain
    ledger.close()
    with (tmp_path / "nll.f64").open("ab") as file:
        file.write(b"\x01" * 13)  # a span that was being written
    with (tmp_path / "spans.jsonl").open("a") as file:
        file.write('{"stop": 21, "cha')
    again = Ledger(tmp_path)
    assert (again.next_position, again.chain) == (16, chain)
    again.record(16, np.ones(1), np.ones(1, dtype=np.int32))
    assert len(again.scores()) == 16


def test_a_changed_number_cuts_the_ledger_there(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    fill(ledger)
    ledger.close()
    content = bytearray((tmp_path / "nll.f64").read_bytes())
    content[8 * 7] ^= 1
    (tmp_path / "nll.f64").write_bytes(content)
    assert Ledger(tmp_path).next_position == 6


@pytest.mark.parametrize("temporary", [False, True])
def test_rewinding_to_a_seam(temporary: bool, tmp_path: Path) -> None:
    ledger = Ledger(None if temporary else tmp_path)
    nll = fill(ledger)
    with pytest.raises(InputError, match="no seam"):
        ledger.rewind(8)
    ledger.rewind(11)
    assert ledger.next_position == 11
    assert ledger.nats == pytest.approx(nll[:10].sum())


def test_no_bytes_is_an_error() -> None:
    with pytest.raises(InputError, match="0 bytes"):
        bits_per_byte(1.0, 0)
