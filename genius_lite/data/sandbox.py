"""Work that is not trusted with time or memory, in a process of its own that is ended where it goes too far.

The process is a module of this package, run as a program that calls `serve`: lines of JSON in on stdin and out on
stdout, first an opening, then a message each. It ends when its standard input does, so with whoever started it.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any

import psutil

from genius_lite.errors import UserError
from genius_lite.hardware.system import SHORT_SPIN

_LOOK_EVERY = 0.02  # seconds between two looks at a process that has not answered yet
_PATIENCE = 10  # times its seconds of computing: what passes on the clock until a process counts as stalled

# What a helper process is told of the environment: where programs, libraries and temporary files are, the language, and
# how the libraries compute. Whatever sounds like a secret is none of it, as llama.cpp's own LLAMA_API_KEY.
_TOLD = re.compile(
    r"PATH|HOME|TMPDIR|TEMP|TMP|LANG|LANGUAGE|TZ|VIRTUAL_ENV|SYSTEMROOT|WINDIR|COMSPEC|PATHEXT|USERPROFILE|APPDATA|"
    r"LOCALAPPDATA|(LC|XDG|LD|DYLD|PYTHON|OMP|GOMP|KMP|MKL|OPENBLAS|GGML|LLAMA|CUDA|NVIDIA|HIP|ROC|HSA|GPU|VK|MESA|RADV|"
    r"DRI|ONEAPI|SYCL|ZE|NLTK)_?\w*",
    re.IGNORECASE,
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)

Message = dict[str, Any]
"""A JSON object."""
KILLED = 9  # SIGKILL, which Windows has no name for: for want of memory, or by a person
_NTSTATUS = 0xC0000000  # Windows' exceptions, which end a process that does not handle them, begin here
_REFUSED = "refused"  # under which a reply says why there is no other


def environment() -> dict[str, str]:
    """Return what a helper process gets of this one's environment: no key, no token, no proxy's password."""
    told = {name: value for name, value in os.environ.items() if _TOLD.fullmatch(name) and not _SECRET.search(name)}
    return told | ({"__PYVENV_LAUNCHER__": sys.executable} if _python() != sys.executable else {})


def _python() -> str:
    """Return the interpreter itself: a virtual environment's on Windows is a launcher, which starts it as its child.

    Limits, and an end, would be the launcher's. `multiprocessing` does likewise (bpo-35797).
    """
    return getattr(sys, "_base_executable", sys.executable) if sys.platform == "win32" else sys.executable


def helper(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this package; modules of the working directory are none of ours."""
    return [_python(), "-P", "-m", module, *arguments]


def attempt(command: Sequence[str], patience: float) -> subprocess.CompletedProcess[bytes]:
    """Run a command that lets llama.cpp try what it may die of; a TimeoutExpired after `patience` seconds."""
    env = SHORT_SPIN | environment() | {"GGML_NO_BACKTRACE": "1"}  # so that llama.cpp starts no debugger if it aborts
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=env, timeout=patience)


def forget_secrets() -> None:
    """Take what sounds like a secret out of this process's environment: it is a helper's that others have started."""
    for name in [name for name in os.environ if _SECRET.search(name) and not name.startswith("RAY_")]:
        del os.environ[name]


class LimitError(UserError):
    """The process went beyond a limit, or ended by itself; the text says which, as in "it takes more than 2 s"."""


