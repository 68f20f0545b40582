"""What a server of completions replies, read with care: it comes from elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx2
import msgspec

_LONGEST_LINE = 64_000_000  # bytes; a whole distribution over 152K tokens is 17 MB
_LONGEST_REPLY = 1_000_000  # bytes of what is no stream


class Failure(Exception):
    """The server did not do what it was asked, and may if it is asked again. The message goes on from "the server".

    `wait` is what it asked to wait, seconds.
    """

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class HiddenToken(Exception):
    """The next token was sampled, but is not shown."""


class Top(msgspec.Struct):
    """A token that the server shows."""

    id: Annotated[int, msgspec.Meta(ge=0)]
    logprob: Annotated[float, msgspec.Meta(le=1e-3)]  # nats; rounding may lift it above 0


class Content(Top):
    """A token that it sampled, and others beside it."""

    top_logprobs: list[Top] = []


class Logprobs(msgspec.Struct):
    content: list[Content] | None = None


class Choice(msgspec.Struct):
    """What is new of a completion; `finish_reason` says that it is over, and why."""

    text: str = ""
    logprobs: Logprobs | None = None
    finish_reason: str | None = None

    @property
    def contents(self) -> list[Content]:
        """Its tokens."""
        return (self.logprobs.content if self.logprobs else None) or []


class Timings(msgspec.Struct):
    """`predicted_n` counts the tokens so far, shown or not."""

    predicted_n: int = 0


class Chunk(msgspec.Struct):
    """A part of the stream."""

    choices: list[Choice] = []
    timings: Timings | None = None
    error: Any = None


class Meta(msgspec.Struct):
    n_vocab: int | None = None


class Model(msgspec.Struct):
    """A model that a server offers."""

    id: str
    meta: Meta | None = None


class Models(msgspec.Struct):
    data: list[Model] = []


def message(said: Any) -> str:
    """Find the reason in what a server says, in the ways that are usual."""
    while isinstance(said, dict):
        said = said.get("error") or said.get("message") or said.get("detail") or ""
    return said if isinstance(said, str) else msgspec.json.encode(said).decode()


async def lines(reply: httpx2.Response) -> AsyncIterator[bytes]:
    """Read the lines of a reply as they arrive."""
    rest = bytearray()
    async for arrived in reply.aiter_raw():
        rest += arrived
        if b"\n" in arrived:
            *whole, rest = rest.split(b"\n")
            for line in whole:
                yield bytes(line)
        if len(rest) > _LONGEST_LINE:
            raise Failure("sent a line without an end")


async def beginning(reply: httpx2.Response) -> bytes:
    """Read what is no stream, as far as it is of a sensible length."""
    body = b""
    async for arrived in reply.aiter_raw():
        body += arrived
        if len(body) > _LONGEST_REPLY:
            break
    return body[:_LONGEST_REPLY]
