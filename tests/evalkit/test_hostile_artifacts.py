"""Whatever a stranger's file holds, the answer is a score or one clear sentence, soon and in little memory."""

import io
import lzma
import os
import pickle
import zipfile
import zlib
from pathlib import Path

import brotli
import numpy as np
import pytest
import torch
import zstandard

from evalkit.artifact.compression import MAX_INFLATED_BYTES, unwrap
from evalkit.artifact.load import load_artifact
from evalkit.cli.main import run_command
from evalkit.plumbing.errors import ArtifactError, InputError


def attempt(path: Path) -> str:
    """Open and build; return what it came to."""
    try:
        artifact = load_artifact(path)
        artifact.build(artifact.resolve().config)
    except InputError as error:
        return "refused" if "\n" not in str(error) else "several lines"
    return "opened"


def test_truncated_anywhere(published_artifact: Path, tmp_path: Path) -> None:
    data = published_artifact.read_bytes()
    for cut in np.linspace(0, len(data) - 1, 20).astype(int):
        (tmp_path / "a").write_bytes(data[:cut])
        assert attempt(tmp_path / "a") == "refused"


def test_flipped_bytes(published_artifact: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    data = published_artifact.read_bytes()
    payload = zstandard.decompress(data)
    outcomes = []
    for content in (data, payload):
        for _ in range(200):
            changed = bytearray(content)
            changed[rng.integers(len(changed))] ^= int(rng.integers(1, 256))
            (tmp_path / "a").write_bytes(changed)
            outcomes.append(attempt(tmp_path / "a"))
    assert outcomes.count("refused") > 300


def brotli_shuffled(content: bytes) -> bytes:
    return brotli.compress(b"BSHF\x02" + content, quality=1)


def test_shuffled_bytes_come_back_in_order(tmp_path: Path) -> None:
    for stride, shuffled in ((2, b"acegbdf"), (3, b"adgbecf"), (0, b"abcdefg"), (1, b"abcdefg"), (200, b"abcdefg")):
        wrapped = b"BSHF" + bytes([stride]) + shuffled
        assert unwrap(brotli.compress(wrapped)) == (b"abcdefg", f"brotli, bytes shuffled by {stride}")
        assert unwrap(lzma.compress(wrapped)) == (b"abcdefg", f"xz, bytes shuffled by {stride}")
    assert unwrap(b"neither of them") == (b"neither of them", "none")


def test_brotli_streams_that_end_elsewhere(tmp_path: Path) -> None:
    whole = brotli_shuffled(b"PK\x03\x04" + bytes(range(256)) * 400)
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole + b"more", brotli.compress(b"BSHF")):
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(ArtifactError):
            load_artifact(tmp_path / "a")


