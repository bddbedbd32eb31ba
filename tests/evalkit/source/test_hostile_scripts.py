"""A stranger's script and log cost bounded memory and time, end with exit code 2 and a sentence, and never run."""

import base64
import json
import lzma
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import brotli
import pytest
from source_scripts import plain
from test_reading import CONFIG, draw, save

from evalkit.plumbing.errors import InputError
from evalkit.source.reading import read_source

MEMORY = 3 * 2**30
"""Of address space, numpy's and torch's own included; a bomb of the kinds below would ask for more."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "a.ptz"
    save(draw(CONFIG), path)
    return path


READER = """
import json, os, resource, signal, sys
from evalkit.plumbing.errors import EvalkitError
from evalkit.source.reading import read_source

for line in sys.stdin:
    limit, output, errors, source, *options = json.loads(line)
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream, path in ((1, output), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        try:
            reading = read_source(source, options)
            print(reading.understood, reading.problems)
        except EvalkitError as error:
            sys.exit(f"evalkit: error: {error}")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def reader() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported what reads scripts, and reads each in a copy of itself."""
    command = [sys.executable, "-c", READER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def read(reader: subprocess.Popen[str], source: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run what ``inspect --source`` runs, without the command line's own start, in a process of its own."""
    output, errors = source.with_suffix(".out"), source.with_suffix(".err")
    assert reader.stdin is not None
    assert reader.stdout is not None
    print(json.dumps([MEMORY, str(output), str(errors), str(source), *options]), file=reader.stdin, flush=True)
    code = int(reader.stdout.readline())
    return subprocess.CompletedProcess([], code, output.read_text(), errors.read_text())


PACKED = {
    "zlib": lambda data: zlib.compress(data, 1),
    "lzma": lambda data: lzma.compress(data, preset=0),
    "brotli": lambda data: brotli.compress(data, quality=1),
}


def bomb(kind: str) -> str:
    packed, layers = PACKED[kind](bytes(64 * 2**20)), 3 if kind == "lzma" else 1
    for _ in range(layers - 1):
        packed = lzma.compress(packed)
    inflated = (
        f"{kind}.decompress(" * layers + f"base64.b85decode('{base64.b85encode(packed).decode()}')" + ")" * layers
    )
    return f"import {kind},base64\nexec({inflated})\n"


SCRIPTS = {
    "brackets": "x = " + "(" * 100_000 + ")" * 100_000,
    "lists": "x = " + "[" * 100_000 + "]" * 100_000,
    "signs": "x = " + "-" * 100_000 + "1",
    "nots": "x = " + "not " * 100_000 + "1",
    "sums": "x = " + "+".join(["1"] * 100_000),
    "attributes": "x = a" + ".b" * 100_000,
    "calls": "x = f" + "()" * 100_000,
    "lambdas": "x = " + "lambda: " * 100_000 + "1",
    "conditions": "x = " + "1 if 1 else " * 100_000 + "1",
    "branches": "if a:\n  pass\n" + "elif a:\n  pass\n" * 50_000,
    "indents": "".join(" " * i + "if a:\n" for i in range(500)) + " " * 500 + "pass",
    "powers": "x = " + "**".join(["9"] * 5_000),
    "f-strings": 'x = f"' + "{f'" * 50 + "'}" * 50 + '"',
    "syntax": "def f(:\n  pass\n",
    "null byte": "x = 1\0\n",
    "a number of a million digits": "x = " + "9" * 1_000_000,
    "a hexadecimal of a million digits": "x = 0x" + "f" * 1_000_000,
    "an open string": "x = '''" + "a" * 1_000_000,
    "a damaged brotli": "import brotli,base64\nexec(brotli.decompress(base64.b85decode('abcdefghij')))\n",
    "a wrapper around the file system": "exec(open('/etc/passwd').read())",
    "a wrapper that calls": "exec(__import__('os').popen('touch /tmp/evalkit-was-run').read())",
    "a damaged wrapper": "import lzma,base64\nexec(lzma.decompress(base64.b85decode('abcdefghij')))\n",
    "a base that is none": "import base64\nexec(base64.b85decode('\\x00 \"'))\n",
    "a wrapper of itself": "a = a\nexec(a)\n",
}


@pytest.mark.parametrize("kind", [*SCRIPTS, *(f"{name} bomb" for name in PACKED)])
def test_hostile_scripts_are_refused(reader: subprocess.Popen[str], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "train_gpt.py"
    path.write_text(SCRIPTS[kind] if kind in SCRIPTS else bomb(kind.split()[0]), newline="")
    done = read(reader, path)
    # Refused, or read to no effect: never a crash, a traceback, or a setting.
    assert done.returncode in (0, 1), done.stderr[-400:]
    assert "Traceback" not in done.stderr
    if done.returncode == 1:
        assert done.stderr.startswith("evalkit: error: --source ")
        assert len(done.stderr) < 700
        assert "bomb" not in kind or "inflates past" in done.stderr
    else:
        assert "cannot be followed" in done.stdout
    assert not Path("/tmp/evalkit-was-run").exists()


LOOPS = {
    "endless": "while True:\n            pass",
    "long": "for i in range(10**9):\n            pass",
    "wide": "self.x = [0] * 10**9",
    "doubling": "x = 'a'\n        while len(x) < 10**12:\n            x = x + x",
    "squares": "x = 9\n        while True:\n            x = x * x",
    "powers": "x = 9 ** 9 ** 9 ** 9",
    "shift": "x = 1 << 10**9",
    "recursion": "self.__init__(h)",
    "lists of lists": "x = [1]\n        while True:\n            x = [x, x]",
    "growing list": "x = [1]\n        while True:\n            x.extend(x)",
    "replace": "x = 'aa'\n        while True:\n            x = x.replace('a', 'aaaaaaaa')",
}


@pytest.mark.parametrize("kind", LOOPS)
def test_constructors_that_would_never_end_are_left(reader: subprocess.Popen[str], tmp_path: Path, kind: str) -> None:
    start = "class GPT(nn.Module):\n    def __init__(self, h):\n        super().__init__()\n        "
    path = tmp_path / "train_gpt.py"
    script = plain().replace(start, start + LOOPS[kind] + "\n        ")
    assert script != plain()
    path.write_text(script)
    done = read(reader, path)
    assert done.returncode == 0, done.stderr[-400:]
    # Left at a line; or followed past a number that is not worked out, where nothing depends on it.
    expected = "True ()" if kind in ("wide", "powers", "shift") else "cannot be followed"
    assert expected in done.stdout


def test_files_of_other_kinds(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "loop.py").symlink_to(tmp_path / "loop.py")
    (tmp_path / "endless.py").symlink_to("/dev/zero")
    with open(tmp_path / "large.py", "wb") as file:
        file.truncate(100 * 2**20)
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    (tmp_path / "script.py").write_text("x = 1\n")
    for name in ("pipe.py", "loop.py", "endless.py", "large.py", "binary.py", "missing.py", "."):
        with pytest.raises(InputError, match="--source"):
            read_source(str(tmp_path / name))
        if name != "binary.py" and name != "large.py":  # a log may be large, and bytes that are no text tell nothing
            with pytest.raises(InputError, match="--log"):
                read_source(str(tmp_path / "script.py"), [str(tmp_path / name)])
    with open(tmp_path / "large.py", "wb") as file:
        file.truncate(2**30)
    with pytest.raises(InputError, match="--log"):
        read_source(str(tmp_path / "script.py"), [str(tmp_path / "large.py")])


@pytest.mark.parametrize("options", [["--source", "{script}"], ["--log", "{script}"]])
def test_the_command_ends_with_code_2(
    tmp_path: Path, artifact: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from evalkit.cli.main import main

    path = tmp_path / "train_gpt.py"
    path.write_text("x = " + "[" * 100_000)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(artifact), *(option.format(script=path) for option in options)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("evalkit: error: --")


def test_nothing_of_a_script_runs(reader: subprocess.Popen[str], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    act = f"open({str(marker)!r}, 'w').write('x')"
    script = plain().replace("raise_if_run = ", f"{act}\n__import__('os').system('touch {marker}')\nnever = ")
    script = script.replace("        super().__init__()\n", f"        super().__init__()\n        {act}\n")
    path = tmp_path / "train_gpt.py"
    path.write_text(script)
    read(reader, path)
    assert not marker.exists()
