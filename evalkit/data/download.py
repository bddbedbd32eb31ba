"""Fetch shards and tokenizer from a dataset repository of the Hugging Face hub: pinned to a commit, hashes checked.

The transfer is huggingface_hub's (``snapshot_download``, which does not fetch twice what has arrived). The hub gives a
hash of every file at every commit: SHA-256 of large files, git's blob hash of small ones. The first download resolves
the revision to a commit and writes both down in ``manifest.json``; later ones stay with that commit. A file takes its
place only when its hash is right.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_json
from evalkit.plumbing.log import LOG
from evalkit.plumbing.settings import require

DEFAULT_REPO = "willdepueoai/parameter-golf"
MANIFEST = "manifest.json"
_BLOCK = 2**20
_ARRIVING = ".arriving"  # a folder in the data folder, for what is not checked yet
_HASHES = {64: "sha256", 40: "git"}


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """What to fetch.

    Attributes:
        out: folder; shards go to ``datasets/``, tokenizers to ``tokenizers/`` in it, as the challenge lays them out.
        repo: dataset repository, ``owner/name``.
        revision: commit, tag or branch; None takes the manifest's commit, or ``main`` the first time.
        endpoint: address of the hub; None for huggingface_hub's own (environment variable ``HF_ENDPOINT``).
        variant: tokenizer family, such as ``sp1024``.
        train_shards: number of training shards, from the first; the validation shards always come whole.
        offline: touch no network: check that everything is there and unchanged.
    """

    out: Path
    repo: str = DEFAULT_REPO
    revision: str | None = None
    endpoint: str | None = None
    variant: str = "sp1024"
    train_shards: int = 1
    offline: bool = False

    def __post_init__(self) -> None:
        require(self.train_shards >= 0, "--train-shards", self.train_shards, "0 or more")
        named = re.fullmatch(r"[A-Za-z]+\d+", self.variant) is not None
        require(named, "--variant", repr(self.variant), "a name such as sp1024")
        require(re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo) is not None, "--repo", repr(self.repo), "OWNER/NAME")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of the repository at the pinned commit.

    Attributes:
        path: in the repository.
        local: in the folder.
        size: in bytes.
        digest: SHA-256 (64 hexadecimal digits) or git's blob hash (40).
    """

    path: str
    local: str
    size: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """What is there now.

    Attributes:
        commit: that it came from.
        files: every file asked for.
        fetched_bytes: bytes of those that were not there before.
    """

    commit: str
    files: tuple[RemoteFile, ...]
    fetched_bytes: int


def download(options: DownloadOptions) -> Downloaded:
    """Bring the files that are missing, check all of them.

    Raises:
        InputError: the hub cannot be reached, lacks the files, or sent content whose hash is wrong; or, offline,
            something is missing or changed.
    """
    manifest = _read_manifest(options.out)
    if options.offline:
        if manifest is None:
            raise InputError(f"{options.out / MANIFEST} does not exist; download once without --offline")
        files = _chosen(manifest.files, options)
        for file in files:
            _check_present(options.out / file.local, file)
        return Downloaded(commit=manifest.commit, files=files, fetched_bytes=0)
    if manifest is not None and manifest.repo != options.repo:
        raise InputError(f"{options.out} holds files of {manifest.repo}; name another folder for {options.repo}")
    if manifest is not None and options.revision in (None, manifest.commit):
        LOG.debug("commit %s, as pinned in %s", manifest.commit, options.out / MANIFEST)
        commit, listed = manifest.commit, manifest.files
    else:
        commit, listed = _list_remote(options)
        LOG.debug("commit %s, as the hub has %s of %s", commit, options.revision or "main", options.repo)
        if manifest is not None and manifest.commit != commit:
            raise InputError(
                f"{options.out} is pinned to commit {manifest.commit}, --revision {options.revision} is {commit}; "
                f"name another folder, or remove {options.out / MANIFEST} to change the pin"
            )
    files = _chosen(listed, options)
    options.out.mkdir(parents=True, exist_ok=True)
    value = {
        "repo": options.repo,
        "commit": commit,
        "files": [{"path": f.path, "local": f.local, "bytes": f.size, "hash": f.digest} for f in listed],
    }
    write_json(options.out / MANIFEST, value)
    missing = [file for file in files if not _is_right(options.out / file.local, file)]
    if missing:
        _fetch(options, commit, missing)
    LOG.info("%d files were there already, their hashes right", len(files) - len(missing))
    return Downloaded(commit=commit, files=files, fetched_bytes=sum(file.size for file in missing))


