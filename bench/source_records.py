"""What ``--source`` reads from the script of each merged record, over a snapshot of openai/parameter-golf.

    python bench/source_records.py GIT_DIR [--only WORD] [--verbose] [--table]

GIT_DIR is a bare clone (or the ``.git`` of any clone). For each folder of the ten-minute track the script, its first
log and its README are read, none of them executed, and a line says whether every setting of the model is resolved, or
what is missing. ``--table`` prints the systems as entries of ``evalkit/artifact/published.toml``.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

from common import parser_of

from evalkit.artifact.infer import infer_from_shapes
from evalkit.model.config import ModelConfig
from evalkit.plumbing.errors import EvalkitError
from evalkit.source.reading import SourceReading, read_source

TRACK = "records/track_10min_16mb"
EXECUTED_BY = {"train_gpt.py": "train_gpt_decode.py"}
"""A script that only executes the file beside it, and that file."""


def git(directory: str, *arguments: str) -> bytes:
    """Return what git prints."""
    return subprocess.run(["git", f"--git-dir={directory}", *arguments], check=True, capture_output=True).stdout


def pull_request(directory: str, folder: str) -> str:
    """Return the number of the pull request that brought a folder, as a recipe's name; empty where none is told."""
    merges = git(directory, "log", "--merges", "--first-parent", "-m", "--diff-filter=A", "--format=%s", "--", folder)
    others = git(directory, "log", "--diff-filter=A", "--format=%s", "--", folder)
    for line in (*reversed(merges.decode().splitlines()), *reversed(others.decode().splitlines())):
        if number := re.search(r"(?:request |PR |\()#(\d+)", line):
            return f"pr{number.group(1)}"
    return ""


def records(directory: str, only: str) -> list[tuple[str, list[str]]]:
    """Return the folders of the track and the files of each."""
    listed = git(directory, "ls-tree", "-r", "--name-only", "-z", "HEAD", TRACK).decode().split("\0")
    folders: dict[str, list[str]] = {}
    for path in filter(None, listed):
        folder, _, rest = path.removeprefix(f"{TRACK}/").partition("/")
        if "/" not in rest and only in folder:
            folders.setdefault(folder, []).append(rest)
    return sorted(folders.items())


def read_record(directory: str, folder: str, files: list[str], work: Path) -> SourceReading:
    """Read a record's script with its first log and its README."""
    names = [name for name in files if re.fullmatch(r"train_gpt\w*\.py", name)]
    script = next((n for n in names if n == "train_gpt.py"), names[0] if names else "")
    if EXECUTED_BY.get(script) in names:
        script = EXECUTED_BY[script]
    if not script:
        return SourceReading(label="no script", problems=("the folder has no script",))
    told = [*sorted(name for name in files if name.endswith(".log"))[:1], *(n for n in files if n == "README.md")]
    for name in (script, *told):
        (work / name).write_bytes(git(directory, "show", f"HEAD:{TRACK}/{folder}/{name}"))
    return read_source(str(work / script), [str(work / name) for name in told])


def entry(reading: SourceReading) -> dict[str, object]:
    """Return the fields of the model's configuration that differ from their defaults."""
    values = dict(infer_from_shapes(reading.shapes))
    values |= {name: found.value for name, found in reading.settings.items()}
    if values.get("layer_order") == tuple(range(values["num_layers"])):
        values.pop("layer_order")
    defaults = {name: f.default for name, f in ModelConfig.__dataclass_fields__.items()}
    return {name: value for name, value in values.items() if name in defaults and value != defaults[name]}


def main() -> None:
    """Print a line for each record, and the count."""
    parser = parser_of(__doc__)
    parser.add_argument("git_dir")
    parser.add_argument("--only", default="", help="folders whose names hold this word")
    parser.add_argument("--verbose", action="store_true", help="print every setting and where it is written")
    parser.add_argument("--table", action="store_true", help="print entries of published.toml")
    options = parser.parse_args()
    resolved = scripts = 0
    for folder, files in records(options.git_dir, options.only):
        with tempfile.TemporaryDirectory() as work:
            try:
                reading = read_record(options.git_dir, folder, files, Path(work))
            except EvalkitError as error:
                reading = SourceReading(label=folder, problems=(str(error).replace(work, "."),))
        if reading.label == "no script":
            continue
        scripts += 1
        whole = reading.understood and not reading.problems
        resolved += whole
        name = pull_request(options.git_dir, f"{TRACK}/{folder}")
        if options.table:
            if reading.shapes:
                values = ", ".join(f"{key} = {json.dumps(value)}" for key, value in entry(reading).items())
                note = "" if whole else f"  # {reading.problems[0]}"
                print(f"{name} = {{ {values}, seq_len = {reading.seq_len} }}{note}")
            continue
        print(f"{'resolved' if whole else 'missing '}  {name:7}  {folder}")
        for problem in reading.problems:
            print(f"          {problem}")
        if options.verbose:
            for key, found in reading.settings.items():
                print(f"          {key} = {found.value}  ({found.origin})")
    print(f"{resolved} of {scripts} resolved" if not options.table else f"# {resolved} of {scripts} resolved")


if __name__ == "__main__":
    main()
