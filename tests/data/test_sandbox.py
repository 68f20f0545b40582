from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import psutil
import pytest

from genius_lite.data import sandbox
from genius_lite.data.sandbox import LimitedProcess, LimitError, fate
from genius_lite.errors import UserError

PROGRAM = """
import os, time
from genius_lite.data.sandbox import serve
from genius_lite.errors import UserError

def start(opening):
    print("hello")  # no reply
    def answer(message):
        print("one", message)
        time.sleep(message.get("sleep", 0))
        if message.get("refuse"):
            raise UserError("not this one")
        if message.get("hoard"):
            raise MemoryError
        if message.get("die"):
            os.abort()
        return {"of": opening["name"], "by": os.getpid(), **message}
    return answer

serve(start)
"""


@pytest.fixture
def process(tmp_path, monkeypatch):
    (tmp_path / "a_program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    process = LimitedProcess("a_program", {"name": "x"}, seconds=2, memory=100_000_000)
    yield process
    process.close()


def test_replies_are_those_to_the_messages_whichever_thread_asks(process):
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(process.ask, [{"n": n} for n in range(200)]))
    assert [(reply["of"], reply["n"]) for reply in replies] == [("x", n) for n in range(200)]
    assert len({reply["by"] for reply in replies}) == 1


def test_a_process_that_dies_is_replaced(process):
    first = process.ask({})["by"]
    for _ in range(2):
        with pytest.raises(LimitError, match="it ended its process"):
            process.ask({"die": True})
    assert process.ask({})["by"] != first


def test_a_message_that_is_refused_says_why_and_the_process_goes_on(process):
    first = process.ask({})["by"]
    for message, why in (({"refuse": True}, "not this one"), ({"hoard": True}, "it takes too much memory")):
        with pytest.raises(UserError, match=why):
            process.ask(message)
    assert process.ask({})["by"] == first


def test_a_process_that_stalls_is_replaced(process, monkeypatch):
    with monkeypatch.context() as hurried, pytest.raises(LimitError, match="it has stalled for"):
        hurried.setattr(sandbox, "_PATIENCE", 0.25)
        process.ask({"sleep": 60})
    assert process.ask({"n": 1})["n"] == 1


def test_a_program_that_does_not_start_is_no_fault_of_a_message():
    before = psutil.Process().children()
    process = LimitedProcess("no_program_at_all", {}, seconds=2, memory=100_000_000)
    with pytest.raises(RuntimeError, match="no_program_at_all does not start"):
        process.ask({})
    assert psutil.Process().children() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("code", [errno.EPIPE, errno.EINVAL, errno.ENOSPC])
def test_a_pipe_that_nobody_reads_any_more_is_no_fault(code):
    """Windows says EINVAL."""

    class Gone(io.StringIO):
        def flush(self) -> None:
            raise OSError(code, "")

    with pytest.raises(OSError, match=str(code)) if code == errno.ENOSPC else nullcontext():
        sandbox._send(Gone(), {})


def test_a_fork_has_a_process_of_its_own(process):
    mine = process.ask({})["by"]
    child = os.fork()
    if not child:
        theirs = process.ask({})["by"]
        process.close()
        os._exit(theirs != mine and psutil.pid_exists(mine))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert process.ask({})["by"] == mine


def test_a_limit_that_is_there_already_stays():
    """As `ulimit -t` sets one: a process may lower it and not raise it."""
    code = (
        "import resource\nfrom genius_lite.data.sandbox import limit_this_process\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (5, 5))\n"
        "limit_this_process(1000, 1 << 34)\nprint(*resource.getrlimit(resource.RLIMIT_CPU))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("5 5\n", "")


def test_what_killed_a_process_is_named():
    killed = {-9: "SIGKILL", -35: "signal 35", 0xC0000005: "exception 0xC0000005"}  # the last is Windows'
    assert {status: fate(status) for status in killed} == killed
    assert [fate(status) for status in (0, 1, 3)] == [None] * 3


def test_a_launcher_of_windows_is_passed_by(monkeypatch):
    """A virtual environment's python.exe starts another process, which limits and an end would not be of."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "_base_executable", "C:/Python312/python.exe", raising=False)
    assert sandbox.helper("m")[0] == "C:/Python312/python.exe"
    assert sandbox.environment()["__PYVENV_LAUNCHER__"] == sys.executable
    monkeypatch.setattr(sys, "platform", "linux")
    assert sandbox.helper("m")[0] == sys.executable
    assert "__PYVENV_LAUNCHER__" not in sandbox.environment()


def test_what_an_amd_gpu_is_found_by_is_told(monkeypatch):
    monkeypatch.setenv("ROCBLAS_TENSILE_LIBPATH", "/opt/rocm/lib")
    monkeypatch.setenv("DRI_PRIME", "1")
    assert {"ROCBLAS_TENSILE_LIBPATH", "DRI_PRIME"} <= sandbox.environment().keys()


def test_what_llama_cpp_may_die_of_is_tried_with_threads_that_do_not_wait(monkeypatch):
    """From Python nothing has set it: beside a busy program the first tokens of a good file took 6 s instead of 0.1."""
    asked = "import os; print(os.environ['GOMP_SPINCOUNT'], os.environ['GGML_NO_BACKTRACE'])"
    for told, expected in ((None, "1000"), ("7", "7")):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        if told:
            monkeypatch.setenv("GOMP_SPINCOUNT", told)
        assert sandbox.attempt([sys.executable, "-c", asked], 20).stdout.split() == [expected.encode(), b"1"]
