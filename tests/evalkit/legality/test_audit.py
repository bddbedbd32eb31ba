"""The audits on forecasters of our own, the child process, and what a report says."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from evalkit.legality import substitution
from evalkit.legality.audit import _Hosts, audit
from evalkit.legality.childhost import ChildHost
from evalkit.legality.driver import run_stream
from evalkit.legality.fork_server import ForkServer
from evalkit.legality.hosts import Fault, LocalHost
from evalkit.legality.options import AuditOptions
from evalkit.legality.sources import BigramSource
from evalkit.legality.subject import Subject
from evalkit.plumbing.errors import InputError

GALLERY = Path(__file__).parent / "gallery"
V = 16


class Counts:
    """Order-1 counts with a stated distribution."""

    vocab_size = V

    def __init__(self) -> None:
        self.counts = np.full((V, V), 0.1)

    def distribution(self, tokens, start, stop):
        assert len(tokens) == stop
        rows = self.counts[tokens[start - 1 : stop - 1]]
        return np.log(rows / rows.sum(axis=1, keepdims=True))

    def score(self, tokens, start, stop):
        return -self.distribution(tokens, start, stop)[np.arange(stop - start), tokens[start:stop]]

    def observe(self, tokens, start, stop):
        np.add.at(self.counts, (tokens[start - 1 : stop - 1], tokens[start:stop]), 1.0)


class Committing(Counts):
    """Insists, as a mixer does, that what is observed was just scored."""

    scored = (0, 0)

    def score(self, tokens, start, stop):
        self.scored = (start, stop)
        return super().score(tokens, start, stop)

    def observe(self, tokens, start, stop):
        if self.scored != (start, stop):
            raise ValueError("observed what was not scored")
        super().observe(tokens, start, stop)


class Peeking(Counts):
    def score(self, tokens, start, stop):
        nats = super().score(tokens, start, stop)
        nats[:-1] += 0.01 * (tokens[start + 1 :] % 2)
        return nats


def stream(n: int = 400, seed: int = 0) -> np.ndarray:
    return BigramSource.invented(V, 1).sample(n, 1, np.random.default_rng(seed))[0]


NO_CLOCK = math.inf
"""A budget that nothing exceeds: what an audit does then follows from its counts."""

OPTIONS = AuditOptions(span=32, budget_seconds=NO_CLOCK)


@pytest.mark.parametrize("make", [Counts, Committing])
def test_our_own_forecasters_are_audited_in_this_process(make):
    report = audit(make, stream(), OPTIONS)
    assert report.verdict == "legal", report.summary()
    assert report.covered["distribution"]["positions"] == 399
    assert report.covered["audit"]["in_child_process"] is False


def test_a_leak_of_our_own_is_found():
    report = audit(Peeking, stream(), OPTIONS)
    assert {f.axiom for f in report.findings} >= {"causality"}


@pytest.mark.parametrize("span", [1, 2, 399, 5000])
def test_any_span_will_do(span):
    report = audit(Counts, stream(300), AuditOptions(span=span, budget_seconds=NO_CLOCK, positions=64, offsets=64))
    assert report.findings == ()


def test_shortest_streams():
    assert audit(Counts, stream(2), OPTIONS).findings == ()
    with pytest.raises(InputError, match="at least 2"):
        audit(Counts, stream(1), OPTIONS)
    with pytest.raises(InputError, match="token ids"):
        audit(Counts, np.zeros(5), OPTIONS)


def test_a_token_outside_the_vocabulary_is_an_input_error():
    with pytest.raises(InputError, match=f"token {V} at position 2"):
        audit(Counts, np.array([1, 2, V, 3]), OPTIONS)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("nothing", "not of the form"),
        ("absent.py:make", "does not exist"),
        (f"{GALLERY}/h_counts.py:absent", "no callable named"),
        ("no.such.module:make", "No module"),
    ],
)
def test_what_cannot_be_loaded_is_an_input_error(text, word):
    with pytest.raises(InputError, match=word):
        audit(text, stream(20), OPTIONS)


def test_code_that_fails_on_import_or_in_make(tmp_path):
    (tmp_path / "bad.py").write_text("raise RuntimeError('at import')\n")
    with pytest.raises(InputError, match="at import"):
        audit(f"{tmp_path}/bad.py:make", stream(20), OPTIONS)
    (tmp_path / "no_vocabulary.py").write_text("def make():\n    return object()\n")
    with pytest.raises(InputError, match="vocab_size"):
        audit(f"{tmp_path}/no_vocabulary.py:make", stream(20), OPTIONS)
    (tmp_path / "none.py").write_text("def make():\n    pass\n")
    with pytest.raises(InputError, match="the factory returned None; it must return a forecaster"):
        audit(f"{tmp_path}/none.py:make", stream(20), OPTIONS)


FAILING = """
import os, sys, time
import numpy as np

