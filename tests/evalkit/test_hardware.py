"""The device and the type of the matrices: a measurement decides, once a machine, and no other load turns it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from evalkit.plumbing import hardware
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.hardware import MatrixSpeed, matrix_speed, require_device, resolve_device
from evalkit.verbs.configure import choose_dtype
from evalkit.verbs.options import ScoreOptions
from evalkit.verbs.session import open_model

SLOW = MatrixSpeed(processor="a processor", float32=120.0, bfloat16=25.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The devices that were measured; each measurement finds ``SLOW``."""
    found: list[str] = []
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "_measured", lambda device, processor: found.append(device) or SLOW)
    return found


def test_a_machine_is_measured_once(measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert matrix_speed("cpu") == matrix_speed("cpu") == SLOW
    assert measured == ["cpu"]
    (key,) = json.loads((tmp_path / "cache" / "matrix-speed.json").read_text())
    assert torch.__version__ in key
    monkeypatch.setattr(hardware, "_processor", lambda device: "another processor")
    matrix_speed("cpu")
    assert measured == ["cpu", "cpu"]
    assert len(json.loads((tmp_path / "cache" / "matrix-speed.json").read_text())) == 2


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b'{"x": {"float32": 1}}', b'{"x": 3}'])
def test_a_damaged_file_is_measured_again(content: bytes, measured: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "matrix-speed.json").write_bytes(content)
    assert matrix_speed("cpu") == matrix_speed("cpu") == SLOW
    assert measured == ["cpu"]


def test_without_a_folder_to_write_it_is_measured_each_time(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "file" / "below"))
    assert matrix_speed("cpu") == matrix_speed("cpu") == SLOW
    assert measured == ["cpu", "cpu"]


@pytest.mark.parametrize(("bfloat16", "taken"), [(25.0, False), (60.0, False), (125.0, False), (200.0, True)])
def test_bfloat16_is_taken_only_where_it_is_clearly_faster(bfloat16: float, taken: bool) -> None:
    speed = replace(SLOW, bfloat16=bfloat16)
    assert speed.prefers_bfloat16 is taken
    assert f"{bfloat16 / 120:.1f} times" in str(speed)


def test_this_machine_multiplies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path))
    speed = matrix_speed("cpu")
    assert min(speed.float32, speed.bfloat16) > 0.01
    assert speed == matrix_speed("cpu")


@pytest.mark.parametrize(
    ("parameters", "speed", "dtype", "words"),
    [
        (9_999_999, replace(SLOW, bfloat16=500.0), "float32", "9,999,999 parameters is small"),
        (27_000_000, SLOW, "float32", "0.2 times as fast"),
        (27_000_000, replace(SLOW, bfloat16=500.0), "bfloat16", "4.2 times as fast"),
    ],
)
def test_the_type_and_its_reason(
    parameters: int, speed: MatrixSpeed, dtype: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalkit.plumbing.hardware.matrix_speed", lambda device: speed)
    options = ScoreOptions(artifact="x", tokenizer="x", text="x")
    chosen, because = choose_dtype(options, SimpleNamespace(num_parameters=parameters))
    assert chosen == dtype
    assert words in because
    assert choose_dtype(replace(options, dtype="bfloat16"), SimpleNamespace()) == ("bfloat16", "--dtype")


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cuda:1") == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(InputError, match="no CUDA device"):
        require_device("cuda")


def test_auto_leaves_what_cannot_be_moved_on_the_cpu(
    tiny_artifact: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    common = {"tokenizer": str(tokenizer_path), "text": "-"}
    assert open_model(ScoreOptions(artifact=str(tiny_artifact), **common)).options.device == "cuda"
    assert open_model(ScoreOptions(module=lambda ids: None, **common)).options.device == "cpu"
    assert open_model(ScoreOptions(mixer="hedge", **common)).options.device == "cpu"
