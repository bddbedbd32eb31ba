"""Fuzz the readers of files that strangers make: random mutations of valid inputs, each target in a process of its own.

    python bench/fuzz.py --inputs 120000 --seconds 600 --json fuzz.json

A reader may answer in two ways: with a value, or with ``InputError``. Anything else is a crash;
more than ``--hang`` seconds on one input is a hang; both are written to ``--keep``. A process that ever holds more than
``--memory`` MiB beyond what it held before its first input breaks the memory bound. Where a checksum guards a format,
most mutations are applied behind it and the checksum is made right again, or nothing else would ever be reached.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import multiprocessing
import os
import random
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import zstandard

from evalkit.artifact.compression import inflate
from evalkit.artifact.load import load_artifact
from evalkit.artifact.native import _HEADER_FILTERS, NativeMetadata, write_native
from evalkit.codec.container import MAGIC, Header, pack, unpack
from evalkit.legality.report import Finding, LegalityReport
from evalkit.model.gpt import GPT
from evalkit.plumbing.errors import EvalkitError
from evalkit.recipes import load_recipe
from evalkit.report.load import SavedReport, read_report, read_token_scores
from evalkit.report.page import PageOptions, build_page
from evalkit.report.score_report import ArtifactIdentity, ScoreReport
from evalkit.source.reading import read_source
from evalkit.tokens.shards import open_shard, write_shard
from evalkit.tokens.stream import TokenStream, read_documents
from evalkit.tokens.tokenizer import Tokenizer
from evalkit.train.export.export import pack_artifact, quantize_state_dict
from evalkit.train.export.torch_layouts import LAYOUTS
from evalkit.train.quantization.plan import PLANS
from evalkit.verbs.coding import restored_options
from evalkit.verify.verify import verify_folder

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.evalkit.reports import invented_report
from tests.evalkit.source.source_scripts import plain

INTERESTING = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1]
COMPRESSIONS = ("zstd", "xz", "zlib")
NASTY_JSON = [
    "null", "true", "-1", "0", "1e999", "-1e308", "NaN", "Infinity", '""', "[]", "{}", '"\\ud800"', "1" * 5000,
    '"' + "a" * 3000 + '"', "[" * 2000 + "]" * 2000, "4294967296", "9007199254740993", "0.1", '"none"', "1099511627776",
    '"../../x"', "[1,2,3]", '{"sha256":"x"}',
]  # fmt: skip

_LOG = b"""num_layers:2 model_dim:64 seed:1337
step:100/200 train_loss:3.1 train_time:1000ms step_avg:10.0ms
step:200/200 val_loss:2.0726 val_bpb:1.2271 train_time:2000ms
Total submission size int8+zlib: 15900000 bytes
final_int8_zlib_roundtrip_exact val_loss:2.07300000 val_bpb:1.22750000
"""
_SUBMISSION = json.dumps(
    {"name": "x", "val_bpb": 1.2275, "val_loss": 2.073, "bytes_total": 15_900_000, "seeds": [1337]}
).encode()


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Return ``data`` with one to six random changes."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        if not out:
            return bytes(out)
        at = rng.randrange(len(out))
        kind = rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice([1, 2, 4, 8])
            out[at : at + size] = (rng.choice(INTERESTING) % (1 << (8 * size))).to_bytes(size, "little")
        elif kind == 3:
            del out[at : at + rng.randrange(1, 33)]
        elif kind == 4:
            out[at:at] = rng.randbytes(rng.randrange(1, 17))
        elif kind == 5:
            start = rng.randrange(len(out))
            out[at:at] = out[start : start + rng.randrange(1, 65)]
        elif kind == 6:
            del out[at:]
        else:
            size = rng.randrange(1, 17)
            out[at : at + size] = bytes([rng.choice([0, 0xFF])]) * size
    return bytes(out)


def mutate_json(rng: random.Random, text: bytes) -> bytes:
    """Return JSON with some values, keys or bytes replaced."""
    if rng.random() < 0.3:
        return mutate(rng, text)
    try:
        value = json.loads(text)
    except ValueError:
        return mutate(rng, text)
    marks: dict[str, str] = {}
    for _ in range(rng.choice([1, 1, 2, 4])):
        value = _replace_one(rng, value, marks)
    out = json.dumps(value)
    for mark, nasty in marks.items():
        out = out.replace(f'"{mark}"', nasty)
    return out.encode("utf-8", "surrogatepass")


def _replace_one(rng: random.Random, value: Any, marks: dict[str, str]) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {k: _replace_one(rng, v, marks) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return [_replace_one(rng, v, marks) if i == at else v for i, v in enumerate(value)]
    mark = f"@mark{len(marks)}@"
    marks[mark] = rng.choice(NASTY_JSON)
    return mark


@dataclass
class Target:
    """One reader: ``make(rng)`` gives an input, ``read(data)`` reads it, and must accept ``valid``."""

    name: str
    share: float
    valid: bytes
    make: Callable[[random.Random], bytes]
    read: Callable[[bytes], None]


@dataclass
class Outcome:
    """What a target came to."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    crashes: list[str] = field(default_factory=list)
    hangs: int = 0
    slowest: float = 0.0
    peak_mib: float = 0.0
    baseline_mib: float = 0.0
    seconds: float = 0.0


