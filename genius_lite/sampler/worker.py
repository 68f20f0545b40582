"""The sampler's own process: `python -m genius_lite.sampler.worker`, frames in on stdin and out on stdout.

llama.cpp aborts the whole process when an assertion fails and does not always give memory back, so it does
not live with the run. The worker ends when its standard input does, thus with its parent.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

from genius_lite.sampler.engine import Engine
from genius_lite.sampler.llama import EngineError
from genius_lite.sampler.messages import (
    HEADER,
    NOT_FINITE,
    Alive,
    Drain,
    Drained,
    Extended,
    Failed,
    Open,
    Ready,
    Reply,
    Request,
    body_length,
    decode_request,
    frame,
)
from genius_lite.sampler.sampling import LogitsError

Inbox = queue.SimpleQueue[Request | Exception | None]
"""What has arrived, why nothing more can, or None where standard input has ended."""

_PATIENCE = 0.003  # seconds
_SILENCE = 1.0  # seconds, after which a sign of life is due


def main() -> None:
    """Serve requests until standard input ends."""
    # The C libraries print to descriptor 1 when they like: it becomes stderr, the frames get a copy.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    inbox: Inbox = queue.SimpleQueue()
    # A copy of its descriptor: Python aborts if it ends while a thread still reads from `sys.stdin`.
    threading.Thread(target=_read, args=(os.fdopen(os.dup(0), "rb"), inbox), daemon=True).start()
    first = inbox.get()
    if isinstance(first, Exception):
        raise first
    if not isinstance(first, Open):
        return
    spoke = time.monotonic()

    def loading() -> None:
        nonlocal spoke
        if time.monotonic() - spoke > _SILENCE:
            _send(out, [Alive()])
            spoke = time.monotonic()

    try:
        engine = Engine(first.model, first.settings, loading)
    except EngineError as e:
        _send(out, [Failed(str(e))])
        return
    _send(out, [Ready()])
    try:
        _serve(engine, inbox, out)
    except LogitsError as e:
        print(e, file=sys.stderr, flush=True)
        raise SystemExit(NOT_FINITE) from None


def _serve(engine: Engine, inbox: Inbox, out: BinaryIO) -> None:
    stepped, spoke, drains = False, time.monotonic(), 0
    while True:
        for request in _arrivals(inbox, block=not engine.busy, patience=_PATIENCE if stepped else 0.0):
            if request is None:
                return
            if isinstance(request, Exception):
                raise request
            if isinstance(request, Open):
                raise EngineError("a worker loads one model")
            if isinstance(request, Drain):
                drains += 1
            else:
                engine.submit(request)
        replies = engine.decode_step()
        stepped = any(isinstance(r, Extended) and r.completion.finish == "step" for r in replies)
        if not engine.busy:
            replies += [Drained(engine.stats) for _ in range(drains)]
            drains = 0
        elif not replies and time.monotonic() - spoke > _SILENCE:
            replies.append(Alive())
        if replies:
            _send(out, replies)
            spoke = time.monotonic()


def _arrivals(inbox: Inbox, *, block: bool, patience: float) -> Iterator[Request | Exception | None]:
    """Yield what has arrived; wait for the first if nothing else is to be done, or a moment if one is expected.

    A finished step is mostly answered at once by the request for its future, which then goes on in the step's
    own slot. That is worth a wait of far less than a decode step.
    """
    try:
        if block:
            yield inbox.get()
        elif patience:
            yield inbox.get(timeout=patience)
        while True:
            yield inbox.get_nowait()
    except queue.Empty:
        return


def _read(stream: BinaryIO, inbox: Inbox) -> None:
    try:
        while len(header := stream.read(HEADER)) == HEADER:
            inbox.put(decode_request(stream.read(body_length(header))))
        inbox.put(None)
    except Exception as e:  # noqa: BLE001 (the main thread raises it; the process's end would cut it off here)
        inbox.put(e)


def _send(out: BinaryIO, replies: list[Reply]) -> None:
    out.write(b"".join(frame(r) for r in replies))
    out.flush()


if __name__ == "__main__":
    main()