@pytest.mark.parametrize(
    "compress",
    [zstandard.ZstdCompressor(level=3).compress, lambda b: lzma.compress(b, preset=0), zlib.compress, brotli_shuffled],
    ids=["zstd", "xz", "zlib", "brotli"],
)
def test_bombs_are_abandoned_at_the_bound(compress, tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(compress(bytes(MAX_INFLATED_BYTES + 2**20)))
    with pytest.raises(ArtifactError, match="inflates past"):
        load_artifact(tmp_path / "bomb")


class Evil:
    """Runs a command when it is unpickled by something careless."""

    def __reduce__(self) -> object:
        return os.system, ("touch /tmp/evalkit-was-here",)


@pytest.mark.parametrize("wrap", [lambda b: b, zlib.compress], ids=["plain", "zlib"])
def test_a_pickle_never_runs(wrap, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": Evil(), "m": {}}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Evil())):
        (tmp_path / "evil").write_bytes(wrap(content))
        with pytest.raises(ArtifactError):
            load_artifact(tmp_path / "evil")
    assert not Path("/tmp/evalkit-was-here").exists()


def zip_with(index: bytes, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", index)
        for name, content in members.items():
            archive.writestr(f"archive/data/{name}", content)
    return buffer.getvalue()


def test_an_index_cannot_claim_memory(tmp_path: Path) -> None:
    memo_bomb = b"\x80\x02}r\xff\xff\xff\x7f."
    (tmp_path / "a").write_bytes(zip_with(memo_bomb))
    with pytest.raises(ArtifactError, match="memo entry"):
        load_artifact(tmp_path / "a")
    # A view of 10^12 elements with strides of zero over a storage of one.
    tensor = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))
    buffer = io.BytesIO()
    torch.save({"w": {"x": tensor}, "m": {"x": "passthrough"}}, buffer)
    (tmp_path / "b").write_bytes(buffer.getvalue())
    with pytest.raises(ArtifactError, match="does not fit into its storage"):
        load_artifact(tmp_path / "b")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_text("this is no model\n"), "no known artifact"),
        (lambda p: p.mkdir(), "is not a file"),
        (lambda p: None, "does not exist"),
    ],
)
def test_what_is_no_artifact_ends_with_exit_code_2(
    make, message: str, tmp_path: Path, tokenizer_path: Path, text_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "x")
    arguments = ["score", str(tmp_path / "x"), "--text", str(text_path), "--tokenizer", str(tokenizer_path)]
    assert run_command([*arguments, "--json", str(tmp_path / "r.json")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r.json").exists()


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": {"x": torch.tensor([float("nan")])}, "m": {"x": "passthrough"}}, buffer)
    (tmp_path / "a").write_bytes(buffer.getvalue())
    with pytest.raises(ArtifactError, match="not finite"):
        load_artifact(tmp_path / "a")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--set", "model.rope_bass=3"], "did you mean rope_base"),
        (["--set", "model.rope_base"], "expected SECTION.KEY=VALUE"),
        (["--set", "modell.rope_base=3"], "there is no section"),
        (["--set", "model.rope_base=high"], "expected a finite number"),
        (["--set", "model.num_heads=3"], "expected a divisor of model_dim"),
        (["--set", "model.value_embed_layers=0"], "value embeddings for 2"),
        (["--recipe", "pr1"], "there is no recipe 'pr1'"),
        (["--stride", "0"], "--stride is 0"),
        (["--seq-len", "64", "--stride", "65"], "--stride is 65"),
        (["--seq-len", "0"], "--seq-len is 0; expected 1 to"),
        (["--ttt", "--set", "ttt.learning_rate=inf"], "ttt.learning_rate is 'inf'; expected a finite number"),
        (["--set", "ttt.epochs=1"], "--set ttt.epochs would change nothing here: add --ttt"),
        (["--device", "tpu"], "expected cpu or cuda"),
        (["--limit-tokens", "-1"], "--limit-tokens is -1"),
        (["--seq-len", "1000000000"], "--seq-len is 1000000000"),
        (["--json", "both", "--dump-nll", "./both"], "--json and --dump-nll both name both"),
        (["--no-model"], "and --no-model are different models: give one of them"),
        (["--tokens", "nowhere/*.bin"], "no shard matches 'nowhere/*.bin'"),
        (["--json", "nowhere/r.json"], "folder nowhere does not exist"),
    ],
)
def test_wrong_options_are_named(
    extra: list[str],
    message: str,
    published_artifact: Path,
    tokenizer_path: Path,
    text_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [
        "score",
        str(published_artifact),
        "--recipe",
        "pr849",
        "--text",
        str(text_path),
        "--tokenizer",
        str(tokenizer_path),
    ]
    assert run_command([*arguments, *extra]) == 2
    assert message in capsys.readouterr().err


def test_the_wrong_tokenizer_is_named(published_artifact: Path, text_path: Path, shared: Path) -> None:
    from evalkit.verbs.options import ScoreOptions
    from evalkit.verbs.session import open_session

    tokenizer = shared / "data/tokenizers/fineweb_8192_bpe.model"
    with pytest.raises(InputError, match="has 8192 pieces, the model 384"):
        open_session(
            ScoreOptions(
                artifact=str(published_artifact), recipe="pr849", tokenizer=str(tokenizer), text=str(text_path)
            )
        )
