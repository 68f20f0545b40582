"""Commands without the seconds that their libraries take to import: `python -m tests.support.warm OWNER LISTENING`.

A process that has imported them forks for each command, which runs a module with its own arguments, folder, environment
and files, and ends as an interpreter ends. Half of what the suite's commands took was these imports. It listens at a
socket, to this file's `run` and to `tests/support/forked.py`, which stands for a command where one has to be started.
The test processes of pytest-xdist have one together.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO

from tests.support import forked

_SLOW = (  # to import
    "genius_lite.learner.train",
    "genius_lite.run",
    "genius_lite.weights.meta_model",
    "peft",
    "torch._inductor.compile_fx",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
)
_SHARED = "TESTS_WARM_SERVER"  # where another process has it, which started this one


def run(
    arguments: list[str],
    cwd: Path,
    env: dict[str, str],
    *,
    module: str = "genius_lite",
    given: str = "",
    before: str = "",
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a module to its end, as `subprocess.run` does with `capture_output`.

    Args:
        given: its standard input.
        before: Python that its process runs first.
        timeout: seconds; then it is killed.

    Raises:
        TimeoutError: it took longer.
    """
    (out, stdout), (err, stderr) = os.pipe(), os.pipe()
    with tempfile.TemporaryFile() as stdin, ThreadPoolExecutor(2) as readers:
        stdin.write(given.encode())
        stdin.seek(0)
        said = [readers.submit(_read, end) for end in (out, err)]
        asked = forked.Asked(module, arguments, str(cwd), env, before)
        with forked.ask(server(), asked, [stdin.fileno(), stdout, stderr]) as command:
            os.close(stdout)
            os.close(stderr)
            status = command.wait(timeout)
    return subprocess.CompletedProcess([module, *arguments], status, *(text.result() for text in said))


@cache
def server() -> str:
    """Return where the process listens. It ends when this one does, and is no child: tests look for what is left."""
    if shared := os.environ.get(_SHARED):
        return shared
    path, listening = _listen()
    _start(listening)
    return path


def share() -> None:
    """Have one such process for all test processes that this one starts; it begins when one of them asks."""
    os.environ[_SHARED], listening = _listen()

    def start_when_asked() -> None:
        select.select([listening], [], [])
        _start(listening)

    threading.Thread(target=start_when_asked, daemon=True).start()


def _listen() -> tuple[str, socket.socket]:
    """Make the socket; who connects before the process has begun waits for it."""
    folder = tempfile.mkdtemp(prefix="warm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{folder}/socket")
    listening.listen()
    return f"{folder}/socket", listening


def _start(listening: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    given = [theirs.fileno(), listening.fileno()]
    command = [sys.executable, "-m", "tests.support.warm", *map(str, given)]
    env = {**os.environ, "TQDM_DISABLE": "1"}  # which the libraries read when they are imported
    subprocess.run(["sh", "-c", '"$@" &', "sh", *command], pass_fds=given, env=env, check=True)
    theirs.close()
    listening.close()
    atexit.register(ours.close)


def _read(end: int) -> str:
    with open(end) as file:
        return file.read()


def _serve(owner: socket.socket, listening: socket.socket) -> None:
    if _SHARED in os.environ:
        forked.keep_to(forked.cores()[:1])  # as each test process does: libraries count cores once
    for module in _SLOW:
        import_module(module)
    import_module("genius_lite.evaluate.checkers").extract_answer("")  # which compiles patterns for two seconds
    gc.freeze()  # a collection in a fork would copy every page
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while owner not in select.select([owner, listening], [], [])[0]:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            owner.close()
            _keep(connection)
            return
        connection.close()


def _keep(connection: socket.socket) -> None:
    """Start the command, say its number and how it ended; in the command itself, return when it has no end yet."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, standard = forked.asked(connection)
    forked.keep_to(asked.cores)
    command = os.fork()
    if command:
        for file in standard:
            os.close(file)
        over = threading.Event()
        threading.Thread(target=_end_without, args=(connection, command, over), daemon=True).start()
        connection.sendall(f"{command}\n".encode())
        ended = os.waitpid(command, 0)[1]
        over.set()
        with suppress(BrokenPipeError):  # whoever asked has gone
            connection.sendall(f"{os.waitstatus_to_exitcode(ended)}\n".encode())
        os._exit(0)
    connection.close()
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have what runs in the background ignore
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = _stream(0, "r"), _stream(1, "w")
    # Without a buffer, as an interpreter has it: what could not be written is not tried again at the end.
    unbuffered = io.FileIO(2, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(unbuffered, errors="backslashreplace", line_buffering=True, write_through=True)
    os.chdir(asked.cwd)
    os.environ.clear()
    os.environ.update(asked.env)
    sys.argv = [asked.module, *asked.arguments]
    tempfile.tempdir = None  # it is found anew, in this environment
    exec(asked.before, {})
    try:
        runpy.run_module(asked.module, run_name="__main__")
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        _end(end.code or 0)
    _end(0)


def _end_without(asker: socket.socket, command: int, over: threading.Event) -> None:
    """Kill a command that is not over when whoever asked for it has gone: nobody else could."""
    with suppress(ConnectionResetError):
        asker.recv(1)
    if not over.is_set():
        os.kill(command, signal.SIGKILL)


def _stream(number: int, mode: str) -> IO[str]:
    return open(number, mode, buffering=1, closefd=False)


def _end(code: int) -> None:
    """End as an interpreter does, but for taking the libraries apart, which takes a fork four seconds."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(*(socket.socket(fileno=int(number)) for number in sys.argv[1:]))
