"""The sampler's worker seen from outside: started, spoken to, and stopped."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from genius_lite.data.sandbox import environment, fate, helper
from genius_lite.errors import UserError
from genius_lite.hardware.system import SHORT_SPIN
from genius_lite.sampler.interface import SamplerError
from genius_lite.sampler.messages import (
    HEADER,
    NOT_FINITE,
    Alive,
    EngineSettings,
    Failed,
    Open,
    Reply,
    Request,
    body_length,
    decode_reply,
    frame,
)

_BEAT = 1.0  # seconds; the worker shows a sign of life at least so often between two decodes
_DYING = 10.0  # seconds for a process that was killed to be gone
_LARGEST_LOG = 4_000_000  # bytes; then it becomes NAME.1, in place of an older one


class Worker:
    """A running worker process; made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process):
        self.process = process

    @classmethod
    async def start(cls, model: Path, settings: EngineSettings, log: Path) -> Worker:
        """Start a worker and load this GGUF. What llama.cpp prints is added to the file `log`.

        Raises:
            UserError: the model does not load with these settings.
            SamplerError: the process ended while it loaded the model, or gave no sign of life.
        """
        if log.exists() and log.stat().st_size > _LARGEST_LOG:
            log.replace(log.with_name(f"{log.name}.1"))
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                *helper("genius_lite.sampler.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=SHORT_SPIN | environment(),
                start_new_session=os.name == "posix",  # Ctrl-C is for the run, which then closes the worker
            )
        worker = cls(process)
        try:
            worker.send(Open(str(model), settings))
            while isinstance(reply := await worker.reply_within(settings.watchdog), Alive):
                pass
            if isinstance(reply, Failed):
                raise UserError(f"{reply.reason} (llama.cpp's own words are in {log})")
        except BaseException as e:
            await worker.stop()
            if isinstance(e, SamplerError):
                raise SamplerError(f"{e} while it loaded; see {log}") from None
            raise
        return worker

    def send(self, request: Request) -> None:
        """Hand over a request. To a process that has ended it is lost; whoever reads its replies learns of that."""
        assert self.process.stdin
        if not self.process.stdin.is_closing():
            self.process.stdin.write(frame(request))

    async def _read(self) -> Reply:
        assert self.process.stdout
        header = await self.process.stdout.readexactly(HEADER)
        return decode_reply(await self.process.stdout.readexactly(body_length(header)))

    async def reply_within(self, patience: float, owes: Callable[[], bool] = lambda: True) -> Reply:
        """Wait for the next reply.

        Beats are counted, not the clock read: if this process was suspended, the worker is not to blame.

        Raises:
            SamplerError: the process has ended, or said nothing for `patience` seconds in which it owed a reply.
        """
        reading, silent = asyncio.ensure_future(self._read()), 0.0
        try:
            while silent < patience:
                done, _ = await asyncio.wait({reading}, timeout=_BEAT)
                if done:
                    return reading.result()
                silent += _BEAT if owes() else 0.0
            raise SamplerError(f"the sampler's process showed no sign of life for {patience:.0f} s")
        except asyncio.IncompleteReadError:
            raise SamplerError(f"the sampler's process {await self._exit_reason()}") from None
        finally:
            reading.cancel()

    async def _exit_reason(self) -> str:
        try:
            status = await asyncio.wait_for(self.process.wait(), _DYING)
        except TimeoutError:
            return "closed its output, and did not end"
        if status == NOT_FINITE:
            return "met logits that are not finite"
        killer = fate(status)
        return f"was killed by {killer}" if killer else f"ended with exit status {status}"

    async def stop(self) -> None:
        """Kill it rather than ask: it has nothing to save, and a decode under way may take a while."""
        if self.process.returncode is None:
            self.process.kill()
        # One that waits for a disk or a driver may not die before that answers; nothing waits for it any more.
        with suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), _DYING)
        # Without this the transport closes itself after the event loop has ended, and complains.
        self.process._transport.close()  # pyright: ignore[reportAttributeAccessIssue]
