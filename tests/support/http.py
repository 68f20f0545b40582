"""A small HTTP server that streams completions as llama-server does, from a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

HIDDEN = "hidden"  # a token that is counted and not shown
CUT = "cut"  # the connection ends
Item = tuple[int, float] | bytes | float | str
"""A token with its log-probability, bytes as they are, seconds of silence, HIDDEN or CUT."""


@dataclass
class Status:
    """A reply that is none of 200."""

    code: int
    message: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeServer:
    """`answer(body, number)` says what the request of this number, from 0, is answered."""

    answer: Callable[[dict[str, Any], int], list[Item] | Status]
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "m", "meta": {"n_vocab": 260}}])
    finish: str = "length"
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    written: list[int] = field(default_factory=list)  # tokens that each request was sent
    busy: int = 0
    busiest: int = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[FakeServer]:
        tasks: set[asyncio.Task] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            tasks.add(task)
            try:
                await self._serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()
                tasks.discard(task)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
        self.keys.append(fields.get("authorization"))
        if head.startswith("GET /v1/models "):
            await self._whole(writer, Status(200, json.dumps({"data": self.models})))
            return
        assert head.startswith("POST /v1/completions ")
        body = json.loads(await reader.readexactly(int(fields["content-length"])))
        self.bodies.append(body)
        number = len(self.written)
        self.written.append(0)
        answer = self.answer(body, number)
        if isinstance(answer, Status):
            await self._whole(
                writer, Status(answer.code, json.dumps({"error": {"message": answer.message}}), answer.headers)
            )
            return
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await self._stream(writer, answer, number, body)
        finally:
            self.busy -= 1

    async def _whole(self, writer: asyncio.StreamWriter, said: Status) -> None:
        extra = "".join(f"{name}: {value}\r\n" for name, value in said.headers.items())
        body = said.message.encode()
        writer.write(
            f"HTTP/1.1 {said.code} X\r\ncontent-length: {len(body)}\r\n{extra}connection: close\r\n\r\n".encode()
        )
        writer.write(body)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, items: list[Item], number: int, body: dict[str, Any]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        sampled = 0
        for item in items:
            if item == CUT:
                writer.transport.abort()
                return
            if item == HIDDEN:
                sampled += 1
            elif isinstance(item, bytes):
                writer.write(item)
            elif isinstance(item, tuple):
                sampled += 1
                self.written[number] += 1
                writer.write(self._event(item, sampled, None))
            else:
                await asyncio.sleep(float(item))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(self._event(None, sampled, self.finish) + b"data: [DONE]\n\n")
        await writer.drain()

    def _event(self, token: tuple[int, float] | None, sampled: int, finish: str | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "text": "x" if token else "", "finish_reason": finish, "logprobs": None}
        if token:
            content = {"id": token[0], "token": "x", "bytes": [120], "logprob": token[1]}
            choice["logprobs"] = {"content": [content | {"top_logprobs": []}]}
        return f"data: {json.dumps({'choices': [choice], 'timings': {'predicted_n': sampled}})}\n\n".encode()