class Failing:
    vocab_size = 16
    def score(self, tokens, start, stop):
        if start > 100:
            {what}
        return np.full(stop - start, np.log(16))
    def observe(self, tokens, start, stop):
        pass

make = Failing
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raise KeyError('lost')", "KeyError: 'lost'"),
        ("os.abort()", "killed by SIGABRT"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("os._exit(7)", "exit status 7"),
        ("sys.exit(0)", "SystemExit: 0"),
    ],
)
@pytest.mark.parametrize("isolated", [False, True], ids=["", "in a copy"])
def test_a_crash_is_no_cheat(tmp_path, what, said, isolated):
    """The signal is said; also where the call was made in a forked copy, and then the forecaster itself lives on."""
    (tmp_path / "failing.py").write_text(FAILING.format(what=what))
    if isolated:
        with ChildHost(f"{tmp_path}/failing.py:make") as host:
            host.fresh(1)
            host.observe(np.zeros(100, np.int64))
            with pytest.raises(Fault, match=said) as raised:
                host.score(np.zeros((1, 4), np.int64), isolated=True)
            assert raised.value.kind in ("crash", "killed")
            host.fresh(1)
            assert host.score(np.zeros((1, 4), np.int64), isolated=True).shape == (1, 4)
        return
    report = audit(f"{tmp_path}/failing.py:make", stream(), OPTIONS)
    assert report.verdict == "unproven"
    assert report.findings == ()
    assert said in " ".join(report.uncovered)
    assert "position 1" in report.uncovered[0]  # 129, where the span begins


def test_what_is_no_score_is_a_finding_of_the_ledger(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING.format(what="return 'scores'"))
    report = audit(f"{tmp_path}/failing.py:make", stream(), OPTIONS)
    assert report.verdict == "illegal"
    assert report.findings[0].axiom == "ledger"
    assert report.findings[0].position > 100


def test_one_bug_prints_one_finding_and_counts_the_others():
    report = audit(Peeking, stream(), OPTIONS)
    assert len(report.findings) > 1
    lines = report.summary().splitlines()
    assert sum(" at position " in line for line in lines) == 1
    assert report.findings[0].message in lines[1]
    counted = sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) of [a-z]+", lines[2]))
    assert counted == sum(report.covered["audit"]["findings"].values()) - 1


def test_a_hanging_forecaster_is_left_behind(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING.format(what="time.sleep(1000)"))
    report = audit(f"{tmp_path}/failing.py:make", stream(), AuditOptions(budget_seconds=NO_CLOCK, call_seconds=1.0))
    assert report.verdict == "unproven"
    assert "hangs" in report.uncovered[0]


def test_what_ends_a_process_is_said_again_and_not_taken_for_a_crash(tmp_path):
    """An audit that hangs leaves a dead process to the next one, which must not accuse it of crashing."""
    (tmp_path / "failing.py").write_text(FAILING.format(what="time.sleep(1000)"))
    host = ChildHost(f"{tmp_path}/failing.py:make", call_seconds=0.5)
    host.fresh(1)
    host.observe(np.zeros(100, np.int64))
    for _ in range(2):
        with pytest.raises(Fault, match="no answer to score") as raised:
            host.score(np.zeros((1, 4), np.int64))
        assert raised.value.kind == "hang"
    with pytest.raises(Fault, match="no answer to score"):
        host.fresh(1)


def test_a_batch_of_slow_calls_is_not_a_hanging_one(tmp_path):
    (tmp_path / "slow.py").write_text(FAILING.format(what="time.sleep(0.02)"))
    with ChildHost(f"{tmp_path}/slow.py:make", call_seconds=0.5) as host:
        host.fresh(1)
        host.observe(np.zeros(100, np.int64))
        assert host.score(np.zeros((60, 1), np.int64)).shape == (60, 1)  # 1.2 s of calls


