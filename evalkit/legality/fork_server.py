"""Begins the processes in which strangers' forecasters run, as copies of one that has imported numpy."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from evalkit.legality import child

PATIENCE = 60.0
"""Seconds that a new interpreter may take to import what it shares."""

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class ForkServer(AbstractContextManager["ForkServer"]):
    """A process that runs no stranger's code and copies itself for every stranger: see :func:`child.serve_forks`.

    It is started when it is first needed, and anew where something ended it. Threads may share it.

    Args:
        modules: Modules of ours that it imports besides numpy, so that its copies share them.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._modules = modules
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock = threading.Lock()

    def begin(self, spec: str, link: int, output: int) -> int:
        """Begin a process that answers on the socket ``link`` and prints to the file ``output``; return its number.

        It has the environment and the folder that this process has now, and one thread.

        Raises:
            OSError, EOFError: no process could be started.
        """
        environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1"), "PYTHONHASHSEED": "0"}
        request = {"do": "begin", "spec": spec, "folder": os.getcwd(), "environment": environment}
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start(environment)
            return int(self._ask(request, [link, output])["process"])

    def end(self, process: int, seconds: float = 0.0) -> int | None:
        """End a process with its copies; return its exit status where it ended by itself within ``seconds``."""
        with self._lock:
            try:
                status = self._ask({"do": "end", "process": process, "seconds": seconds})["status"]
                return None if status is None else int(status)
            except (OSError, EOFError):  # something has ended the fork server
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process, signal.SIGKILL)
                return None

    def _start(self, environment: dict[str, str]) -> None:
        self.close()
        mine, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, child.__file__, str(theirs.fileno()), *self._modules],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        self._control = mine

    def _ask(self, request: dict[str, Any], files: list[int] | None = None) -> dict[str, Any]:
        if self._control is None:
            raise EOFError
        try:
            self._control.settimeout(PATIENCE)
            socket.send_fds(self._control, [b"."], files or [])
            child.send(self._control, request)
            return child.receive(self._control, time.monotonic() + PATIENCE)[0]
        except BaseException:  # a late answer would be taken for that to the next request
            if self._process is not None:
                self._process.kill()
            self.close()
            raise

    def close(self) -> None:
        """End the fork server; the processes that it began must have ended."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._control = None

    def __exit__(self, *_: object) -> None:
        self.close()