def build_targets(folder: Path) -> list[Target]:
    """Make valid inputs and the targets; ``folder`` should be in memory."""
    return [
        *_artifact_targets(folder),
        _shard_target(folder),
        _coded_target(folder),
        *_document_targets(folder),
        *_report_targets(folder),
        *_submission_targets(folder),
    ]


def _through_file(folder: Path, suffix: str, read: Callable[[Path], Any]) -> Callable[[bytes], None]:
    """Return a reader of bytes that hands them over as a file with this suffix."""
    name = folder / f"input-{os.getpid()}{suffix}"

    def reader(data: bytes) -> None:
        name.write_bytes(data)
        read(name)

    return reader


def _artifact_targets(folder: Path) -> Iterator[Target]:
    artifacts = _valid_artifacts()
    payloads = {name: inflate(data) for name, data in artifacts.items() if name != "native"}

    def make_torch(rng: random.Random) -> bytes:
        name = rng.choice(list(payloads))
        if rng.random() < 0.3:
            return mutate(rng, artifacts[name])
        content = mutate(rng, payloads[name])
        if rng.random() < 0.5:
            return zstandard.compress(content, 1)
        return zlib.compress(content, 1)

    def make_index(rng: random.Random) -> bytes:
        """Change the pickled index alone and repair the zip around it."""
        source = zipfile.ZipFile(io.BytesIO(payloads[rng.choice(list(payloads))]))
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for member in source.namelist():
                data = source.read(member)
                archive.writestr(member, mutate(rng, data) if member.endswith("data.pkl") else data)
        return zlib.compress(out.getvalue(), 1)

    def make_native(rng: random.Random) -> bytes:
        data = artifacts["native"]
        if rng.random() < 0.1:
            return mutate(rng, data)
        body = data[41:]
        length = int.from_bytes(body[:4], "little")
        header, payload = body[4 : 4 + length], body[4 + length :]
        if rng.random() < 0.6:
            raw = lzma.decompress(header, format=lzma.FORMAT_RAW, filters=_HEADER_FILTERS)
            header = lzma.compress(mutate_json(rng, raw), format=lzma.FORMAT_RAW, filters=_HEADER_FILTERS)
        else:
            payload = mutate(rng, payload)
        length = rng.choice(INTERESTING) % 2**32 if rng.random() < 0.05 else len(header)
        body = length.to_bytes(4, "little") + header + payload
        return data[:9] + hashlib.sha256(body).digest() + body

    def read(file: Path) -> None:
        load_artifact(file).resolve("pr849")

    readers = {suffix: _through_file(folder, suffix, read) for suffix in (".ptz", ".idx", ".evk")}
    yield Target("torch artifact", 0.14, artifacts["torch-xz"], make_torch, readers[".ptz"])
    yield Target("torch index", 0.12, artifacts["torch-zlib"], make_index, readers[".idx"])
    yield Target("native container", 0.12, artifacts["native"], make_native, readers[".evk"])


def _shard_target(folder: Path) -> Target:
    write_shard(folder / "shard.bin", np.random.default_rng(0).integers(0, 384, 3000))
    shard = (folder / "shard.bin").read_bytes()

    def make(rng: random.Random) -> bytes:
        data = mutate(rng, shard[:1024] if rng.random() < 0.5 else shard)
        return data if len(data) > 1100 else data + shard[1024:]

    def read(file: Path) -> None:
        stream = TokenStream(parts=(open_shard(file),), names=("x",))
        stream.sha256()
        stream.truncated(100).read(0, 100)

    return Target("shard", 0.12, shard, make, _through_file(folder, ".bin", read))


