import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_helpers import SMALL

from evalkit.recipes import load_recipe
from evalkit.train.files import load_tensors, read_json
from evalkit.train.metrics import read_metrics
from evalkit.train.resolve import resolve, to_toml
from evalkit.train.run import run_training

CHILD = """
import json
import multiprocessing
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from evalkit.train import loop
from evalkit.train.run import run_training

loop.draw_losses = lambda log, picture: False  # conftest.py says why


def work(rank, count, runs, meeting):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    for recipe, data, out, resume in runs:
        run_training(recipe, Path(data), None, Path(out), resume=resume)
    assert "torch._dynamo" not in sys.modules  # torch's compiler, which takes seconds to import, and compiles nothing
    dist.barrier()  # a process that leaves while another still listens can abort it
    dist.destroy_process_group()


for count, runs in json.loads(sys.argv[2]):
    processes = [
        multiprocessing.get_context("fork").Process(target=work, args=(rank, count, runs, f"{sys.argv[1]}/{count}"))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit(1)
"""
KEYS = SMALL | {"train.sync_every": "2", "qat.start_scale": "0.5", "train.val_tokens": "320"}


def recipe(folder: Path, name: str, **keys: str) -> str:
    """Write a small recipe of 6 steps and return its path."""
    overrides = KEYS | {k.replace("__", "."): v for k, v in keys.items()}
    path = folder / f"{name}.toml"
    path.write_text(to_toml(resolve(load_recipe("tiny"), overrides, scale="32x3", steps=6).to_dict()))
    return str(path)


def launch(meetings: Path, groups: list[tuple[int, list[tuple[str, str, str, bool]]]]) -> None:
    """Train on gloo processes, forked from one that has imported everything, several runs in one process group.

    Args:
        meetings: folder of the files through which the processes of a group find each other.
        groups: how many processes, and their runs: recipe, data, folder, whether to resume.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(meetings), json.dumps(groups)],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, errors = child.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    assert child.returncode == 0, errors.decode()[-6000:]


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every recipe below on 1, 2 and 4 processes."""
    root = tmp_path_factory.mktemp("ranks")
    # Without QAT: its steps turn rounding noise into jumps from one grid point to the next.
    forward = {"train__precision": "float32", "qat__enabled": "false"}
    exact, coarse = (forward | {"optimizer__ns_precision": dtype} for dtype in ("float32", "bfloat16"))
    single = {"optimizer__layout": "matrices"}
    later = {"optimizer__row_normalise": "true", "model__layer_order": "0,1,1,2", "schedule__loop_start": "0.5"}
    recipes = {
        "banks": recipe(root, "banks", **coarse),
        "exact-banks": recipe(root, "exact-banks", **exact),
        "exact": recipe(root, "exact", **exact, **single, **later),
        "half": recipe(root, "half", **coarse, optimizer__momentum_precision="bfloat16"),
        "mixed": recipe(root, "mixed", **single, **coarse | {"train__precision": "bfloat16"}),
    }
    for name, path in recipes.items():
        run_training(path, data, None, root / f"{name}-1")
    shutil.copytree(root / "banks-1", root / "resumed")  # a run of one process, resumed on two

    def several(processes: int, *names: str) -> list[tuple[str, str, str, bool]]:
        return [(recipes[name], str(data), str(root / f"{name}-{processes}"), False) for name in names]

    two = [
        *several(2, "banks", "exact-banks", "exact", "mixed"),
        (recipes["banks"], str(data), str(root / "resumed"), True),
    ]
    launch(tmp_path_factory.mktemp("meetings"), [(2, two), (4, several(4, "banks", "exact-banks", "exact"))])
    return root


def moved(a: Path, b: Path) -> float:
    """Return the largest distance of a tensor between two runs, relative to its length."""
    first, second = load_tensors(a / "raw.pt"), load_tensors(b / "raw.pt")
    assert first.keys() == second.keys()
    return max(float((first[n] - second[n]).norm() / (first[n].norm() + 1e-3)) for n in first)


@pytest.mark.parametrize("processes", [2, 4])
def test_parallel_muon_gives_the_parameters_of_one_process(runs: Path, processes: int) -> None:
    # In float32 only the order of sums differs.
    assert moved(runs / "exact-banks-1", runs / f"exact-banks-{processes}") < 1e-3
    # With Newton-Schulz in bfloat16, as the recipes have it, rounding differs by 2^-9 a step and adds up over 6.
    assert moved(runs / "banks-1", runs / f"banks-{processes}") < 2**-4
    # The bounds have teeth: bfloat16 momentum alone moves the weights by more than the first one.
    assert moved(runs / "banks-1", runs / "half-1") > 1e-3


@pytest.mark.parametrize("processes", [2, 4])
def test_data_parallel_equals_gradient_accumulation(runs: Path, processes: int) -> None:
    losses = [
        {
            line["step"]: line["train_nats"]
            for line in read_metrics(runs / f"exact-{n}" / "metrics.jsonl")
            if "train_nats" in line
        }
        for n in (1, processes)
    ]
    common = sorted(set(losses[0]) & set(losses[1]))
    assert common[-1] == 6
    assert len(common) >= 3
    # In float32 throughout only the order of a sum differs.
    for step in common:
        assert losses[0][step] == pytest.approx(losses[1][step], abs=1e-5)


def test_plain_muon_shares_its_work_without_changing_the_result(runs: Path) -> None:
    assert moved(runs / "exact-1", runs / "exact-2") < 1e-3
    # The bfloat16 forward pass amplifies rounding, and the loss does not notice.
    losses = [read_json(runs / f"mixed-{n}" / "summary.json")["validation"]["raw"]["val_nats"] for n in (1, 2)]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_ranks_switch_repeats_on_at_one_step(runs: Path) -> None:
    for processes in (1, 2, 4):
        log = read_metrics(runs / f"exact-{processes}" / "metrics.jsonl")
        assert [line["step"] for line in log if line.get("event") == "loop_start"] == [3]


def test_ranks_share_validation(runs: Path) -> None:
    one, two = (read_json(runs / f"exact-{n}" / "summary.json")["validation"]["raw"]["val_nats"] for n in (1, 2))
    assert one == pytest.approx(two, abs=2e-3)


def test_a_checkpoint_of_one_process_resumes_on_two(runs: Path) -> None:
    """Momentum is stored by name, whoever owned it."""
    whole = load_tensors(runs / "exact-banks-1" / "checkpoint.pt")
    shared = load_tensors(runs / "exact-banks-2" / "checkpoint.pt")
    for name, value in whole["optimizer"]["banks"].items():
        assert value.shape == shared["optimizer"]["banks"][name].shape
        assert float((value - shared["optimizer"]["banks"][name]).norm() / value.norm()) < 1e-3
    before = load_tensors(runs / "banks-1" / "model.pt")
    after = load_tensors(runs / "resumed" / "model.pt")
    log = read_metrics(runs / "resumed" / "metrics.jsonl")
    assert [line["step"] for line in log if line.get("event") == "resume"] == [6]
    assert all(torch.equal(before[name], after[name]) for name in before)
