"""A user's own ``train.py``, ``ttt.py`` and ``mixers/`` beside the shell change nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONSOLE_SCRIPT = ("-c", "import sys; from evalkit.cli.main import main; sys.argv[0] = 'evalkit'; main()")
LAUNCHERS = {
    # The installed script puts its own folder at the head of the module path, `python -m` the folder of the shell.
    "evalkit": (sys.executable, "-P", *CONSOLE_SCRIPT),
    "python -m evalkit": (sys.executable, "-m", "evalkit"),
    "torchrun -m evalkit": (sys.executable, "-m", "torch.distributed.run", "--standalone", "-m", "evalkit"),
}


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    for name in ("train.py", "ttt.py", "mixers/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('the user\\'s own file ran')\n")
    return tmp_path


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ours_run_where_a_user_has_files_of_the_same_names(decoys: Path, launcher: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    # An unknown recipe is found out by the training code itself, after everything of ours is imported.
    command = [*LAUNCHERS[launcher], "train", "--recipe", "nothing-of-this-name"]
    done = subprocess.run(command, cwd=decoys, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "evalkit: error:" in done.stderr
    assert "nothing-of-this-name" in done.stderr
    assert "the user's own file ran" not in done.stdout + done.stderr
    if "torchrun" not in launcher:  # which exits with 1 whatever its program's code, and names that
        assert done.returncode == 2
    else:
        assert "exitcode  : 2" in done.stderr


def test_the_three_folders_are_imported_under_evalkit(decoys: Path) -> None:
    code = "import evalkit.train.config, evalkit.ttt.config, evalkit.mixers; print(evalkit.mixers.__file__)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=decoys, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "evalkit" / "mixers" / "__init__.py")