def _coded_target(folder: Path) -> Target:
    tokenizer = folder / "tiny.model"
    words = np.arange(300, dtype="<u4").tobytes()
    coded = pack(
        Header(
            artifact_sha256="0" * 64,
            options={
                "recipe": None,
                "seq_len": 128,
                "stride": 64,
                "mixer": "hedge",
                "ttt": False,
                "dtype": "float32",
                "batch_windows": 32,
                "context": "sliding",
                "settings": {"model": {}},
                "tokenizer_sha256": Tokenizer(tokenizer).sha256,
            },
            tokens=1000,
            first=1,
            vocab_size=384,
            span=64,
            tokens_sha256="2" * 64,
            words_bytes=len(words),
            extra_bytes=6,
            text={"kind": "exact"},
        ),
        words,
        b"\1\2\3\4\5\6",
    )

    def make_coded(rng: random.Random) -> bytes:
        if rng.random() < 0.1:
            return mutate(rng, coded)
        (length,) = struct.unpack("<I", coded[5:9])
        header, rest = coded[9 : 9 + length], coded[9 + length : -32]
        header, rest = (mutate_json(rng, header), rest) if rng.random() < 0.8 else (header, mutate(rng, rest))
        body = MAGIC + struct.pack("<BI", 1, len(header)) + header + rest
        return body + hashlib.sha256(body).digest()

    def read_coded(data: bytes) -> None:
        header, _, _ = unpack(data)
        restored_options(header, "x", str(tokenizer))

    return Target("compressed file", 0.14, coded, make_coded, read_coded)


