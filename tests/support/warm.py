"""Commands of genius-lite without the seconds that its libraries take to import: `python -m tests.support.warm FD`.

A process that has imported them forks for each command, which runs `main` with its own arguments, folder, environment
and files, and ends as an interpreter ends. Half of what the suite's commands took was these imports.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO

_READY = b"+"
_SLOW = (  # to import
    "genius_lite.learner.train",
    "genius_lite.run",
    "genius_lite.weights.meta_model",
    "peft",
    "torch._inductor.compile_fx",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
)


def run(
    arguments: list[str], cwd: Path, env: dict[str, str], given: str = "", timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` does with `capture_output`.

    Args:
        given: its standard input.
        timeout: seconds; then it is killed.

    Raises:
        TimeoutError: it took longer.
    """
    asked = json.dumps({"arguments": arguments, "cwd": str(cwd), "env": env})
    with _holding(asked) as request, _holding(given) as stdin, _holding("") as stdout, _holding("") as stderr:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            handed = [file.fileno() for file in (request, stdin, stdout, stderr, theirs)]
            socket.send_fds(_server(), [_READY], handed)
            theirs.close()
            ours.settimeout(timeout)
            with ours.makefile() as lines:
                pid = int(lines.readline())
                try:
                    status = int(lines.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise
        said = [_read(file) for file in (stdout, stderr)]
    return subprocess.CompletedProcess(["genius-lite", *arguments], os.waitstatus_to_exitcode(status), *said)


@contextmanager
def _holding(text: str) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")


@cache
def _server() -> socket.socket:
    """The socket of a process that ends when this one does. It is no child: tests look whether one is left behind."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.support.warm", str(theirs.fileno())]
    subprocess.run(["sh", "-c", '"$@" &', "sh", *command], pass_fds=[theirs.fileno()], check=True)
    theirs.close()
    return ours


def _serve(server: socket.socket) -> None:
    for module in _SLOW:
        import_module(module)
    gc.freeze()  # a collection in a fork would copy every page
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        asked, files, _, _ = socket.recv_fds(server, 1, 5)
        if not asked:
            return
        if os.fork() == 0:
            server.close()
            _keep(files)
            return
        for file in files:
            os.close(file)


def _keep(files: list[int]) -> None:
    """Start the command, say its number and how it ended; in the command itself, return when it is to end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, *standard, status = files
    command = os.fork()
    if command:
        os.write(status, f"{command}\n".encode())
        ended = os.waitpid(command, 0)[1]
        os.write(status, f"{ended}\n".encode())
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have what runs in the background ignore
    with os.fdopen(request) as file:
        asked = json.load(file)
    for number, file in enumerate(standard):
        os.dup2(file, number)
    for file in (*standard, status):
        os.close(file)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = ["genius-lite", *asked["arguments"]]
    from genius_lite.cli import main

    try:
        main()
    except SystemExit as end:
        _end(end)


def _end(end: SystemExit) -> None:
    """End as an interpreter does, but for taking the libraries apart, which takes a fork four seconds."""
    if end.code is not None and not isinstance(end.code, int):
        raise end
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end.code or 0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
