"""The command line in fresh processes that need not import everything again: forks of one that has.

``forked_cli.py serve SOCKET`` imports evalkit and torch once and waits; ``forked_cli.py SOCKET ARGUMENTS...`` runs
``evalkit ARGUMENTS...`` in a fork of it, with the caller's folder, environment and standard streams, and exits with its
exit code. A fork has seen no other command: nothing leaks from one line of a page's example to the next.
"""

import json
import os
import signal
import socket
import sys


def serve(path: str) -> None:
    """Answer calls until killed."""
    import torch._dynamo  # noqa: F401 - which optimizers import

    import evalkit.mixers
    import evalkit.train.export.pipeline
    import evalkit.train.run
    import evalkit.ttt.forecaster
    import evalkit.verbs.check
    import evalkit.verbs.submit  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            run(connection)
        connection.close()


def run(connection: socket.socket) -> None:
    """Carry out one call in this process and end it."""
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    call = json.loads(message)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    sys.argv[:] = ["evalkit", *call["arguments"]]
    code = 1
    try:
        from evalkit.cli.main import run_command

        try:
            code = run_command(call["arguments"])
        except SystemExit as leaving:  # of click, which answers a shell that completes a line
            code = int(leaving.code or 0)
        sys.stdout.flush()
    finally:
        connection.sendall(bytes([code]))
        os._exit(code)


def call(path: str, arguments: list[str]) -> int:
    """Have a command run; return its exit code."""
    message = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(message).encode()], [0, 1, 2])
        answer = connection.recv(1)
    return answer[0] if answer else 1


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
