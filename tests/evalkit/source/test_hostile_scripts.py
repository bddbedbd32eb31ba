"""A stranger's script and log cost bounded memory and time, end with exit code 2 and a sentence, and never run."""

import base64
import lzma
import os
import resource
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
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


def read(source: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run what ``inspect --source`` runs, without the command line's own start."""
    code = (
        "import sys\n"
        "from evalkit.plumbing.errors import EvalkitError\n"
        "from evalkit.source.reading import read_source\n"
        "try:\n"
        "    reading = read_source(sys.argv[1], sys.argv[2:])\n"
        "    print(reading.understood, reading.problems)\n"
        "except EvalkitError as error:\n"
        "    sys.exit(f'evalkit: error: {error}')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(source), *options],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )  # fmt: skip


def bomb(kind: str) -> str:
    zeros = bytes(64 * 2**20)
    if kind == "lzma":
        packed = lzma.compress(zeros, preset=0)
        for _ in range(2):  # a bomb in a bomb is still bounded by the first
            packed = lzma.compress(packed)
    else:
        packed = zlib.compress(zeros) if kind == "zlib" else brotli.compress(zeros, quality=1)
    text = base64.b85encode(packed).decode()
    return f"import {kind},base64\nexec({kind}.decompress(base64.b85decode('{text}')))\n"


SCRIPTS: dict[str, str | Callable[[], str]] = {
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
    "zlib bomb": partial(bomb, "zlib"),
    "lzma bomb": partial(bomb, "lzma"),
    "brotli bomb": partial(bomb, "brotli"),
    "a damaged brotli": "import brotli,base64\nexec(brotli.decompress(base64.b85decode('abcdefghij')))\n",
    "a wrapper around the file system": "exec(open('/etc/passwd').read())",
    "a wrapper that calls": "exec(__import__('os').popen('touch /tmp/evalkit-was-run').read())",
    "a damaged wrapper": "import lzma,base64\nexec(lzma.decompress(base64.b85decode('abcdefghij')))\n",
    "a base that is none": "import base64\nexec(base64.b85decode('\\x00 \"'))\n",
    "a wrapper of itself": "a = a\nexec(a)\n",
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_hostile_scripts_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "train_gpt.py"
    script = SCRIPTS[kind]
    path.write_text(script if isinstance(script, str) else script(), newline="")
    done = read(path)
    # Refused, or read to no effect: never a crash, a traceback, or a setting.
    assert done.returncode in (0, 1), done.stderr[-400:]
    assert "Traceback" not in done.stderr
    if done.returncode == 1:
        assert done.stderr.startswith("evalkit: error: --source ")
        assert len(done.stderr) < 700
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
def test_constructors_that_would_never_end_are_left(tmp_path: Path, kind: str) -> None:
    start = "class GPT(nn.Module):\n    def __init__(self, h):\n        super().__init__()\n        "
    path = tmp_path / "train_gpt.py"
    script = plain().replace(start, start + LOOPS[kind] + "\n        ")
    assert script != plain()
    path.write_text(script)
    done = read(path)
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


def test_nothing_of_a_script_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    act = f"open({str(marker)!r}, 'w').write('x')"
    script = plain().replace("raise_if_run = ", f"{act}\n__import__('os').system('touch {marker}')\nnever = ")
    script = script.replace("        super().__init__()\n", f"        super().__init__()\n        {act}\n")
    path = tmp_path / "train_gpt.py"
    path.write_text(script)
    read(path)
    assert not marker.exists()