def _document_targets(folder: Path) -> Iterator[Target]:
    lines = b"".join(
        json.dumps({"text": text, "n": 1}).encode() + b"\n" for text in ("one two", "na\u00efve \u2192", "x" * 80)
    )

    def make_lines(rng: random.Random) -> bytes:
        parts = lines.splitlines(keepends=True)
        at = rng.randrange(len(parts))
        parts[at] = mutate_json(rng, parts[at]) + b"\n"
        return b"".join(parts) if rng.random() < 0.7 else mutate(rng, lines)

    def make_zst(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return mutate(rng, zstandard.compress(lines))
        return zstandard.compress(make_lines(rng), 1)

    def read(file: Path) -> None:
        for _ in read_documents(file):
            pass

    yield Target("documents", 0.1, lines, make_lines, _through_file(folder, ".jsonl", read))
    packed = zstandard.compress(lines)
    yield Target("documents, zstd", 0.06, packed, make_zst, _through_file(folder, ".jsonl.zst", read))


def _report_targets(folder: Path) -> Iterator[Target]:
    valid = SavedReport(path=folder / "report.json", report=_valid_report())
    report = json.dumps(valid.report.to_dict()).encode()
    finding = Finding(axiom="causality", position=7, evidence={"nats": 0.1}, message="moved")
    subject = {"subject": valid.report.subject()}
    audited = LegalityReport(findings=(finding,), covered=subject, uncovered=("x",), seconds=1.0)
    check = json.dumps(audited.to_dict()).encode()
    scores = io.BytesIO()
    np.savez(scores, position=np.arange(1, 101), nll=np.full(100, 2.5), bytes=np.full(100, 2, dtype=np.int32))

    def page(file: Path) -> None:
        build_page(read_report(file), PageOptions())

    def page_with_check(file: Path) -> None:
        build_page(valid, PageOptions(check=file))

    def token_scores(file: Path) -> None:
        read_token_scores(file, valid)

    def some_json(valid: bytes) -> Callable[[random.Random], bytes]:
        return lambda rng: mutate_json(rng, valid)

    yield Target("report", 0.08, report, some_json(report), _through_file(folder, ".json", page))
    yield Target("check", 0.02, check, some_json(check), _through_file(folder, ".check", page_with_check))
    packed = scores.getvalue()
    yield Target(
        "per-token file", 0.04, packed, lambda rng: mutate(rng, packed), _through_file(folder, ".npz", token_scores)
    )


def _submission_targets(folder: Path) -> Iterator[Target]:
    """Scripts, logs and submission.json, as ``--source``, ``--log`` and ``verify`` read them."""
    script = plain().encode()
    parts = {"train_gpt.py": script, "train.log": _LOG, "submission.json": _SUBMISSION}
    (folder / "submission").mkdir(exist_ok=True)

    def read_script(file: Path) -> None:
        read_source(str(file))

    def make_folder(rng: random.Random) -> bytes:
        name = rng.choice(list(parts))
        changed = (mutate_json if name.endswith("json") else mutate)(rng, parts[name])
        return b"\0\0".join([name.encode(), changed])

    def read_folder(data: bytes) -> None:
        name, _, changed = data.partition(b"\0\0")
        for part, content in parts.items():
            (folder / "submission" / part).write_bytes(changed if part.encode() == name else content)
        verify_folder(folder / "submission")

    yield Target(
        "training script", 0.04, script, lambda rng: mutate(rng, script), _through_file(folder, ".py", read_script)
    )
    valid = b"\0\0".join([b"train.log", _LOG])
    yield Target("submission folder", 0.04, valid, make_folder, read_folder)


def _valid_artifacts() -> dict[str, bytes]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = load_recipe("pr849").model_config(
        vocab_size=64, num_layers=2, model_dim=32, num_heads=2, num_kv_heads=2, mlp_hidden=24, bigram_buckets=16,
        bigram_dim=8, value_embed_dim=8, rope_dims=16,
    )  # fmt: skip
    state = {k: torch.randn_like(v) * 0.15 for k, v in GPT(config).state_dict().items()}
    tensors = quantize_state_dict(state, PLANS["pr849"])
    metadata = NativeMetadata(config=config.to_dict(), recipe={"name": "pr849", "seq_len": 64})
    layout_a = quantize_state_dict(state, PLANS["pr333"])
    return {
        **{f"torch-{how}": pack_artifact(tensors, f"torch-{how}", layout=LAYOUTS["pr849"]) for how in COMPRESSIONS},
        "layout A": pack_artifact(layout_a, "torch-zlib", layout=LAYOUTS["pr333"]),
        "native": write_native(tensors, metadata),
    }


def _valid_report() -> ScoreReport:
    return invented_report(
        artifact=ArtifactIdentity(
            path="missing.ptz", sha256="0", bytes=10, format="layout B", compression="zstd", parameters=5
        ),
        recipe="pr849",
        config={"vocab_size": 384},
        config_origins={"vocab_size": "shapes"},
        tokens_scored=100,
        bytes_scored=200,
        nats=250.0,
        stride=64,
        seq_len=128,
        context="sliding",
        ttt=True,
        mixer_report={
            "method": "hedge",
            "experts": {"neural": {"nats": 1.0, "leave_one_out_gain": 0.1, "mean_weight": 1.0}},
            "weights_over_time": [[1, 1.0]],
        },
        reliability={
            "positions": 3,
            "first_log_odds": -2,
            "tokens": [900, 8, 4, 2],
            "expected": [0.5, 1.0, 2.0, 1.5],
            "occurred": [0, 1, 2, 2],
            "max_difference": 0.0,
        },
        ttt_report={"chunks": [{"stop": 50, "steps": 1, "first_loss": 1.0, "last_loss": 1.0, "learning_rate": 0.1}]},
    )


def _peak_mib() -> float:
    """Return the most memory that this process has held, MiB (``ru_maxrss`` would include its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024


def _restart_peak_mib() -> float:
    """Forget the peak so far; return what is held now, MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_mib()


def _worker(
    index: int, seed: int, inputs: range, seconds: float, folder: str, outcome: Outcome, pipe: Any, beat: Any
) -> None:
    """Go on with what a target has come to, and send it back."""
    np.seterr(all="ignore")
    started = time.monotonic()
    work = Path(folder)
    make_tokenizer(work)
    target = build_targets(work)[index]
    target.read(target.valid)  # a reader that refuses valid input would make the counts worthless; also warms up
    outcome.baseline_mib = max(outcome.baseline_mib, _restart_peak_mib())
    for i in inputs:
        data = target.make(random.Random(f"{seed}-{target.name}-{i}"))
        (work / "current").write_bytes(data)
        began = time.monotonic()
        with beat.get_lock():
            beat[0], beat[1] = i, began
        outcome.inputs += 1
        try:
            target.read(data)
            outcome.accepted += 1
        except EvalkitError:
            outcome.refused += 1
        except BaseException:
            outcome.crashes.append(f"input {i}:\n{traceback.format_exc(limit=-6)}")
            (work / f"crash-{i}").write_bytes(data)
        outcome.slowest = max(outcome.slowest, time.monotonic() - began)
        if time.monotonic() - started > seconds:
            break
    outcome.peak_mib = max(outcome.peak_mib, _peak_mib())
    outcome.seconds += time.monotonic() - started
    pipe.send(outcome)


def make_tokenizer(folder: Path) -> None:
    """Train a tiny tokenizer: the reader of compressed files asks for one."""
    if (folder / "tiny.model").exists():
        return
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 50),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_id=0,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "tiny.model").write_bytes(model.getvalue())


