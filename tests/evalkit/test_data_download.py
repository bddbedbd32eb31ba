"""Downloads against a stand-in hub on 127.0.0.1."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.cli.main import run_command
from evalkit.data.download import DownloadOptions, download
from evalkit.plumbing.errors import InputError
from tests.evalkit.hub import COMMIT, Hub

REPO = "someone/golf"
VAL = "datasets/fineweb10B_sp384/fineweb_val_000000.bin"
TRAIN = "datasets/fineweb10B_sp384/fineweb_train_000000.bin"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    rng = np.random.default_rng(0)
    server = Hub(
        REPO,
        {
            VAL: rng.bytes(300_000),
            TRAIN: rng.bytes(200_000),
            "datasets/fineweb10B_sp384/fineweb_train_000001.bin": rng.bytes(100_000),
            "datasets/fineweb10B_sp512/fineweb_val_000000.bin": rng.bytes(1000),
            "tokenizers/fineweb_384_bpe.model": rng.bytes(5000),
            "tokenizers/fineweb_512_bpe.model": rng.bytes(5000),
            "README.md": b"hello",
        },
    )
    yield server
    server.close()


def options(hub: Hub, out: Path, **changes: Any) -> DownloadOptions:
    return DownloadOptions(**({"out": out, "repo": REPO, "endpoint": hub.endpoint, "variant": "sp384"} | changes))


def test_fetches_what_was_asked_for_and_nothing_twice(hub: Hub, tmp_path: Path) -> None:
    result = download(options(hub, tmp_path / "data"))
    assert result.commit == COMMIT
    names = {str(p.relative_to(tmp_path / "data")) for p in (tmp_path / "data").rglob("*") if p.is_file()}
    assert names == {VAL, TRAIN, "tokenizers/fineweb_384_bpe.model", "manifest.json"}
    for name in (VAL, TRAIN):
        assert (tmp_path / "data" / name).read_bytes() == hub.files[name]
    hub.requests.clear()
    assert download(options(hub, tmp_path / "data")).fetched_bytes == 0
    assert hub.requests == []


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.drop_after[VAL] = 100_000
    with pytest.raises(InputError, match="run the same command again to continue"):
        download(options(hub, tmp_path / "data", attempts=1))
    assert not (tmp_path / "data" / VAL).exists()
    kept = next((tmp_path / "data").rglob("*.partial")).stat().st_size
    assert 0 < kept <= 100_000
    result = download(options(hub, tmp_path / "data"))
    assert result.resumed_bytes == kept
    assert (VAL, f"bytes={kept}-") in [(name, asked) for _, name, asked in hub.requests]
    assert (tmp_path / "data" / VAL).read_bytes() == hub.files[VAL]
    assert list((tmp_path / "data").rglob("*.partial")) == []


def test_a_dropped_connection_is_taken_up_again_at_once(hub: Hub, tmp_path: Path) -> None:
    hub.drop_after[TRAIN] = 70_000
    download(options(hub, tmp_path / "data"))
    assert (tmp_path / "data" / TRAIN).read_bytes() == hub.files[TRAIN]


def test_corrupted_content_is_refused_and_removed(hub: Hub, tmp_path: Path) -> None:
    hub.corrupt.add(VAL)
    with pytest.raises(InputError, match="was refused and removed"):
        download(options(hub, tmp_path / "data"))
    assert not (tmp_path / "data" / VAL).exists()
    assert list((tmp_path / "data").rglob("*.partial")) == []


def test_small_files_are_checked_by_their_git_hash(hub: Hub, tmp_path: Path) -> None:
    hub.corrupt.add("tokenizers/fineweb_384_bpe.model")
    with pytest.raises(InputError, match=r"tokenizers/fineweb_384_bpe\.model"):
        download(options(hub, tmp_path / "data"))


def test_offline_touches_no_network_and_notices_a_change(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without --offline"):
        download(options(hub, tmp_path / "data", offline=True))
    download(options(hub, tmp_path / "data"))
    hub.close()
    assert len(download(options(hub, tmp_path / "data", offline=True)).files) == 3
    with pytest.raises(InputError, match="training shards"):
        download(options(hub, tmp_path / "data", offline=True, train_shards=9))
    content = bytearray((tmp_path / "data" / VAL).read_bytes())
    content[5] ^= 1
    (tmp_path / "data" / VAL).write_bytes(content)
    with pytest.raises(InputError, match="not what the manifest says"):
        download(options(hub, tmp_path / "data", offline=True))


def test_the_pin_holds_when_the_repository_moves_on(hub: Hub, tmp_path: Path) -> None:
    download(options(hub, tmp_path / "data"))
    (tmp_path / "data" / VAL).unlink()
    hub.files[VAL] = bytes(len(hub.files[VAL]))
    with pytest.raises(InputError, match="refused"):
        download(options(hub, tmp_path / "data"))


def test_unknown_repository_variant_and_missing_extra(hub: Hub, tmp_path: Path, monkeypatch, capsys) -> None:
    with pytest.raises(InputError, match="cannot be listed"):
        download(options(hub, tmp_path / "data", repo="no/such"))
    with pytest.raises(InputError, match="it has sp384, sp512"):
        download(options(hub, tmp_path / "data", variant="sp4096"))
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run_command(["data", "download", "--out", str(tmp_path / "x"), "--endpoint", hub.endpoint]) == 2
    assert "pip install 'evalkit[data]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["[]", '{"files": 3}', '{"repo": "a/b", "commit": "c", "files": [{"path": "../x"}]}']
)
def test_a_damaged_manifest_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="remove it to start over"):
        download(DownloadOptions(out=tmp_path, offline=True))


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    line = f'{{"path": "{VAL}", "local": "../../etc/passwd", "bytes": 1, "hash": "{"0" * 64}"}}'
    (tmp_path / "manifest.json").write_text(f'{{"repo": "a/b", "commit": "c", "files": [{line}]}}')
    with pytest.raises(InputError, match="never writes"):
        download(DownloadOptions(out=tmp_path, offline=True))
