"""The sampler's own process: `python -m genius_lite.sampler.worker`, frames in on stdin and out on stdout.

llama.cpp aborts the whole process when an assertion fails and does not always give memory back, so it does
not live with the run. The worker ends when its standard input does, thus with its parent.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

from genius_lite.sampler.engine import Engine
from genius_lite.sampler.llama import EngineError
from genius_lite.sampler.messages import (
    HEADER,
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

_PATIENCE = 0.003  # seconds


def main() -> None:
    """Serve requests until standard input ends."""
    # The C libraries print to descriptor 1 when they like: it becomes stderr, the frames get a copy.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, inbox), daemon=True).start()
    first = inbox.get()
    if not isinstance(first, Open):
        return
    try:
        engine = Engine(first.model, first.settings)
    except EngineError as e:
        _send(out, [Failed(str(e))])
        return
    _send(out, [Ready(engine.context, engine.vocabulary.size)])
    _serve(engine, inbox, out)


def _serve(engine: Engine, inbox: queue.SimpleQueue[Request | None], out: BinaryIO) -> None:
    stepped = False
    while True:
        for request in _arrivals(inbox, block=not engine.busy, patience=_PATIENCE if stepped else 0.0):
            if request is None:
                return
            if isinstance(request, Open):
                raise EngineError("a worker loads one model")
            engine.submit(request)
        replies = engine.tick()
        _send(out, replies if engine.busy else [*replies, engine.stats])
        stepped = any(isinstance(r, Extended) and r.completion.finish == "step" for r in replies)


def _arrivals(inbox: queue.SimpleQueue[Request | None], *, block: bool, patience: float) -> Iterator[Request | None]:
    """What has arrived; waits for the first if there is nothing else to do, or a moment if one is expected.

    A finished step is mostly answered at once by the request for its future, which then goes on in the step's
    own lane. That is worth a wait of far less than a tick.
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


def _read(stream: BinaryIO, inbox: queue.SimpleQueue[Request | None]) -> None:
    while len(header := stream.read(HEADER)) == HEADER:
        inbox.put(decode_request(stream.read(body_length(header))))
    inbox.put(None)


def _send(out: BinaryIO, replies: list[Reply]) -> None:
    if replies:
        out.write(b"".join(frame(r) for r in replies))
        out.flush()


if __name__ == "__main__":
    main()