def test_torch_tensors_are_taken_for_what_they_hold(tmp_path):
    (tmp_path / "tensors.py").write_text(
        "import torch\n"
        "class Tensors:\n"
        "    vocab_size = 4\n"
        "    def score(self, tokens, start, stop):\n"
        "        values = torch.full((stop - start,), 1.375)\n"
        "        kinds = values.clone().requires_grad_(), values.bfloat16(), values.double(), values\n"
        "        return kinds[tokens[start]]\n"
        "make = Tensors\n"
    )
    with ChildHost(f"{tmp_path}/tensors.py:make") as host:
        host.fresh(0)
        for kind in range(4):
            assert host.score(np.array([[kind, 2]])).tolist() == [[1.375, 1.375]]


def test_the_child_sees_the_prefix_and_the_span_and_nothing_else(tmp_path):
    (tmp_path / "spy.py").write_text(
        "import numpy as np\n"
        "class Spy:\n"
        "    vocab_size = 16\n"
        "    def score(self, tokens, start, stop):\n"
        "        assert len(tokens) == stop and tokens.base is None and tokens.flags.owndata\n"
        "        return tokens[start:stop].astype(float)\n"
        "    def observe(self, tokens, start, stop):\n"
        "        assert len(tokens) == stop\n"
        "make = Spy\n"
    )
    with ChildHost(f"{tmp_path}/spy.py:make") as host:
        host.fresh(3)
        assert host.score(np.array([[5, 6], [7, 8]])).tolist() == [[5, 6], [7, 8]]
        host.observe(np.array([5, 6]))
        assert host.length == 3
        assert host.score(np.array([[9]]), isolated=True).tolist() == [[9]]
        with pytest.raises(Fault, match=r"AttributeError|NoneType"):
            host.distribution(np.array([[1]]))


def test_isolated_calls_and_fresh_forecasters_leave_no_trace(tmp_path):
    (tmp_path / "counter.py").write_text(
        "import numpy as np\n"
        "CALLS = []\n"
        "class Counter:\n"
        "    vocab_size = 4\n"
        "    def score(self, tokens, start, stop):\n"
        "        CALLS.append(1)\n"
        "        return np.full(stop - start, float(len(CALLS)))\n"
        "    def observe(self, tokens, start, stop):\n"
        "        pass\n"
        "make = Counter\n"
    )
    row = np.array([[1]])
    with ChildHost(f"{tmp_path}/counter.py:make") as host:
        host.fresh(0)
        assert host.score(np.repeat(row, 3, axis=0), isolated=True).ravel().tolist() == [1, 1, 1]
        assert host.score(row).item() == 1
        assert host.score(row).item() == 2
        host.another(0)
        assert host.score(row).item() == 3
        host.fresh(0)
        assert host.score(row).item() == 1


def test_processes_of_one_fork_server_share_no_state(tmp_path):
    """Not even that of random numbers nobody seeded; and where a stranger ends the server, another takes its place."""
    (tmp_path / "luck.py").write_text(
        "import numpy as np\n"
        "import torch\n"
        "class Luck:\n"
        "    vocab_size = 4\n"
        "    def score(self, tokens, start, stop):\n"
        "        return np.array([np.random.random(), torch.rand(()).item()])\n"
        "make = Luck\n"
    )
    row = np.array([[1, 2]])
    answers = []
    with ForkServer(["numpy.random", "torch"]) as fork_server:
        for _ in range(3):
            with ChildHost(f"{tmp_path}/luck.py:make", fork_server=fork_server) as host:
                host.fresh(0)
                answers.append(host.score(row)[0].tolist())
        parent = fork_server._process
        assert parent is not None
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        with ChildHost(f"{tmp_path}/luck.py:make", fork_server=fork_server) as host:
            host.fresh(0)
            answers.append(host.score(row)[0].tolist())
    for numbers in zip(*answers, strict=True):
        assert len(set(numbers)) == 4


