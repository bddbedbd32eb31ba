from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from train_helpers import VOCAB, markov_tokens, write_shard

from evalkit.plumbing.errors import InputError, TokenError
from evalkit.train.config import DataConfig
from evalkit.train.data import ByteCounter, TrainingTokens, find_shards, load_validation


@pytest.fixture
def stream(data: Path) -> TrainingTokens:
    return TrainingTokens(find_shards(data, DataConfig())[0], vocab_size=VOCAB)


def test_reads_cross_shards_and_wrap_around(stream: TrainingTokens) -> None:
    whole = np.concatenate([markov_tokens(6000, 1), markov_tokens(3001, 2)])
    endless = np.concatenate([whole, whole, whole])

    @settings(deadline=None, max_examples=60)
    @given(start=st.integers(0, 9001), count=st.integers(1, 17000))
    def check(start: int, count: int) -> None:
        assert np.array_equal(stream.read(start, count), endless[start : start + count])

    check()


def test_spans_shift_by_one_token_and_do_not_overlap(stream: TrainingTokens) -> None:
    ids, targets = stream.span(3, 1, spans=4, span_tokens=64, seq_len=16)
    assert ids.shape == targets.shape == (4, 16)
    flat = stream.read((3 * 4 + 1) * 65, 65)
    assert np.array_equal(ids.flatten(), flat[:-1])
    assert np.array_equal(targets.flatten(), flat[1:])


def test_bytes_agree_with_the_data_sheet(shared: Path) -> None:
    counter = ByteCounter(shared / "data/tokenizers/fineweb_1024_bpe.model", 1024)
    for name, expected in (("corpus", 345_397), ("fineweb_sample", 893_966)):
        val = sorted((shared / f"data/{name}/sp1024").glob("*val*.bin"))
        tokens = load_validation(val, vocab_size=1024, limit=0)
        assert tokens is not None
        assert counter.count(tokens) == expected


def test_a_folder_without_shards_or_with_several_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_shards(tmp_path / "none", DataConfig())
    with pytest.raises(InputError, match="holds no"):
        find_shards(tmp_path, DataConfig())
    for folder in ("sp1024", "sp8192"):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "f_train_0.bin", markov_tokens(100, 1))
    with pytest.raises(InputError, match="several sets"):
        find_shards(tmp_path, DataConfig())


def test_damaged_and_foreign_shards_are_refused(tmp_path: Path) -> None:
    good = write_shard(tmp_path / "a_train_0.bin", markov_tokens(500, 1))
    short = tmp_path / "b_train_0.bin"
    short.write_bytes(good.read_bytes()[:-2])
    with pytest.raises(TokenError, match="announces 500 tokens"):
        TrainingTokens([short], vocab_size=VOCAB)
    short.write_bytes(b"not a shard")
    with pytest.raises(TokenError, match="a shard has a header"):
        TrainingTokens([short], vocab_size=VOCAB)
    with pytest.raises(TokenError, match="another tokenizer's"):
        TrainingTokens([good], vocab_size=32)
    with pytest.raises(TokenError, match="too few"):
        TrainingTokens([good], vocab_size=VOCAB).require(500)
    with pytest.raises(TokenError, match="not a SentencePiece"):
        ByteCounter(good, VOCAB)


def test_a_tokenizer_of_another_size_is_refused(shared: Path) -> None:
    with pytest.raises(TokenError, match="1024 tokens, but the model has 64"):
        ByteCounter(shared / "data/tokenizers/fineweb_1024_bpe.model", 64)