def _is_right(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and file_digest(path, file) == file.digest


def file_digest(path: Path, file: RemoteFile) -> str:
    """Return the hash of a file, of the kind that the hub gives for it."""
    large = len(file.digest) == 64
    digest = hashlib.sha256() if large else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Manifest:
    repo: str
    commit: str
    files: tuple[RemoteFile, ...]


def _read_manifest(out: Path) -> _Manifest | None:
    path = out / MANIFEST
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(
            RemoteFile(path=str(f["path"]), local=str(f["local"]), size=int(f["bytes"]), digest=str(f["hash"]))
            for f in value["files"]
        )
        manifest = _Manifest(str(value["repo"]), str(value["commit"]), files)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path} is not a manifest of evalkit data download; remove it to start over") from None
    for file in files:
        if file.local != _local_name(file.path) or len(file.digest) not in _HASHES:
            raise InputError(f"{path} lists {file.path!r} in a way that download never writes; remove it to start over")
    return manifest


def _local_name(path: str) -> str | None:
    """Return where a file of the repository goes, or None for files that are neither shard nor tokenizer."""
    match = re.search(
        r"(?:^|/)(datasets/\w+_[A-Za-z]+\d+/fineweb_(?:train|val)_\d{6}\.bin|tokenizers/[\w-]+\.(?:model|vocab|json))$",
        path,
    )
    return match[1] if match else None


def _chosen(listed: tuple[RemoteFile, ...], options: DownloadOptions) -> tuple[RemoteFile, ...]:
    number = re.sub(r"\D", "", options.variant)
    train: list[RemoteFile] = []
    val: list[RemoteFile] = []
    tokenizers: list[RemoteFile] = []
    for file in sorted(listed, key=lambda f: f.local):
        if re.match(rf"datasets/\w+_{options.variant}/", file.local):
            (train if "_train_" in file.local else val).append(file)
        elif re.match(rf"tokenizers/\w*_{number}(_|\.)", file.local):
            tokenizers.append(file)
    if not val:
        known = sorted({m[1] for f in listed if (m := re.match(r"datasets/\w+_([A-Za-z]+\d+)/", f.local))})
        raise InputError(f"{options.repo} has no validation shards of {options.variant}; it has {', '.join(known)}")
    if len(train) < options.train_shards:
        raise InputError(f"{options.variant} has {len(train)} training shards; --train-shards {options.train_shards}")
    return tuple(val + train[: options.train_shards] + tokenizers)


def _list_remote(options: DownloadOptions) -> tuple[str, tuple[RemoteFile, ...]]:
    hub = _hub()
    try:
        info = hub.HfApi(endpoint=options.endpoint).dataset_info(
            options.repo, revision=options.revision, files_metadata=True
        )
    except Exception as error:  # huggingface_hub passes on the errors of whichever HTTP library it stands on
        raise InputError(
            f"dataset {options.repo} at revision {options.revision or 'main'} cannot be listed: "
            f"{_first_line(error)}; check --repo, --revision, --endpoint and the network"
        ) from None
    files = []
    for sibling in info.siblings or []:
        local = _local_name(sibling.rfilename)
        if local is None:
            continue
        digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if sibling.size is None or not digest or len(digest) not in _HASHES:
            raise InputError(f"the hub gives neither size nor hash of {sibling.rfilename}; it cannot be checked")
        files.append(RemoteFile(path=sibling.rfilename, local=local, size=int(sibling.size), digest=digest))
    if not info.sha:
        raise InputError(f"the hub does not say which commit {options.revision or 'main'} of {options.repo} is")
    return str(info.sha), tuple(files)


def _fetch(options: DownloadOptions, commit: str, files: list[RemoteFile]) -> None:
    """Have the hub's library fetch files, check them, and put them in their places."""
    hub = _hub()
    if not LOG.isEnabledFor(logging.INFO):
        hub.utils.disable_progress_bars()
    arriving = options.out / _ARRIVING
    try:
        hub.snapshot_download(
            options.repo,
            repo_type="dataset",
            revision=commit,
            local_dir=arriving,
            allow_patterns=[file.path for file in files],
            endpoint=options.endpoint,
        )
    except Exception as error:  # huggingface_hub passes on the errors of whichever HTTP library it stands on
        raise InputError(
            f"{options.repo} cannot be fetched: {_first_line(error)}; run the same command again to continue"
        ) from None
    for file in files:
        found = arriving / file.path
        if not _is_right(found, file):
            digest = file_digest(found, file) if found.is_file() else "none: it did not arrive"
            found.unlink(missing_ok=True)
            raise InputError(
                f"{file.path}: the content that arrived has hash {digest}, the hub publishes {file.digest}; "
                f"it was refused and removed, run the same command again"
            )
        target = options.out / file.local
        target.parent.mkdir(parents=True, exist_ok=True)
        found.replace(target)
        LOG.info("%s: %s bytes, %s right", file.local, f"{file.size:,}", _HASHES[len(file.digest)])
    shutil.rmtree(arriving, ignore_errors=True)


def _check_present(path: Path, file: RemoteFile) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing; run the same command without --offline")
    if not _is_right(path, file):
        raise InputError(f"{path} is not what the manifest says (hash {file.digest}); remove it and download again")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.utils
    except ImportError:
        raise InputError(
            "downloading needs the package huggingface_hub; install it with pip install 'evalkit[data]'"
        ) from None
    return huggingface_hub