class LimitedProcess:
    """A process that answers messages one by one, whichever thread asks; started when first asked, and after each end.

    Args:
        module: the program, whose `serve` is told the `opening` each time it starts.
        seconds: of computing, and
        memory: bytes, that one message may take.
    """

    def __init__(self, module: str, opening: Message, *, seconds: int, memory: int):
        self._module, self._opening = module, {"opening": opening, "seconds": seconds, "memory": memory}
        self._seconds, self._memory = seconds, memory
        self._process: psutil.Popen | None = None
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock, self._owner = threading.RLock(), os.getpid()

    def ask(self, message: Message) -> Message:
        """Return the reply to a message.

        Raises:
            LimitError: there is none, and the process is gone; the next message starts another.
            UserError: the program refuses the message; the text says why.
        """
        if self._owner != os.getpid():  # after a fork: the process, and a lock that is held, are the parent's
            self._process, self._lock, self._owner = None, threading.RLock(), os.getpid()
        with self._lock:
            process = self._process or self._start()
            _send(process.stdin, message)
            reply = self._reply(process)
        if _REFUSED in reply:
            raise UserError(reply[_REFUSED])
        return reply

    def close(self) -> None:
        """End the process, if there is one; the next message starts another."""
        with self._lock:
            if (process := self._process) and self._owner == os.getpid():
                self._process = None
                _end(process, self._owner)
                self._reader.join()
                for stream in (process.stdin, process.stdout):
                    with suppress(OSError):  # what was still to be sent is lost
                        stream.close()

    def _start(self) -> psutil.Popen:
        process = psutil.Popen(
            helper(self._module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
            env=environment(),
            start_new_session=os.name == "posix",  # Ctrl-C is for whoever waits for it
        )
        weakref.finalize(self, _end, process, self._owner)  # where nobody closes it
        self._process, self._replies = process, queue.SimpleQueue()
        self._reader = threading.Thread(target=_read, args=(process.stdout, self._replies), daemon=True)
        self._reader.start()
        _send(process.stdin, self._opening)
        if not self._replies.get():  # without a limit: loading counts to no message
            self.close()
            raise RuntimeError(f"{sys.executable} -m {self._module} does not start")
        return process

    def _reply(self, process: psutil.Popen) -> Message:
        reason, before, begun = "", 0.0, time.monotonic()
        while not reason:
            try:
                if line := self._replies.get(timeout=_LOOK_EVERY):
                    return json.loads(line)
                reason = f"it ended its process ({process.wait()})"
            except queue.Empty:
                before = before or _seconds_used(process)
                reason = self._beyond(process, before, time.monotonic() - begun)
        self.close()
        raise LimitError(reason)

    def _beyond(self, process: psutil.Popen, before: float, waited: float) -> str:
        """Name the limit that the process has passed. What it computed counts, so a busy machine takes nothing away."""
        with suppress(psutil.NoSuchProcess):  # it ends just now
            if process.memory_info().rss > self._memory:
                return f"it takes more than {self._memory / 1e6:.0f} MB"
            if _seconds_used(process) - before > self._seconds:
                return f"it takes more than {self._seconds} s"
        return f"it has stalled for {waited:.0f} s" if waited > _PATIENCE * self._seconds else ""


def serve(start: Callable[[Message], Callable[[Message], Message]]) -> None:
    """Answer messages until standard input ends: the whole of such a program.

    Args:
        start: is given the opening, and gives what answers a message. It refuses one by a UserError; what else it
            raises ends the process, which is an answer too.
    """
    replies = sys.stdout
    sys.stdout = sys.stderr  # what the work prints is no reply
    told = json.loads(sys.stdin.readline())
    answer = start(told["opening"])
    _send(replies, {})
    for line in sys.stdin:
        # Whether its parent looks or has gone. Address space is more than memory: it gets three times as much.
        limit_this_process(2 * told["seconds"], 3 * told["memory"])
        try:
            reply = answer(json.loads(line))
        except UserError as e:
            reply = {_REFUSED: str(e)}
        except MemoryError:
            reply = {_REFUSED: "it takes too much memory"}
        _send(replies, reply)


def limit_this_process(seconds: int, address_space: int) -> None:
    """Let the system end this process after so many more seconds of computing, and refuse it more than so many bytes.

    Windows has no such limits, macOS none of memory.
    """
    try:
        import resource
    except ImportError:
        return
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(used.ru_utime + used.ru_stime) + seconds
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _end(process: psutil.Popen, owner: int) -> None:
    if owner != os.getpid():  # a fork of the owner has no say in it
        return
    with suppress(psutil.NoSuchProcess):  # it has ended by itself
        process.kill()
    process.wait()


def _seconds_used(process: psutil.Popen) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def _read(stream: IO[str], replies: queue.SimpleQueue[str]) -> None:
    """Read in a thread of its own; the last reply is empty."""
    try:
        for line in stream:
            replies.put(line)
    finally:
        replies.put("")


def _send(stream: Any, message: Message) -> None:
    try:
        stream.write(json.dumps(message) + "\n")
        stream.flush()
    except OSError as e:  # who waits for an answer learns that the process has ended; EINVAL is Windows' word for it
        if e.errno not in (errno.EPIPE, errno.EINVAL):
            raise


def fate(status: int) -> str | None:
    """Name what killed a process of this exit status: a signal, or a Windows exception; None if nothing did.

    Real-time signals have numbers alone, and so have Windows' exceptions (NTSTATUS, 0xC0000000 and above).
    """
    if status >= _NTSTATUS:
        return f"exception 0x{status:X}"
    if status >= 0:
        return None
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
