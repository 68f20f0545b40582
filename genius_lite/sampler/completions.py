"""Completions as llama-server serves them over HTTP: token ids in, token ids with log-probabilities out.

`/v1/completions`, streamed, takes a prompt of ids as it is, and gives an `id` and a `logprob` for each token: of the
softmax of the raw logits, whatever the temperature, unless `post_sampling_probs` is asked for. Its other samplers are
left out by name (`samplers`), whatever it was started with.

No token is shown at whose end a character of several bytes is unfinished; `timings.predicted_n` counts it all the same.
Such a gap raises HiddenToken, and `distribution` shows what may stand there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import httpx2
import msgspec
import numpy as np

from genius_lite.errors import UserError
from genius_lite.records import prepared
from genius_lite.sampler.messages import Sampling
from genius_lite.sampler.server_key import KEY, key_for
from genius_lite.text import brief

_LATER = {408, 425, 429}  # and all from 500 on: the same request may succeed later
_LONGEST_LINE = 64_000_000  # bytes; a whole distribution over 152K tokens is 17 MB
_LONGEST_REPLY = 1_000_000  # bytes of what is no stream, or of a token
T = TypeVar("T")


class Failure(Exception):
    """The server did not do it, and may if asked again after `wait` seconds. The message goes on from "the server"."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class HiddenToken(Failure):
    """The next token was sampled, but is not shown."""


class Shown(msgspec.Struct):
    """A token that the server shows."""

    id: Annotated[int, msgspec.Meta(ge=0)]
    logprob: Annotated[float, msgspec.Meta(le=1e-3)]  # nats; rounding may lift it above 0


class SampledToken(Shown):
    """A token that it sampled, and others beside it."""

    top_logprobs: list[Shown] = []


class _Logprobs(msgspec.Struct):
    content: list[SampledToken] | None = None


class _Choice(msgspec.Struct):
    """What is new of a completion; `finish_reason` says that it is over, and why."""

    text: str = ""
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Timings(msgspec.Struct):
    """`predicted_n` counts the tokens so far, shown or not."""

    predicted_n: int = 0


class _Chunk(msgspec.Struct):
    """A part of the stream."""

    choices: list[_Choice] = []
    timings: _Timings | None = None
    error: Any = None


class _Meta(msgspec.Struct):
    n_vocab: int | None = None


class Model(msgspec.Struct):
    """A model that a server offers."""

    id: str
    meta: _Meta | None = None


class _Models(msgspec.Struct):
    data: list[Model] = []


def request(path: list[int], seed: int, limit: int, sampling: Sampling, *, ends: bool = True) -> dict[str, Any]:
    """Build the body of a request; with `ends` False it goes on after an end token.

    Its seed has 32 bits, of which the highest means any.
    """
    return {
        "prompt": path,
        "seed": seed % (2**31 - 1),
        "max_tokens": limit,
        **msgspec.structs.asdict(sampling),
        "ignore_eos": not ends,
        "stream": True,
        "logprobs": 1,
        "samplers": ["temperature", "top_k", "top_p", "min_p"],
        "mirostat": 0,
        "dynatemp_range": 0.0,
        "post_sampling_probs": False,
        "cache_prompt": True,
        "timings_per_token": True,
    }