def test_a_fork_server_that_a_stranger_stops_or_ends_costs_no_other_process_anything(tmp_path, monkeypatch, capfd):
    """Its late answers are answers to nothing, and the one in its place ends the processes that it began."""
    (tmp_path / "even.py").write_text(
        "import numpy as np\n"
        "class Even:\n"
        "    vocab_size = 4\n"
        "    def score(self, tokens, start, stop):\n"
        "        return np.full(stop - start, np.log(4))\n"
        "make = Even\n"
    )
    row = np.array([[1]])

    def begun() -> ChildHost:
        host = ChildHost(f"{tmp_path}/even.py:make", fork_server=fork_server)
        host.fresh(0)
        return host

    with ForkServer() as fork_server:
        first, second = begun(), begun()
        stopped = fork_server._process
        assert stopped is not None
        monkeypatch.setattr("evalkit.legality.fork_server.PATIENCE", 0.5)
        os.kill(stopped.pid, signal.SIGSTOP)
        first.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped.pid, signal.SIGCONT)
        monkeypatch.undo()
        with begun() as third:
            assert third.score(row).item() == np.log(4)
            second.close()
            os.killpg(third._process, signal.SIGKILL)
            with pytest.raises(Fault, match="was killed by SIGKILL"):
                third.score(row)
    assert capfd.readouterr().err == ""


def test_what_a_stranger_leaves_running_ends_with_it(tmp_path):
    """Even where the process that started it has ended before."""
    (tmp_path / "parting.py").write_text(
        "import os, signal, subprocess\n"
        "def make():\n"
        "    left = subprocess.Popen(['sleep', '600'])\n"
        f"    print(left.pid, file=open('{tmp_path}/pid', 'w'), flush=True)\n"
        "    os.kill(os.getppid(), signal.SIGKILL)\n"
        "    os._exit(0)\n"
    )
    with ChildHost(f"{tmp_path}/parting.py:make") as host, pytest.raises(Fault, match="was killed"):
        host.fresh(0)
    left = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    limit = time.monotonic() + 10
    while left.exists() and left.read_text().split()[2] != "Z":  # Z: nobody has waited for it yet
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_an_interrupted_audit_waits_for_no_more_than_a_call():
    calls = threading.Event()

    def interrupted(host):
        calls.wait()
        raise KeyboardInterrupt

    def busy(host):
        host.fresh(0)
        calls.set()
        while True:
            host.score(np.array([[1]]))

    options = AuditOptions(budget_seconds=20.0, workers=2)
    began = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        _Hosts(f"{GALLERY}/x_above_one.py:make", options, began + 20.0, None) as hosts,
    ):
        hosts.together(interrupted, busy)
    assert time.monotonic() - began < 15


def test_the_report_is_the_contracts_json():
    report = audit(f"{GALLERY}/x_above_one.py:make", stream() % 32, AuditOptions(budget_seconds=NO_CLOCK, positions=64))
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["verdict"] == "illegal"
    assert set(document["findings"][0]) == {"axiom", "position", "evidence", "message"}
    assert document["covered"]["audit"]["false_alarm_probability"] == 1e-6
    assert "illegal" in report.summary()


@pytest.mark.parametrize("bad", [{"span": 0}, {"budget_seconds": 0.0}, {"max_tokens": 1}, {"workers": 3}])
def test_options_are_checked(bad):
    with pytest.raises(InputError, match=str(next(iter(bad)))[:5]):
        AuditOptions(**bad)


def test_importing_the_audits_is_cheap():
    code = "import sys, evalkit.legality.audit; print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip() == "False"


def test_the_ledgers_number_counts_for_the_token_that_occurred():
    """Whatever a forecaster answers when it is asked again, a flattered ledger shows in the sum."""
    tokens = np.arange(40) % V
    host = LocalHost(Counts)
    host.fresh(int(tokens[0]))
    run = run_stream(host, tokens, 8)
    run.nats[19] -= 0.5
    subject = Subject(
        tokens=tokens,
        stream=tokens,
        options=AuditOptions(span=8),
        deadline=NO_CLOCK,
        base=run,
        grid="float64",
        vocab_size=V,
        states_rows=True,
    )
    for mode, excess in (("span", np.exp(-run.nats[19]) * (1 - np.exp(-0.5))), ("single", 0.0)):
        sums = substitution.Sums(subject, mode, substitution.SumsAsked())
        sums.visit(host, np.array([20]))
        assert sums.total == [pytest.approx(1.0 + excess)]
