"""The process in which a stranger's forecaster runs. Started by path, knows numpy and the standard library only.

What is started is a fork server: it never sees a stranger's code, and every process for one is a copy of it, so that
numpy is imported once. Such a copy is sent the prefix that has been observed and the span that is to be scored, and
nothing else; every array that the forecaster gets is a fresh copy of exactly the visible tokens. ``push`` forks: the
copy answers from then on and ``pop`` ends it, so the state before the push comes back untouched, whatever the
forecaster did in between.

Frames on the socket are ``uint32 header length, uint32 payload length, JSON header, raw array bytes``; nothing is
unpickled on either side, so the stranger cannot reach the parent through its replies.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import importlib.util
import json
import math
import os
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Any

import numpy as np

POPPED = 73
"""Exit status of a forked copy that was asked to end: anything else is a crash."""

DTYPES = {"<i8": np.int64, "<f8": np.float64}
"""What the arrays on the wire hold: token ids, and scores."""

REPLY = struct.Struct("<?Q")
"""What precedes the answer of a copy that makes one call: whether it failed, and the length in bytes."""

DECOYS: dict[str, Any] = {}
"""Where the bait of the audit of that name lies; empty in every other audit."""


class StrangerFault(Exception):
    """Something that the stranger's code did wrong, to be reported and judged by the parent."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def receive_exactly(link: socket.socket, count: int, deadline: float) -> bytes:
    """Return exactly ``count`` bytes; EOFError when the other side has gone, TimeoutError at the deadline."""
    parts: list[bytes] = []
    while count:
        if deadline < math.inf:
            link.settimeout(max(0.01, deadline - time.monotonic()))
        part = link.recv(min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def receive(link: socket.socket, deadline: float = math.inf) -> tuple[dict[str, Any], np.ndarray | None]:
    """Read one frame: the header and its array, if it has one.

    The element type is one of two that are known, never what the other side's header would have it be.
    """
    head, body = struct.unpack("<II", receive_exactly(link, 8, deadline))
    header: dict[str, Any] = json.loads(receive_exactly(link, head, deadline))
    payload = receive_exactly(link, body, deadline)
    if "shape" not in header:
        return header, None
    return header, np.frombuffer(payload, dtype=DTYPES[header["dtype"]]).reshape(header["shape"])


def send(link: socket.socket, header: dict[str, Any], array: np.ndarray | None = None) -> None:
    """Write one frame."""
    payload = b""
    if array is not None:
        array = np.ascontiguousarray(array)
        header = {**header, "dtype": array.dtype.str, "shape": list(array.shape)}
        payload = array.tobytes()
    head = json.dumps(header).encode()
    link.sendall(struct.pack("<II", len(head), len(payload)) + head + payload)


def reply(failed: bool, payload: bytes) -> bytes:
    """Return the bytes that a copy answers with: values, or the kind and the message of a fault."""
    return REPLY.pack(failed, len(payload)) + payload


def read_exactly(pipe: int, count: int) -> bytes:
    """Return exactly ``count`` bytes; EOFError when the other side has gone."""
    parts = b""
    while len(parts) < count:
        part = os.read(pipe, count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return parts


def ending(status: int | None) -> str:
    """Return how a process with this exit status ended; a negative one is the signal that killed it."""
    if status is None:
        return "broke off"
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def load_factory(spec: str) -> Any:
    """Return the callable that ``FILE.py:NAME`` or ``package.module:NAME`` names."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise StrangerFault("import", f"{spec!r} is not of the form FILE.py:FACTORY or package.module:FACTORY")
    if place.endswith(".py"):
        path = os.path.abspath(place)
        if not os.path.exists(path):
            raise StrangerFault("import", f"the file {place} does not exist")
        sys.path.insert(0, os.path.dirname(path))
        found = importlib.util.spec_from_file_location("forecaster_under_audit", path)
        if found is None or found.loader is None:
            raise StrangerFault("import", f"{place} cannot be loaded as a Python module")
        module = importlib.util.module_from_spec(found)
        sys.modules["forecaster_under_audit"] = module
        found.loader.exec_module(module)
    else:
        sys.path.insert(0, os.getcwd())
        module = importlib.import_module(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise StrangerFault("import", f"{place} has no callable named {name!r}")
    return factory


def seal(path: str | bytes) -> str:
    """Return a digest of the file that ``path`` leads to: it tells who knows the path, and nobody else."""
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()


def watch_files(sealed: list[str], opened: list[str]) -> None:
    """From now on note in ``opened`` the name of every sealed file that this process or its copies open."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)) and seal(arguments[0]) in sealed:
            opened.append(os.fsdecode(arguments[0]))

    if sealed:
        sys.addaudithook(hook)


class Baited(np.ndarray):
    """An array that the garbage collector tracks, so that a search of its objects meets it."""


def lay_bait(stream: np.ndarray) -> None:
    """Leave the whole stream where a careless harness would: globals, containers, tracked objects."""
    gc.unfreeze()  # a search meets what the harness holds, too
    main = sys.modules["__main__"]
    for dtype in (np.int64, np.int32, np.uint16):
        copy = stream.astype(dtype)
        DECOYS[np.dtype(dtype).name] = copy
        DECOYS["list " + np.dtype(dtype).name] = [copy]
    DECOYS["tracked"] = stream.astype(np.int64).view(Baited)
    DECOYS["plain list"] = [int(token) for token in stream]
    DECOYS["mapping"] = {"tokens": DECOYS["int64"], "stream": DECOYS["int64"], "val_tokens": DECOYS["uint16"]}
    for name in ("tokens", "stream", "val_tokens", "full_tokens"):
        setattr(main, name, DECOYS["int64"])


def checked(result: Any, method: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return what ``method`` answered as float64, if it is an array (or a torch tensor) of floats of this shape."""
    if hasattr(result, "detach") and result.is_floating_point():
        result = result.detach().cpu().double()  # numpy takes neither bfloat16 nor tensors that carry a gradient
    values = np.asarray(result)
    if values.shape != shape:
        raise StrangerFault("shape", f"{method} returned shape {list(values.shape)}, expected {list(shape)}")
    if values.dtype.kind != "f":
        raise StrangerFault("dtype", f"{method} returned {values.dtype}, expected floating point numbers")
    return values.astype(np.float64)


class Stranger:
    """One forecaster at a time, the prefix it has observed, and the calls that are made on it."""

    def __init__(self, spec: str, sealed: list[str], arguments: dict[str, Any]) -> None:
        self.opened: list[str] = []
        watch_files(sealed, self.opened)
        self.factory, self.arguments = load_factory(spec), arguments
        self.instance: Any = None
        self.vocab_size = 0
        self.prefix = np.zeros(0, np.int64)

    def make(self) -> dict[str, Any]:
        """Build a forecaster in this process and say what it offers."""
        stream = DECOYS.get("int64")  # a local of the caller, for those that walk the frames
        self.instance = self.factory(**self.arguments)
        del stream
        self.check_files()
        if self.instance is None:
            raise StrangerFault("import", "the factory returned None; it must return a forecaster")
        size = getattr(self.instance, "vocab_size", None)
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or int(size) < 1:
            raise StrangerFault("import", f"vocab_size is {size!r}; a positive integer is needed")
        offers = [name for name in ("distribution", "next_boundary") if callable(getattr(self.instance, name, None))]
        self.vocab_size = int(size)
        return {"vocab_size": self.vocab_size, "offers": offers}

    def visible(self, row: np.ndarray) -> np.ndarray:
        """Return a fresh array of the prefix and the span: exactly what may be seen."""
        start, stop = len(self.prefix), len(self.prefix) + len(row)
        if "int64" in DECOYS and len(DECOYS["int64"]) >= stop:
            longer: np.ndarray = DECOYS["int64"].copy()
            longer[:start] = self.prefix
            longer[start:stop] = row
            return longer[:stop]  # its .base, and the memory behind its end, are bait as well
        tokens = np.empty(stop, np.int64)
        tokens[:start] = self.prefix
        tokens[start:] = row
        return tokens

    def call(self, method: str, row: np.ndarray) -> Any:
        """Call ``method`` on the prefix and one span; the tokens must come back as they went in."""
        tokens = self.visible(row)
        sent = tokens.tobytes()
        start, stop = len(self.prefix), len(tokens)
        stream = DECOYS.get("int64")
        result = getattr(self.instance, method)(tokens, start, stop)
        del stream
        self.check_files()
        if self.instance.vocab_size != self.vocab_size:
            raise StrangerFault("shape", f"vocab_size went from {self.vocab_size} to {self.instance.vocab_size}")
        if tokens.tobytes() != sent:
            raise StrangerFault("rewrite", f"{method}({start}, {stop}) wrote to the tokens that it was handed")
        return result

    def check_files(self) -> None:
        """Raise a fault if a file that holds the stream has been opened."""
        if self.opened:
            raise StrangerFault("file", f"it opened {self.opened[0]}, which holds the stream that it is to predict")

    def numbers(self, method: str, row: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the float64 values of one call."""
        return checked(self.call(method, row), method, shape)

    def rows(self, method: str, rows: np.ndarray, isolated: bool, seconds: float) -> np.ndarray:
        """Call ``method`` on every row; ``isolated`` runs each in a forked copy, as if no other had been.

        No call begins when the seconds are over.
        """
        deadline = time.monotonic() + seconds
        width = rows.shape[1]
        shape = (width,) if method == "score" else (width, self.vocab_size)
        values = np.empty((len(rows), *shape), np.float64)
        one = self.forked if isolated else self.numbers
        for index, row in enumerate(rows):
            if time.monotonic() > deadline:
                raise StrangerFault("budget", "no time was left")
            values[index] = one(method, row, shape)
        return values

    def forked(self, method: str, row: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Make one call in a forked copy of this process and return what it answered."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                answer = reply(False, self.numbers(method, row, shape).tobytes())
            except StrangerFault as fault:
                answer = reply(True, json.dumps([fault.kind, str(fault)]).encode())
            except BaseException as error:
                answer = reply(True, json.dumps(["crash", describe(error)]).encode())
            while answer:
                answer = answer[os.write(writing, answer) :]
            os._exit(0)
        os.close(writing)
        payload = None
        failed = False
        try:
            failed, size = REPLY.unpack(read_exactly(reading, REPLY.size))
            payload = read_exactly(reading, size)
        except EOFError:
            pass
        finally:
            os.close(reading)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if payload is None:
            raise StrangerFault("killed" if status < 0 else "crash", f"its process {ending(status)} in {method}")
        if failed:
            raise StrangerFault(*json.loads(payload))
        return np.frombuffer(payload, np.float64).reshape(shape)

    def answer(self, header: dict[str, Any], array: np.ndarray | None) -> tuple[dict[str, Any], np.ndarray | None]:
        """Carry out one request."""
        operation = header["do"]
        if operation == "make":
            self.prefix = np.zeros(0, np.int64)
            return self.make(), None
        if operation == "begin" and array is not None:
            self.prefix = array.astype(np.int64)
            return {}, None
        if operation == "bait" and array is not None:
            lay_bait(array)
            return {}, None
        if operation == "boundary":
            return {"stop": int(self.instance.next_boundary(len(self.prefix)))}, None
        if operation == "observe" and array is not None:
            self.call("observe", array)
            self.prefix = np.concatenate([self.prefix, array.astype(np.int64)])
            return {}, None
        if operation in ("score", "distribution") and array is not None:
            seconds = float(header.get("seconds", math.inf))
            return {}, self.rows(operation, array, bool(header.get("isolated")), seconds)
        raise StrangerFault("protocol", f"unknown request {operation!r}")


def describe(error: BaseException) -> str:
    """Return the error, and the last place in the stranger's code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = os.path.abspath(__file__)
    where = next((f for f in reversed(frames) if os.path.abspath(f.filename) != own), None)
    place = f" ({os.path.basename(where.filename)}, line {where.lineno})" if where else ""
    return f"{type(error).__name__}: {error}{place}"


def serve(link: socket.socket, spec: str) -> None:
    """Answer requests until the parent hangs up."""
    stranger: Stranger | None = None
    while True:
        try:
            header, array = receive(link)
        except (EOFError, OSError):
            os._exit(0)
        reply: dict[str, Any] = {}
        values: np.ndarray | None = None
        try:
            if header["do"] == "load":
                stranger = Stranger(spec, header["sealed"], header["arguments"])
            elif header["do"] == "push":
                child = os.fork()
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else POPPED
                if status != POPPED:
                    kind = "died" if status >= 0 else "killed in a copy"
                    reply = {"fault": kind, "message": f"the process of the forecaster {ending(status)}"}
            elif header["do"] == "pop":
                os._exit(POPPED)
            else:
                assert stranger is not None
                reply, values = stranger.answer(header, array)
        except StrangerFault as fault:
            reply = {"fault": fault.kind, "message": str(fault)}
        except BaseException as error:
            reply = {"fault": "crash", "message": describe(error)}
        with contextlib.suppress(BrokenPipeError):
            send(link, reply, values)


def serve_forks(control: socket.socket) -> tuple[socket.socket, str]:
    """Begin and end processes for strangers as the parent asks, until it hangs up.

    Every request is one byte, with the files of the process where one is to begin (its link, and where it prints), and
    a frame. Returns in the copies alone, the link and what ``load`` names.
    """
    while True:
        try:
            _, files, _, _ = socket.recv_fds(control, 1, 2)
            request, _ = receive(control)
        except (EOFError, OSError, struct.error):
            os._exit(0)
        if request["do"] == "begin":
            process = os.fork()
            if process == 0:
                control.close()
                settle(files[1], request["folder"], request["environment"])
                return socket.socket(fileno=files[0]), request["spec"]
            for file in files:
                os.close(file)
            answer: dict[str, Any] = {"process": process}
        else:
            answer = {"status": end(request["process"], request["seconds"])}
        with contextlib.suppress(BrokenPipeError):
            send(control, answer)


def settle(output: int, folder: str, environment: dict[str, str]) -> None:
    """Make this copy of the fork server what a process of its own would be."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(folder)
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)
    if "numpy.random" in sys.modules:
        np.random.seed()  # no two processes share the state of unseeded random numbers; Python's own sees to itself
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()


def end(process: int, seconds: float) -> int | None:
    """Return the exit status of a process that ends by itself within ``seconds``; kill any other, and all copies."""
    deadline = time.monotonic() + seconds
    status = None
    with contextlib.suppress(ChildProcessError):  # an earlier fork server, which something has ended, began it
        while not (reaped := os.waitpid(process, os.WNOHANG))[0]:
            if time.monotonic() >= deadline:
                kill(process)
                os.waitpid(process, 0)
                return None
            time.sleep(0.005)
        status = os.waitstatus_to_exitcode(reaped[1])
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)  # what it left running
    return status


def kill(process: int) -> None:
    """Kill a process that nobody has waited for yet, and its copies."""
    try:
        os.killpg(process, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGKILL)  # it has not come to lead a group of its own


def main() -> None:
    """Serve as a fork server on the socket whose number is the first argument; a copy serves a stranger's factory.

    The other arguments are modules of ours that the copies need.
    """
    own_folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != own_folder]
    sys.path.append(os.path.dirname(os.path.dirname(own_folder)))
    for name in sys.argv[2:]:
        importlib.import_module(name)
    # what is here by now lives on: no copy's garbage collection need look at it, and write to its memory
    gc.freeze()
    link, spec = serve_forks(socket.socket(fileno=int(sys.argv[1])))
    sys.argv[:] = [spec]
    serve(link, spec)


if __name__ == "__main__":
    main()
