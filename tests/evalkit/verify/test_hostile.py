"""A stranger's folder: bounded time and memory, and exit code 2 or a verdict, whatever is in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from folders import Made

from evalkit.cli.main import run_command
from evalkit.plumbing.errors import InputError
from evalkit.verify.page import page
from evalkit.verify.text import as_text
from evalkit.verify.verify import verify_folder


def test_a_log_of_one_endless_line(made: Made) -> None:
    path = made.write()
    with (path / "huge.log").open("wb") as file:
        file.truncate(500 << 20)  # sparse: takes no room on the disk
    with (path / "long.log").open("wb") as file:
        file.write(b"val_bpb:1." + b"1" * (20 << 20))
    tracemalloc.start()
    report = verify_folder(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20
    assert report.verdict == "consistent"
    assert any("huge.log" in note for note in report.folder.notes)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 50_000, '{"val_bpb": 1e99999, "x": "' + "9" * 10_000, "", "\0"]
)
def test_a_json_that_is_none(made: Made, content: str) -> None:
    path = made.write()
    (path / "submission.json").write_text(content)
    assert verify_folder(path).verdict == "incomplete"


def test_numbers_beyond_float64(made: Made) -> None:
    digits = "9" * 400
    path = made.write()
    (path / "submission.json").write_text(
        f'{{"val_bpb": {digits}, "seed": {digits}, "bytes_total": 1e999, "x": 1e-{digits}}}'
    )
    (path / "long.log").write_text(
        f"seed: {digits}\nstep:{digits}/9 train_time:{digits}ms\nTotal submission size: {digits} bytes\n"
        f"final val_loss:{digits}.5 val_bpb:1.25 bytes={digits} tokens=1e999\n"
    )
    json.dumps(verify_folder(path).to_dict(), allow_nan=False)


def test_a_json_of_very_many_values(made: Made) -> None:
    path = made.write()
    (path / "submission.json").write_text(json.dumps({"val_bpb": 1.1, "x": list(range(300_000))}))
    assert verify_folder(path).folder.declared.problem is not None


def test_links_are_not_followed(made: Made, tmp_path: Path) -> None:
    secret = tmp_path / "secret.log"
    secret.write_text(made.log(1, bpb=1.05))
    path = made.write()
    (path / "link.log").symlink_to(secret)
    (path / "loop").symlink_to(path)
    report = verify_folder(path)
    assert {run.file for run in report.folder.runs} == {f"train_seed{s}.log" for s in made.bpb}
    assert "2 links were not followed" in report.folder.notes


def test_ten_thousand_files(made: Made) -> None:
    path = made.write()
    for i in range(10_000):
        os.close(os.open(path / f"x{i}.log", os.O_CREAT))
    report = verify_folder(path)
    assert any("the first 200" in note for note in report.folder.notes)


def test_a_pipe_is_not_waited_for(made: Made) -> None:
    path = made.write()
    os.mkfifo(path / "pipe.log")
    assert verify_folder(path).verdict == "consistent"


def test_lines_that_would_steer_a_terminal_or_a_page(made: Made) -> None:
    made.declared["val_bpb"] = 1.09
    logs = {f"train_seed{s}.log": made.log(s) for s in made.bpb}
    evil = "\x1b[31m<script>alert(1)</script>"
    logs = {
        name: text.replace("roundtrip_exact val_loss", f"roundtrip_exact {evil} val_loss")
        for name, text in logs.items()
    }
    report = verify_folder(made.write(logs))
    assert "\x1b" not in as_text(report)
    assert "<script>alert" not in page(report)


def test_nothing_of_a_submission_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.md").write_text("hello")
    assert run_command(["verify", str(tmp_path)]) == 2
    assert "holds no submission" in capsys.readouterr().err
    with pytest.raises(InputError, match="not a folder"):
        verify_folder(tmp_path / "notes.md")


def test_torch_is_not_imported(made: Made) -> None:
    code = (
        "import sys; from evalkit.cli.main import run_command as run; "
        "sys.exit(run(sys.argv[1:]) or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, "verify", str(made.write())], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "consistent" in done.stdout
