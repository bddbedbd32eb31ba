"""Downloads by huggingface_hub's own functions, which a stand-in takes the place of: no network."""

from __future__ import annotations

import builtins
import fnmatch
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evalkit.cli.main import run_command
from evalkit.data import download as module
from evalkit.data.download import DownloadOptions, download
from evalkit.plumbing.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/golf"
VAL = "datasets/fineweb10B_sp384/fineweb_val_000000.bin"
TRAIN = "datasets/fineweb10B_sp384/fineweb_train_000000.bin"


class FakeHub:
    """The part of huggingface_hub that a download calls.

    Attributes:
        files: of the repository, by path; those of ``datasets`` lie under one more ``datasets``, as the challenge's do.
        stop_after: files that arrive before the connection breaks.
        corrupt: paths whose content arrives with one byte changed.
        fetched: paths that were sent.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.files = {
            f"datasets/{VAL}": rng.bytes(3000),
            f"datasets/{TRAIN}": rng.bytes(2000),
            "datasets/datasets/fineweb10B_sp384/fineweb_train_000001.bin": rng.bytes(1000),
            "datasets/datasets/fineweb10B_sp512/fineweb_val_000000.bin": rng.bytes(1000),
            "datasets/tokenizers/fineweb_384_bpe.model": rng.bytes(500),
            "datasets/tokenizers/fineweb_512_bpe.model": rng.bytes(500),
            "README.md": b"hello",
        }
        self.published = {name: self._sibling(name, data) for name, data in self.files.items()}
        self.stop_after: int | None = None
        self.corrupt: set[str] = set()
        self.fetched: list[str] = []
        self.utils = SimpleNamespace(disable_progress_bars=lambda: None)

    def HfApi(self, endpoint: str | None) -> FakeHub:
        return self

    def dataset_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> Any:
        if repo != REPO:
            raise OSError("404 Client Error: Repository Not Found")
        return SimpleNamespace(sha=COMMIT, siblings=list(self.published.values()))

    def snapshot_download(
        self, repo: str, *, repo_type: str, revision: str, local_dir: Path, allow_patterns: list[str], endpoint: Any
    ) -> None:
        assert (repo, repo_type, revision) == (REPO, "dataset", COMMIT)
        for name, data in self.files.items():
            target = local_dir / name
            if not any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns) or target.exists():
                continue
            if self.stop_after is not None and len(self.fetched) >= self.stop_after:
                raise OSError("connection reset")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(bytes([data[0] ^ 1]) + data[1:] if name in self.corrupt else data)
            self.fetched.append(name)

    @staticmethod
    def _sibling(name: str, data: bytes) -> Any:
        lfs = SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if name.endswith(".bin") else None
        blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        return SimpleNamespace(rfilename=name, size=len(data), lfs=lfs, blob_id=blob)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(module, "_hub", lambda: fake)
    return fake


def options(hub: FakeHub, out: Path, **changes: Any) -> DownloadOptions:
    return DownloadOptions(**({"out": out, "repo": REPO, "variant": "sp384"} | changes))


def test_fetches_what_was_asked_for_and_nothing_twice(hub: FakeHub, tmp_path: Path) -> None:
    result = download(options(hub, tmp_path / "data"))
    assert result.commit == COMMIT
    assert result.fetched_bytes == 5500
    names = {str(p.relative_to(tmp_path / "data")) for p in (tmp_path / "data").rglob("*") if p.is_file()}
    assert names == {VAL, TRAIN, "tokenizers/fineweb_384_bpe.model", "manifest.json"}
    for name in (VAL, TRAIN):
        assert (tmp_path / "data" / name).read_bytes() == hub.files[f"datasets/{name}"]
    hub.fetched.clear()
    assert download(options(hub, tmp_path / "data")).fetched_bytes == 0
    assert hub.fetched == []


def test_an_interrupted_download_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    hub.stop_after = 1
    with pytest.raises(InputError, match="run the same command again to continue"):
        download(options(hub, tmp_path / "data"))
    assert not (tmp_path / "data" / VAL).exists()  # nothing takes its place before all is checked
    hub.stop_after = None
    download(options(hub, tmp_path / "data"))
    assert sorted(hub.fetched) == sorted(set(hub.fetched))
    assert (tmp_path / "data" / VAL).read_bytes() == hub.files[f"datasets/{VAL}"]


def test_corrupted_content_is_refused_and_removed(hub: FakeHub, tmp_path: Path) -> None:
    hub.corrupt.add(f"datasets/{VAL}")
    with pytest.raises(InputError, match="was refused and removed"):
        download(options(hub, tmp_path / "data"))
    assert not (tmp_path / "data" / VAL).exists()
    hub.corrupt.clear()
    download(options(hub, tmp_path / "data"))
    assert (tmp_path / "data" / VAL).read_bytes() == hub.files[f"datasets/{VAL}"]


def test_small_files_are_checked_by_their_git_hash(hub: FakeHub, tmp_path: Path) -> None:
    hub.corrupt.add("datasets/tokenizers/fineweb_384_bpe.model")
    with pytest.raises(InputError, match=r"tokenizers/fineweb_384_bpe\.model"):
        download(options(hub, tmp_path / "data"))


def test_offline_touches_no_network_and_notices_a_change(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without --offline"):
        download(options(hub, tmp_path / "data", offline=True))
    download(options(hub, tmp_path / "data"))
    hub.fetched.clear()
    assert len(download(options(hub, tmp_path / "data", offline=True)).files) == 3
    assert hub.fetched == []
    with pytest.raises(InputError, match="training shards"):
        download(options(hub, tmp_path / "data", offline=True, train_shards=9))
    content = bytearray((tmp_path / "data" / VAL).read_bytes())
    content[5] ^= 1
    (tmp_path / "data" / VAL).write_bytes(content)
    with pytest.raises(InputError, match="not what the manifest says"):
        download(options(hub, tmp_path / "data", offline=True))


def test_the_pin_holds_when_the_repository_moves_on(hub: FakeHub, tmp_path: Path) -> None:
    download(options(hub, tmp_path / "data"))
    (tmp_path / "data" / VAL).unlink()
    hub.files[f"datasets/{VAL}"] = bytes(3000)
    with pytest.raises(InputError, match="refused"):
        download(options(hub, tmp_path / "data"))


def test_unknown_repository_and_variant(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be listed"):
        download(options(hub, tmp_path / "data", repo="no/such"))
    with pytest.raises(InputError, match="it has sp384, sp512"):
        download(options(hub, tmp_path / "data", variant="sp4096"))


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run_command(["data", "download", "--out", str(tmp_path / "x")]) == 2
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
