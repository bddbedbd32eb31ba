"""Inputs as they come, and outputs that destroy none of them; every command by one rule."""

from __future__ import annotations

import os
import re
import select
import stat
import subprocess
import sys
import threading
from pathlib import Path

import click
import numpy as np
import pytest

from evalkit.cli.main import COMMANDS, LazyGroup, run_command
from evalkit.cli.paths import Output, role_of
from evalkit.plumbing.compiled import VARIABLE, name_cache_folder
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import check_outputs, expand, write_atomically, write_json
from evalkit.tokens.shards import write_shard

_NO_PATH = re.compile(r"(FILE|GLOB|DIR|FOLDER|MODEL|REPORT|CHECK|TEXT)")


def every_command() -> list[tuple[str, click.Command]]:
    group, found = LazyGroup("evalkit"), []
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        inner = command.commands if isinstance(command, click.Group) else {}
        found += [(f"{name} {part}", c) for part, c in inner.items()] or [(name, command)]
    return found


@pytest.mark.parametrize(
    ("name", "command"), every_command(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_parameter_that_names_a_path_is_looked_at(name: str, command: click.Command) -> None:
    folders_to_make = {"submit.folder", "run.submission", "demo.out", "data download.out", "data tokenize.out"}
    for parameter in command.params:
        if parameter.metavar and _NO_PATH.search(parameter.metavar):
            assert role_of(name, parameter) or f"{name}.{parameter.name}" in folders_to_make, (name, parameter.name)


def links(tmp_path: Path, kind: str) -> tuple[Path, Path]:
    """Return an input, and another name of it."""
    source, other = tmp_path / "in.txt", tmp_path / "other.txt"
    source.write_text("hello")
    if kind == "same":
        return source, source
    if kind == "dots":
        return source, tmp_path / "x" / ".." / "in.txt"
    (os.link if kind == "hard" else os.symlink)(source, other)
    return source, other


@pytest.mark.parametrize("kind", ["same", "dots", "hard", "symbolic"])
def test_an_output_that_is_an_input_by_any_name_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    source, other = links(tmp_path, kind)
    for output, inputs in ((other, [source]), (source, [other]), (other, [tmp_path])):
        with pytest.raises(InputError, match=r"--json names .* one of the inputs"):
            check_outputs({"--json": output}, inputs)
    check_outputs({"--json": tmp_path / "new.json"}, [source, tmp_path])


def test_two_outputs_of_one_file_are_refused_and_the_null_device_is_shared(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a.json")
    for second in ("a.json", "./a.json", "link"):
        with pytest.raises(InputError, match="--json and --dump-nll both name"):
            check_outputs({"--json": tmp_path / "a.json", "--dump-nll": f"{tmp_path}/{second}"})
    check_outputs({"--json": "/dev/null", "--dump-nll": "/dev/null"}, ["/dev/null"])


def test_commands_refuse_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / name for name in ("d.jsonl", "t.model", "m.evk", "x_val_0.bin", "in.txt", "c.json")}
    files["t.model"].write_bytes(b"tokenizer")
    files["m.evk"].write_bytes(b"artifact")
    for name in ("d.jsonl", "in.txt"):
        files[name].write_text('{"text": "hello"}\n')
    files["x_val_0.bin"].write_bytes(b"shard")
    files["c.json"].write_text("{}")
    before = {name: path.read_bytes() for name, path in files.items()}
    d, t, m, shard, text, report = map(str, files.values())
    alone = ["score", "--no-model", "--mixer", "hedge", "--tokenizer", t]
    for arguments in (
        [*alone, "--text", d, "--dump-nll", d],
        [*alone, "--text", d, "--json", t],
        [*alone, "--tokens", f"{tmp_path}/*_val_*.bin", "--json", shard],
        [*alone, "--tokens", str(tmp_path), "--json", shard],
        ["score", m, "--tokenizer", t, "--text", d, "--json", m],
        ["check", m, "--tokenizer", t, "--text", d, "--json", d],
        ["compress", m, text, "-o", m, "--tokenizer", t],
        ["compress", m, text, "--output", text, "--tokenizer", t],
        ["decompress", m, text, "-o", text, "--tokenizer", t],
        ["inspect", m, "--json", m],
        ["report", report, "-o", report],
        ["compare", report, "--json", report],
        ["board", report, "-o", report],
        ["verify", str(tmp_path), "--json", report],
        ["data", "verify", shard, "--json", shard],
        ["export", str(tmp_path), "-o", m],
    ):
        assert run_command(arguments) == 2, arguments
        assert "one of the inputs" in capsys.readouterr().err, arguments
    assert {name: path.read_bytes() for name, path in files.items()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(files)


@pytest.mark.parametrize("checkpoint", [".", "model.pt", "raw.pt"])
def test_an_export_spares_the_whole_run_and_may_replace_an_earlier_export(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("config.json", "recipe.toml", "model.pt", "raw.pt", "checkpoint.pt", "summary.json")
    for name in (*run, "final.ptz"):
        (tmp_path / name).write_text(name)
    for name in run:
        assert run_command(["export", str(tmp_path / checkpoint), "-o", str(tmp_path / name)]) == 2
        assert "one of the inputs" in capsys.readouterr().err, name
    assert run_command(["export", str(tmp_path / checkpoint), "-o", str(tmp_path / "final.ptz")]) == 2
    assert "one of the inputs" not in capsys.readouterr().err  # refused for what config.json holds
    assert [(tmp_path / name).read_text() for name in run] == list(run)


def test_every_pattern_must_match_before_torch_is_imported(tmp_path: Path) -> None:
    write_shard(tmp_path / "val_0.bin", np.array([1, 2]))
    there, gone = str(tmp_path / "val_0.bin"), str(tmp_path / "gone_*.bin")
    code = (
        "import sys; from evalkit.cli.main import run_command\n"
        "assert run_command(sys.argv[1:]) == 2; assert not {'torch', 'numba'} & set(sys.modules)"
    )
    command = ["score", "--no-model", "--mixer", "hedge", "--tokenizer", "bytes", "--tokens", there, "--tokens", gone]
    ran = subprocess.run([sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 0, ran.stderr
    assert f"no shard matches '{gone}'" in ran.stderr


def test_a_folder_that_is_made_does_not_take_its_own_recipe_with_it(tmp_path: Path, capsys) -> None:
    (tmp_path / "recipe.toml").write_text("x")
    command = ["train", "--recipe", str(tmp_path / "recipe.toml"), "--data", str(tmp_path), "--out", str(tmp_path)]
    assert run_command(command) == 2
    assert "--out (recipe.toml) names" in capsys.readouterr().err
    roles = [role for name, command in every_command() for p in command.params if (role := role_of(name, p))]
    assert any(isinstance(role, Output) and role.names for role in roles)


def test_writing_goes_through_links_and_keeps_the_mode(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real = tmp_path / "store" / "r.json"
    (tmp_path / "one").symlink_to("store/r.json")
    (tmp_path / "two").symlink_to("one")
    write_json(tmp_path / "two", {"a": 1})  # a link to nothing yet
    real.chmod(0o640)
    write_json(tmp_path / "two", {"a": 2})
    assert '"a": 2' in real.read_text()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert (tmp_path / "one").is_symlink()
    assert (tmp_path / "two").is_symlink()
    assert list((tmp_path / "store").iterdir()) == [real]


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="nobody reads"):
        write_atomically(pipe, b"x")
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        writer = threading.Thread(target=write_atomically, args=(pipe, bytes(200_000)))  # more than a pipe holds
        writer.start()
        select.select([reader], [], [])
        os.set_blocking(reader.fileno(), True)
        assert reader.read() == bytes(200_000)
        writer.join()
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_devices_and_closed_streams(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("hello")
    code = (
        "import sys; from evalkit.plumbing.files import write_json\n"
        "print('first'); write_json('/dev/stdout', 1); print('last')"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "first\n1\nlast\n"
    write_atomically("/dev/null", b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    command = f"{sys.executable} -m evalkit inspect {tmp_path / 't.txt'} --json {tmp_path / 'x.json'}"
    for closed in ("<&- >&- 2>&-", ">&-"):
        assert subprocess.run(["bash", "-c", f"{command} {closed}"], stderr=subprocess.DEVNULL).returncode == 2
    full = subprocess.run(["bash", "-c", f"{sys.executable} -m evalkit --help > /dev/full"], stderr=subprocess.PIPE)
    assert (full.returncode, b"No space left" in full.stderr) == (2, True)


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run[1]"
    folder.mkdir()
    (tmp_path / "run1").mkdir()
    for number in (0, 2, 10, 1):
        (folder / f"v_{number}.bin").write_bytes(b"")
    (folder / "[x].bin").write_bytes(b"")
    names = ["v_0.bin", "v_1.bin", "v_2.bin", "v_10.bin"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [path.name for path in expand("~/run[[]1]/v_*.bin")] == names
    assert [path.name for path in expand(f"{folder}/v_*.bin")] == names
    assert expand(f"{folder}/[x].bin") == [folder / "[x].bin"]
    assert [path.name for path in expand(f"{folder}/v_[12].bin")] == ["v_1.bin", "v_2.bin"]
    assert expand("~/run[1]") == [folder]
    monkeypatch.chdir(folder)
    assert [path.name for path in expand("v_*.bin")] == names
    assert expand("") == expand("none*") == []


def test_a_path_that_is_not_there_is_said_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from evalkit.cli.main import run_command\n"
        "assert run_command(sys.argv[1:]) == 2; assert 'torch' not in sys.modules"
    )
    (tmp_path / "there").write_text("x")
    there, gone = str(tmp_path / "there"), str(tmp_path / "gone")
    for arguments in (
        ["score", gone, "--tokens", there, "--tokenizer", there],
        ["score", there, "--text", gone, "--tokenizer", there],
        ["check", there, "--text", there, "--tokenizer", there, "--json", f"{gone}/x.json"],
        ["export", gone, "-o", there],
    ):
        ran = subprocess.run([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)
        assert ran.returncode == 0, ran.stderr
        assert "gone" in ran.stderr


def test_an_unquoted_pattern_is_named_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [str(tmp_path / f"val_{number}.bin") for number in range(3)]
    for shard in shards:
        write_shard(shard, np.array([1, 2]))
    alone = ["score", "--no-model", "--mixer", "hedge", "--tokenizer", "bytes", "--tokens"]
    with_artifact = ["score", "m.evk", "--tokenizer", "bytes", "--tokens"]
    two = ["score", "--tokenizer", "bytes", "--tokens"]
    for arguments in ([*alone, *shards[:2]], [*alone, *shards], [*with_artifact, *shards[:2]], [*two, *shards[:2]]):
        assert run_command(arguments) == 2
        assert "quote the pattern" in capsys.readouterr().err


def test_an_installation_that_nobody_may_write_to_still_compiles(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    name_cache_folder()
    folder = Path(os.environ[VARIABLE])
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.delenv(VARIABLE)
    folder.chmod(0o777)  # anybody could put code there
    name_cache_folder()
    assert Path(os.environ[VARIABLE]) != folder
    monkeypatch.delenv(VARIABLE)


def test_the_files_behind_a_report_are_inputs_too(
    scored: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report, _ = scored
    beside = report.with_suffix(".npz")
    before = beside.read_bytes()
    for arguments in (["report", str(report), "-o", str(beside)], ["compare", str(report), "--json", str(beside)]):
        assert run_command(arguments) == 2
        assert "one of the inputs" in capsys.readouterr().err
    assert beside.read_bytes() == before
