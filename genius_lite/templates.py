"""Chat templates, which are programs out of somebody's file: each is rendered in a process of its own, with limits.

Jinja's sandbox keeps a template from the interpreter, but not from time and memory: a string times a number, nested
loops, a filter that pads, constants that are folded while the template is compiled. In another process all of them meet
the same limits. `python -m genius_lite.templates` is that process: lines of JSON in on stdin and out on stdout, first
the template, then a conversation each. It ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any

import psutil

from genius_lite.errors import UserError
from genius_lite.visible import brief

_SECONDS = 2  # of computing, for one conversation; real templates take a millisecond
_MEMORY = 256_000_000  # bytes; a process that only holds Jinja has 30 MB
_LONGEST = 4_000_000  # characters of a rendered conversation
_LOOK_EVERY = 0.02  # seconds between two looks at a process that has not answered yet

Message = dict[str, str]


class Renderer:
    """Renders the conversations of one chat template (Jinja), as transformers does.

    Args:
        variables: what the template finds beside the conversation, such as `bos_token`.
        seconds: of computing, and
        memory: bytes, that one conversation may take.
    """

    def __init__(self, template: str, variables: dict[str, str], *, seconds: int = _SECONDS, memory: int = _MEMORY):
        self._opening = {"template": template, "variables": variables, "seconds": seconds, "memory": memory}
        self._seconds, self._memory = seconds, memory
        self._process: psutil.Popen | None = None
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()

    def render(self, messages: Sequence[Message], *, generation: bool = True) -> str:
        """A conversation as the template writes it; `generation` opens the assistant's answer.

        Raises:
            UserError: the template is broken, refuses these messages, or goes beyond a limit.
        """
        process = self._process or self._start()
        _send(process.stdin, {"messages": list(messages), "generation": generation})
        reply = self._answer(process)
        if "text" not in reply:
            raise UserError(f"the model's chat template cannot render this conversation: {reply['reason']}")
        return reply["text"]

    def close(self) -> None:
        """End the process, if there is one; the next conversation starts another."""
        if process := self._process:
            self._process = None
            _end(process)
            self._reader.join()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):  # what was still to be sent is lost
                    stream.close()

    def _start(self) -> psutil.Popen:
        process = psutil.Popen(
            [sys.executable, "-P", "-m", "genius_lite.templates"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
            start_new_session=os.name == "posix",  # Ctrl-C is for whoever waits for it
        )
        weakref.finalize(self, _end, process)  # where nobody closes it
        self._process, self._replies = process, queue.SimpleQueue()
        self._reader = threading.Thread(target=_read, args=(process.stdout, self._replies), daemon=True)
        self._reader.start()
        _send(process.stdin, self._opening)
        if not self._replies.get():  # without a limit: loading Jinja counts to no conversation
            raise RuntimeError(f"{sys.executable} -m genius_lite.templates does not start")
        return process

    def _answer(self, process: psutil.Popen) -> dict[str, str]:
        """The reply, or why there is none; a process that went beyond a limit is ended."""
        reason, before = "", 0.0
        while not reason:
            try:
                if line := self._replies.get(timeout=_LOOK_EVERY):
                    return json.loads(line)
                reason = f"it ended its process ({process.wait()})"
            except queue.Empty:
                before = before or _seconds_used(process)
                reason = self._beyond(process, before)
        self.close()
        return {"reason": reason}

    def _beyond(self, process: psutil.Popen, before: float) -> str:
        """The limit that the process has passed. What it computed counts, so that a busy machine takes nothing away."""
        with suppress(psutil.NoSuchProcess):  # it ends just now
            if process.memory_info().rss > self._memory:
                return f"it takes more than {self._memory / 1e6:.0f} MB"
            if _seconds_used(process) - before > self._seconds:
                return f"it takes more than {self._seconds} s"
        return ""


def _end(process: psutil.Popen) -> None:
    with suppress(psutil.NoSuchProcess):  # it has ended by itself
        process.kill()
    process.wait()


def _seconds_used(process: psutil.Popen) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def _read(stream: IO[str], replies: queue.SimpleQueue[str]) -> None:
    """In a thread of its own; the last reply is empty."""
    for line in stream:
        replies.put(line)
    replies.put("")


def _send(stream: Any, message: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):  # who waits for an answer learns that the process has ended
        stream.write(json.dumps(message) + "\n")
        stream.flush()


def main() -> None:
    """Render until standard input ends."""
    opening = json.loads(sys.stdin.readline())
    bound = _bounds(opening["seconds"], opening["memory"])
    render = _template(opening["template"], opening["variables"])
    _send(sys.stdout, {})
    for line in sys.stdin:
        bound()
        _send(sys.stdout, _rendered(render, json.loads(line)))


def _bounds(seconds: int, memory: int) -> Callable[[], None]:
    """What lets the system itself end this process, whether its parent looks or has gone; called before each work.

    Address space is more than memory: it gets three times as much. Windows has no such limits, macOS none of memory.
    """
    try:
        import resource
    except ImportError:
        return lambda: None
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (3 * memory, 3 * memory))

    def bound() -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 2 * seconds, hard))

    return bound


def _template(template: str, variables: dict[str, str]) -> Callable[..., str]:
    """A function that renders; the template is compiled when it is first called."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.globals["raise_exception"] = refuse
    compiled: list[jinja2.Template] = []

    def render(messages: list[Message], generation: bool) -> str:
        if not compiled:
            compiled.append(env.from_string(template))
        return compiled[0].render(messages=messages, add_generation_prompt=generation, tools=None, **variables)

    return render


def _rendered(render: Callable[..., str], conversation: dict[str, Any]) -> dict[str, str]:
    """The reply. What else a template may raise ends this process, which is an answer too."""
    import jinja2

    try:
        text = render(conversation["messages"], conversation["generation"])
        text.encode()  # half a character is no text
    except MemoryError:
        return {"reason": "it takes too much memory"}
    except RecursionError:
        return {"reason": "it calls itself without end"}
    except (
        *(jinja2.TemplateError, SyntaxError, TypeError, ValueError, ArithmeticError),
        *(LookupError, AttributeError, AssertionError, RuntimeError, NameError),
    ) as e:
        return {"reason": brief(str(e) or type(e).__name__, 200)}
    if len(text) > _LONGEST:
        return {"reason": f"it writes more than {_LONGEST} characters"}
    return {"text": text}


if __name__ == "__main__":
    main()
