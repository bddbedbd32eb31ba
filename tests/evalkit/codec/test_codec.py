"""Round trips through real bits, and what must never decode."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.codec import compress, compress_text, decompress, decompress_text, read_header
from evalkit.codec.fixed import frequencies
from evalkit.plumbing.errors import InputError
from evalkit.tokens.tokenizer import Tokenizer

V = 300
ROOT = Path(__file__).resolve().parents[3]


class Adaptive:
    """Order-1 counts that learn in observe; ``boundary`` cuts its spans at multiples."""

    vocab_size = V

    def __init__(self, waste: float = 0.0) -> None:
        self.counts = np.full((V, V), 0.1)
        self.waste = waste

    def distribution(self, tokens, start, stop):
        assert len(tokens) == stop
        rows = self.counts[tokens[start - 1 : stop - 1]]
        return np.log((1 - self.waste) * rows / rows.sum(axis=1, keepdims=True))

    def score(self, tokens, start, stop):
        return -self.distribution(tokens, start, stop)[np.arange(stop - start), tokens[start:stop]]

    def observe(self, tokens, start, stop):
        np.add.at(self.counts, (tokens[start - 1 : stop - 1], tokens[start:stop]), 1.0)


class Chunked(Adaptive):
    """Learns at multiples of 20 only, and insists on them."""

    def next_boundary(self, start):
        return (start // 20 + 1) * 20

    def observe(self, tokens, start, stop):
        assert start // 20 == (stop - 1) // 20
        super().observe(tokens, start, stop)


def encode(text: str) -> list[int]:
    """A lossy byte tokenizer: newlines and runs of blanks become one blank, as SentencePiece has it."""
    return [b + 2 for b in " ".join(text.split()).encode()]


def decode(tokens: list[int]) -> str:
    return bytes(t - 2 for t in tokens).decode("utf-8")


def stream(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tokens = (rng.geometric(0.05, n) % V).astype(np.int64)
    tokens[::3] = 20
    return tokens


@pytest.mark.parametrize("span", [1, 7])
@pytest.mark.parametrize("make", [Adaptive, Chunked, lambda: Adaptive(0.05)])
def test_round_trip_and_bits_match_the_ledger(make, span):
    tokens = stream(2000)
    coded = compress(make, tokens, span=span, artifact_sha256="ab", options={"mixer": "none"})
    assert np.array_equal(decompress(make, coded.data, artifact_sha256="ab"), tokens)
    assert coded.words_bits <= coded.ledger_bits * 1.001 + 64
    assert coded.words_bits >= coded.fixed_bits - 1
    header = read_header(coded.data)
    assert header.options == {"mixer": "none"}
    assert header.tokens == len(tokens)


def test_ledger_bits_are_those_of_a_scoring_pass():
    tokens = stream(500)
    forecaster, total = Adaptive(), 0.0
    for i in range(1, len(tokens)):
        total += float(forecaster.score(tokens[: i + 1], i, i + 1)[0])
        forecaster.observe(tokens[: i + 1], i, i + 1)
    assert compress(Adaptive, tokens).ledger_bits == pytest.approx(total / math.log(2), rel=1e-12)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_shortest_streams(length):
    tokens = stream(length)
    assert np.array_equal(decompress(Adaptive, compress(Adaptive, tokens).data), tokens)


def test_the_encoder_does_not_show_the_token_to_the_forecaster():
    class Curious(Adaptive):
        def distribution(self, tokens, start, stop):
            assert tokens[stop - 1] == 0
            return super().distribution(tokens, start, stop)

        def score(self, tokens, start, stop):
            assert tokens[stop - 1] > 0
            return -super().distribution(tokens, start, stop)[np.arange(stop - start), tokens[start:stop]]

    tokens = stream(50) % (V - 1) + 1
    assert np.array_equal(decompress(Curious, compress(Curious, tokens).data), tokens)


def test_next_distribution_is_used_where_it_is_offered():
    class Quick(Adaptive):
        def next_distribution(self, prefix):
            row = self.counts[prefix[-1]]
            return np.log(row / row.sum())

        def distribution(self, tokens, start, stop):
            raise AssertionError("not asked")

        def score(self, tokens, start, stop):
            return -super().distribution(tokens, start, stop)[np.arange(stop - start), tokens[start:stop]]

    tokens = stream(100)
    assert np.array_equal(decompress(Quick, compress(Quick, tokens).data), tokens)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-60, 0), min_size=1, max_size=40), st.integers(0, 39))
def test_frequencies_are_codable_and_close(values, hole):
    row = np.array(values)
    row -= np.logaddexp.reduce(row)
    if len(row) > 1:
        row[hole % len(row)] = -np.inf
    counts = frequencies(row, 0)
    assert counts.sum() == 1 << 24
    assert counts.min() >= 1
    p = np.exp(row) / np.exp(row).sum()
    assert np.all(np.abs(counts / 2**24 - p) <= (len(row) + 1) / 2**24)


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (np.log([0.6, 0.5]), "sum to 1.1"),
        (np.array([np.nan, 0.0]), "NaN"),
        (np.array([0.2, -5.0]), "above 1"),
        (np.array([-np.inf, -np.inf]), "all zero"),
        (np.zeros((2, 2)), "shape"),
    ],
)
def test_rows_that_are_no_distribution_are_refused(row, word):
    with pytest.raises(InputError, match=word):
        frequencies(row, 3)


def test_a_cut_or_altered_file_never_decodes():
    tokens = stream(200)
    data = compress(Adaptive, tokens).data
    rng = np.random.default_rng(0)
    for cut in [*range(0, 50), *rng.integers(50, len(data), 30).tolist()]:
        with pytest.raises(InputError):
            decompress(Adaptive, data[:cut])
    for place in rng.integers(0, len(data), 60).tolist():
        altered = bytearray(data)
        altered[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(InputError):
            decompress(Adaptive, bytes(altered))
    with pytest.raises(InputError):
        decompress(Adaptive, data + b"x")


def test_another_artifact_or_other_floats_never_decode():
    tokens = stream(200)
    data = compress(Adaptive, tokens, artifact_sha256="aa").data
    with pytest.raises(InputError, match="artifact"):
        decompress(Adaptive, data, artifact_sha256="bb")

    def other():
        forecaster = Adaptive()
        forecaster.counts[5] += 3.0
        forecaster.counts[:, 7] += 1.0
        return forecaster

    with pytest.raises(InputError):
        decompress(other, data, artifact_sha256="aa")


def test_an_illegal_distribution_cannot_be_compressed():
    with pytest.raises(InputError, match="sum to"):
        compress(lambda: Adaptive(-0.01), stream(20))
    with pytest.raises(InputError, match="vocabulary"):
        compress(Adaptive, np.array([1, V]))


TEXTS = [
    b"",
    b"a",
    "emoji \U0001f600\U0001f468‍\U0001f469 and NUL \x00 here".encode(),
    b"two  blanks\nand\r\nnew lines\n\n\ttabs \n" * 40,
    b"plain text without surprises",
    np.random.default_rng(3).integers(0, 256, 20_000, dtype=np.uint8).tobytes(),
    b"mostly text " * 200 + b"\xff\xfe" + b" and two bad bytes",
]


@pytest.mark.parametrize("raw", TEXTS, ids=range(len(TEXTS)))
def test_exact_texts_come_back_byte_for_byte(raw):
    made = compress_text(Adaptive, raw, encode, decode)
    assert decompress_text(Adaptive, made.data, decode) == raw
    assert made.extra_bytes < len(raw) + 60


def test_side_information_is_small_where_only_white_space_differs():
    raw = ("a line of text that says something " * 3 + "\n").encode() * 100
    made = compress_text(Adaptive, raw, encode, decode, exact=True)
    assert 0 < made.extra_bytes < 200


def test_without_exact_the_text_comes_back_normalised():
    made = compress_text(Adaptive, b"  two\n\nlines  ", encode, decode, exact=False)
    assert decompress_text(Adaptive, made.data, decode) == b"two lines"
    with pytest.raises(InputError, match="leave out --normalised"):
        compress_text(Adaptive, b"\xff\xfe", encode, decode, exact=False)


AWKWARD = ["\x00", "\r\n", "\n", "\t", "  ", "\u3000", "\u2028", "\ufeff", "\uff0c\u3002", "\u4e16\u754c", "\u00e9",
           "e\u0301", "\ufb01", "\u2460", "\U0001f468\u200d\U0001f469", "\ufffd", "\u2581", "<s>", "the "]  # fmt: skip
"""What tokenizers change: blanks, full-width forms, ligatures, combining accents, their own marks."""


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.one_of(st.sampled_from(AWKWARD).map(str.encode), st.text(max_size=6).map(str.encode), st.binary(max_size=4)),
        max_size=12,
    )
)
def test_any_bytes_come_back_through_a_real_tokenizer(pieces, tokenizer_path):
    model = Tokenizer(tokenizer_path)
    raw = b"".join(pieces)

    class Even(Adaptive):
        vocab_size = model.vocab_size

        def distribution(self, tokens, start, stop):
            return np.full((stop - start, self.vocab_size), -math.log(self.vocab_size))

        def observe(self, tokens, start, stop):
            pass

    made = compress_text(Even, raw, model.encode, model.decode)
    assert decompress_text(Even, made.data, model.decode) == raw


def test_a_fresh_process_decodes(tmp_path):
    tokens = stream(300)
    path = tmp_path / "file"
    path.write_bytes(compress(Adaptive, tokens).data)
    program = (
        "import sys, numpy as np\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
        "from test_codec import Adaptive\n"
        "from evalkit.codec import decompress\n"
        f"print(*decompress(Adaptive, open({str(path)!r}, 'rb').read()))\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [int(t) for t in out.stdout.split()] == tokens.tolist()