def _fuzz(index: int, name: str, args: argparse.Namespace, count: int, seconds: float, folder: Path) -> Outcome:
    """Run one target in child processes; a child that dies or hangs is counted and replaced."""
    context = multiprocessing.get_context("spawn")
    total = Outcome()
    work = folder / str(index)
    work.mkdir()
    first = 0
    until = time.monotonic() + seconds
    while first < count and time.monotonic() < until:
        here, there = context.Pipe()
        beat = context.Array("d", [float(first), 0.0])
        process = context.Process(
            target=_worker,
            args=(index, args.seed, range(first, count), until - time.monotonic(), str(work), total, there, beat),
        )
        process.start()
        there.close()
        ended = None
        while ended is None:
            if here.poll(0.5):
                try:
                    ended = here.recv()
                except EOFError:
                    break
            if beat[1] and time.monotonic() - beat[1] > args.hang and process.is_alive() and not here.poll(0):
                process.kill()
                total.hangs += 1
                break
        process.join()
        if ended is None:
            at = int(beat[0])
            if process.exitcode != -9:
                total.crashes.append(f"input {at}: the process died with {process.exitcode}")
            keep = work / f"fatal-{at}"
            keep.write_bytes((work / "current").read_bytes())
            total.inputs += at - first + 1
            first = at + 1
            continue
        total = ended
        break
    if args.keep:
        for file in [*work.glob("crash-*"), *work.glob("fatal-*")]:
            Path(args.keep).mkdir(parents=True, exist_ok=True)
            (Path(args.keep) / f"{name.replace(' ', '-')}-{file.name}").write_bytes(file.read_bytes())
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=120_000, help="inputs in all")
    parser.add_argument("--seconds", type=float, default=900.0, help="wall time in all")
    parser.add_argument("--hang", type=float, default=20.0, help="seconds on one input that count as a hang")
    parser.add_argument("--memory", type=float, default=768.0, help="MiB that a reader may take: 3 x the inflation cap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="name of one target")
    parser.add_argument("--keep", help="folder for inputs that crash or hang")
    parser.add_argument("--json", help="file for the counts")
    args = parser.parse_args()
    memory = Path("/dev/shm")
    results: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        folder = Path(name)
        make_tokenizer(folder)
        shares = [(t.name, t.share) for t in build_targets(folder)]
        for index, (target, share) in enumerate(shares):
            if args.only and target != args.only:
                continue
            count = round(args.inputs * (1.0 if args.only else share))
            o = results[target] = _fuzz(
                index, target, args, count, args.seconds * (1.0 if args.only else share), folder
            )
            print(
                f"{target:18} {o.inputs:7,} inputs, {o.accepted:6,} accepted, {o.refused:7,} refused, {len(o.crashes)} "
                f"crashes, {o.hangs} hangs, slowest {o.slowest:.2f} s, peak {o.peak_mib:,.0f} MiB "
                f"({o.peak_mib - o.baseline_mib:,.0f} above the start), {o.seconds:.0f} s",
                flush=True,
            )
            for crash in o.crashes[:3]:
                print(crash)
    inputs, crashes = sum(o.inputs for o in results.values()), sum(len(o.crashes) for o in results.values())
    hangs, taken = sum(o.hangs for o in results.values()), max(o.peak_mib - o.baseline_mib for o in results.values())
    held = taken <= args.memory
    print(
        f"{inputs:,} inputs, {crashes} crashes, {hangs} hangs, at most {taken:,.0f} MiB taken: the bound of "
        f"{args.memory:,.0f} MiB {'held' if held else 'BROKEN'}"
    )
    if args.json:
        Path(args.json).write_text(json.dumps({name: vars(o) for name, o in results.items()}, indent=1) + "\n")
    return 1 if crashes or hangs or not held else 0


if __name__ == "__main__":
    sys.exit(main())
