"""Commands without the seconds that their libraries take to import: `python -m tests.support.warm KIND OWNER SOCKET`.

A process that has imported them forks for each command, which runs a module with its own arguments, folder, environment
and files, and ends as an interpreter ends. Half of what the suite's commands took was these imports. It listens at a
socket, to this file's `run` and to `tests/support/forked.py`, which stands for a command where one has to be started.
The test processes of pytest-xdist have one together.

Another one, without torch, forks a run's own helpers for the tests that say so (`forked_helpers`): samplers and what
tries a file, of which a run starts about ten, and whose imports took a third of its time. A third one has
lm-evaluation-harness.
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
from importlib import import_module
from pathlib import Path
from typing import IO

import pytest

from genius_lite.data import sandbox
from tests.support import forked

_SLOW = {  # to import
    "commands": (
        "genius_lite.evaluate.checkers",
        "genius_lite.learner.train",
        "genius_lite.run",
        "genius_lite.weights.meta_model",
        "peft",
        "torch._inductor.compile_fx",
        "transformers.models.llama.modeling_llama",
        "transformers.models.qwen2.modeling_qwen2",
    ),
    "harness": ("lm_eval.tasks", "datasets", "langdetect"),
    "helpers": ("genius_lite.data.vocabulary", "genius_lite.sampler.engine", "psutil"),
}
_SHARED = "TESTS_WARM_{}"  # where another process has it, which started this one
FORKED_HELPERS = "TESTS_FORK_HELPERS"  # a variable of the commands' environment: they do so too
_KINDS = {
    "genius_lite.evaluate.harness": "harness",
    "genius_lite.sampler.probe": "helpers",
    "genius_lite.sampler.worker": "helpers",
}


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


def server(kind: str = "commands") -> str:
    """Return where the process listens. It ends when this one does, and is no child: tests look for what is left."""
    if _SHARED.format(kind) not in os.environ:
        share()
    return os.environ[_SHARED.format(kind)]


def share() -> None:
    """Have one process of each kind, for all that this one starts, too; it begins when one of them asks."""

    def start_when_asked(kind: str, listening: socket.socket) -> None:
        select.select([listening], [], [])
        _start(kind, listening)

    for kind in _SLOW:
        os.environ[_SHARED.format(kind)], listening = _listen()
        threading.Thread(target=start_when_asked, args=(kind, listening), daemon=True).start()


def fork_helpers(patch: pytest.MonkeyPatch) -> None:
    """Have runs of this process, and commands that it starts, fork samplers, probes and lm-evaluation-harness.

    What has limits of its own, as templates and scorers have, is a process of its own here too.
    """
    true, where = sandbox.helper, {kind: server(kind) for kind in ("helpers", "harness")}
    patch.setenv(FORKED_HELPERS, "1")

    def helper(module: str, *arguments: str) -> list[str]:
        kind = _KINDS.get(module)
        return forked.command(where[kind], module, *arguments) if kind else true(module, *arguments)

    for module in ("data.sandbox", "sampler.process", "weights.untrusted"):
        patch.setattr(f"genius_lite.{module}.helper", helper)


def _listen() -> tuple[str, socket.socket]:
    """Make the socket; who connects before the process has begun waits for it."""
    folder = tempfile.mkdtemp(prefix="warm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{folder}/socket")
    listening.listen()
    return f"{folder}/socket", listening


def _start(kind: str, listening: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    given = [theirs.fileno(), listening.fileno()]
    command = [sys.executable, "-m", "tests.support.warm", kind, *map(str, given)]
    env = {**os.environ, "TQDM_DISABLE": "1", "GOMP_SPINCOUNT": "1000"}  # which libraries read when they are loaded
    subprocess.run(["sh", "-c", '"$@" &', "sh", *command], pass_fds=given, env=env, check=True)
    theirs.close()
    listening.close()
    atexit.register(ours.close)


def _read(end: int) -> str:
    with open(end) as file:
        return file.read()


def _serve(kind: str, owner: socket.socket, listening: socket.socket) -> None:
    forked.keep_to(forked.cores()[:1])  # as each test process does: libraries count cores once
    for module in map(import_module, _SLOW[kind]):
        if module.__name__.endswith("checkers"):
            module.extract_answer("")  # which compiles patterns for two seconds
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
    asked, cores, standard = forked.asked(connection)
    forked.keep_to(cores)
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
    others = {name: os.environ[name] for name in map(_SHARED.format, _SLOW)}
    os.environ.clear()
    os.environ.update(asked.env)
    sys.argv = [asked.module, *asked.arguments]
    tempfile.tempdir = None  # it is found anew, in this environment
    exec(asked.before, {})
    if FORKED_HELPERS in asked.env:
        os.environ.update(others)
        fork_helpers(pytest.MonkeyPatch())
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
    _serve(sys.argv[1], *(socket.socket(fileno=int(number)) for number in sys.argv[2:]))