class Completions:
    """The completions of one model of one server; made by `connect`. A token id outside of `vocabulary` is an error.

    A request has failed after `timeout` seconds without a token.
    """

    def __init__(self, client: httpx2.AsyncClient, url: str, vocabulary: int, timeout: float, key: str):
        self.url, self.vocabulary, self.timeout = url, vocabulary, timeout
        self.model = ""
        self._client, self._key = client, key

    async def models(self) -> list[Model]:
        """List what the server offers; raises as `stream` does."""
        async with self._reply("models") as (reply, _):
            return self._decoded(await _beginning(reply), _Models).data

    async def stream(self, body: dict[str, Any], take: Callable[[SampledToken], bool]) -> str:
        """Hand over each sampled token until `take` says that it was the last, which ends the sampling there too.

        Returns why the server itself ended the completion; empty if it was `take` that did.

        Raises:
            Failure: of the server, of the way to it, or of what it says.
            HiddenToken: the token after those that were handed over is not shown.
            UserError: the server refuses the request, or does not say token ids.
        """
        taken = 0
        async with self._reply("completions", {"model": self.model, **body}) as (reply, deadline):
            async for chunk in self._chunks(reply, _LONGEST_LINE if body["logprobs"] > 1 else _LONGEST_REPLY):
                if chunk.error is not None:
                    raise Failure(f"broke off: {self._quoted(_reason(chunk.error))}")
                if not chunk.choices:
                    continue
                choice = chunk.choices[0]
                tokens = self._tokens(choice)
                taken += len(tokens)
                if chunk.timings and chunk.timings.predicted_n > taken:
                    raise HiddenToken("does not show a token that it sampled")
                if any(take(token) for token in tokens):
                    return ""
                if tokens:  # nothing else counts as a sign of life: there may be only so many
                    deadline.reschedule(asyncio.get_running_loop().time() + self.timeout)
                if choice.finish_reason is not None:
                    return choice.finish_reason
        raise Failure("ended its reply in the middle")

    async def distribution(self, path: list[int], plain: int) -> np.ndarray:
        """Return log-probabilities (vocabulary,) of the token after `path`, nats.

        The server shows them beside the token that it samples: `plain`, one that it does show, is forced on it. Raises
        as `stream` does.
        """
        logprobs_V = np.full(self.vocabulary, -np.inf)

        def take(sampled: SampledToken) -> bool:
            for shown in sampled.top_logprobs:
                logprobs_V[shown.id] = min(shown.logprob, 0.0)
            return True

        body = request(path, 0, 1, Sampling(1.0)) | {"logprobs": self.vocabulary, "logit_bias": [[plain, 1e6]]}
        await self.stream(body, take)
        if not np.isfinite(logprobs_V).any():
            raise Failure("does not show what it samples from")
        return logprobs_V

    @asynccontextmanager
    async def _reply(
        self, what: str, body: dict[str, Any] | None = None
    ) -> AsyncIterator[tuple[httpx2.Response, asyncio.Timeout]]:
        """Give a reply that is no refusal, and its deadline; faults on the way become failures."""
        try:
            async with (
                asyncio.timeout(self.timeout) as deadline,
                self._client.stream("POST" if body else "GET", f"{self.url}/v1/{what}", json=body) as reply,
            ):
                if reply.status_code != 200:
                    await self._refuse(reply)
                yield reply, deadline
        except (httpx2.HTTPError, httpx2.InvalidURL) as e:
            raise Failure(f"cannot be reached ({self._quoted(str(e)) or type(e).__name__})") from None
        except TimeoutError:
            raise Failure(f"gave no token for {self.timeout:g} s") from None

    async def _refuse(self, reply: httpx2.Response) -> None:
        body, status = await _beginning(reply), reply.status_code
        try:
            said = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            said = body.decode(errors="replace")
        reason = f"answered {status}: {self._quoted(_reason(said)) or reply.reason_phrase}"
        if status >= 500 or status in _LATER:
            wait = reply.headers.get("retry-after", "")
            raise Failure(reason, float(wait) if wait.isdecimal() and len(wait) < 6 else 0.0)
        hint = f"; its key is read from the environment variable {KEY}" if status in (401, 403) else ""
        raise UserError(f"the server at {self.url} {reason}{hint}")

    async def _chunks(self, reply: httpx2.Response, longest: int) -> AsyncIterator[_Chunk]:
        """Read the parts of a stream (`data:` and JSON, a line each of so many bytes at most) as they arrive."""
        rest = bytearray()
        async for arrived in reply.aiter_raw():
            rest += arrived
            if b"\n" in arrived:
                *lines, rest = rest.split(b"\n")
                for line in lines:
                    data = line.removeprefix(b"data:").strip()
                    if line.startswith(b"data:") and data != b"[DONE]":
                        yield self._decoded(data, _Chunk)
            if len(rest) > longest:
                raise Failure("sent a line without an end")

    def _decoded(self, data: bytes | bytearray, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=prepared(kind))
        except (msgspec.DecodeError, RecursionError) as e:
            raise Failure(f"sent what cannot be read ({self._quoted(str(e))})") from None

    def _tokens(self, choice: _Choice) -> list[SampledToken]:
        """Return the tokens of a part, whose ids and those beside them are of the vocabulary."""
        tokens = (choice.logprobs.content if choice.logprobs else None) or []
        if choice.text and not tokens:
            raise UserError(
                f"the server at {self.url} does not say the ids and log-probabilities of its tokens, as llama-server "
                "does without speculative decoding"
            )
        for shown in (shown for token in tokens for shown in (token, *token.top_logprobs)):
            if shown.id >= self.vocabulary:
                raise Failure(f"sent token {shown.id} of a vocabulary of {self.vocabulary}")
        return tokens

    def _quoted(self, foreign: str) -> str:
        """Make foreign text fit for a line; a server may repeat the key that it refuses."""
        return brief(foreign.replace(self._key, "***") if self._key else foreign, 200)


@asynccontextmanager
async def connect(url: str, vocabulary: int, timeout: float) -> AsyncIterator[Completions]:
    """Reach the server at `url`, with or without `/v1`; nothing is asked of it yet.

    Redirections are not followed, and proxies of the environment are not asked: prompts and key are for the server.

    Raises:
        UserError: the key in the environment is none, or is for another server.
    """
    key = key_for(url)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Uncompressed: what is read is then as much as was sent. How many requests there are, the caller decides.
    headers["Accept-Encoding"] = "identity"
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(headers=headers, timeout=None, limits=limits, trust_env=False) as client:
        yield Completions(client, url.rstrip("/").removesuffix("/v1"), vocabulary, timeout, key)


def _reason(said: Any) -> str:
    """Find the reason in what a server says, in the ways that are usual."""
    while isinstance(said, dict):
        said = said.get("error") or said.get("message") or said.get("detail") or ""
    return said if isinstance(said, str) else msgspec.json.encode(said).decode()


async def _beginning(reply: httpx2.Response) -> bytes:
    """Read what is no stream, as far as it is of a sensible length."""
    body = b""
    async for arrived in reply.aiter_raw():
        body += arrived
        if len(body) > _LONGEST_REPLY:
            break
    return body[:_LONGEST_REPLY]
