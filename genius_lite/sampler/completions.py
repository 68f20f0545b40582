"""Completions as llama-server serves them over HTTP: token ids in, token ids with log-probabilities out.

`/v1/completions`, streamed, takes a prompt of ids as it is, and gives an `id` and a `logprob` for each token: of the
softmax of the raw logits, whatever the temperature, unless `post_sampling_probs` is asked for. Its other samplers are
left out by name (`samplers`), whatever it was started with.

No token is shown at whose end a character of several bytes is unfinished; `timings.predicted_n` counts it all the same.
Such a gap raises HiddenToken, and `distribution` shows what may stand there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx2
import msgspec
import numpy as np

from genius_lite.errors import UserError
from genius_lite.sampler.messages import Sampling
from genius_lite.sampler.replies import Choice, Chunk, Failure, HiddenToken, Models, beginning, lines, message
from genius_lite.visible import brief

KEY = "GENIUS_LITE_SERVER_KEY"
"""The environment variable with the server's key: it stands nowhere else, and is written nowhere."""

_LATER = {408, 425, 429}  # and all from 500 on: the same request may succeed later
T = TypeVar("T")


def request(path: list[int], seed: int, limit: int, sampling: Sampling, *, ends: bool = True) -> dict[str, Any]:
    """Build the body of a request; with `ends` False it goes on after an end token.

    Its seed has 32 bits, of which the highest means any.
    """
    return {
        "prompt": path,
        "seed": seed % (2**31 - 1),
        "max_tokens": limit,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
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
    """The completions of one model of one server. Made by `connect`.

    Args:
        vocabulary: tokens; an id outside is an error.
        timeout: seconds without a token after which a request has failed.
    """

    def __init__(self, client: httpx2.AsyncClient, url: str, vocabulary: int, timeout: float, key: str):
        self.url, self.vocabulary, self.timeout = url, vocabulary, timeout
        self.model: str | None = None
        self._client, self._key = client, key

    async def choose(self, wanted: str | None) -> None:
        """Ask for this model from now on, or for the first that the server lists.

        Raises:
            Failure: as `stream`.
            UserError: as `stream`; or there is no such model, or its vocabulary has another size.
        """
        async with self._reply("GET", "models", None) as (reply, _):
            body = await beginning(reply)
        try:
            listed = msgspec.json.decode(body, type=Models).data
        except (msgspec.DecodeError, RecursionError):
            raise Failure("lists its models in a way that cannot be read") from None
        found = next((model for model in listed if wanted in (None, model.id)), None)
        if not found:
            named = ", ".join(brief(model.id) for model in listed[:5]) or "none"
            raise UserError(f"the server at {self.url} does not have the model {wanted or ''}; it has: {named}")
        size = found.meta.n_vocab if found.meta else None
        if size is not None and size != self.vocabulary:
            raise UserError(
                f"the server at {self.url} holds another model: its vocabulary has {size} tokens, that of the run's "
                f"model {self.vocabulary}"
            )
        self.model = found.id

    async def stream(self, body: dict[str, Any], take: Callable[[int, float], bool]) -> str:
        """Hand over each sampled token with its log-probability (nats) until `take` says that it was the last.

        Then the server is hung up on, at which it stops sampling.

        Returns:
            Why the server itself ended the completion; empty if it was `take` that did.

        Raises:
            Failure: of the server, of the way to it, or of what it says.
            HiddenToken: the token after those that were handed over is not shown.
            UserError: the server refuses the request, or does not say token ids.
        """
        taken = 0

        def use(chunk: Chunk, deadline: asyncio.Timeout) -> str | None:
            nonlocal taken
            for choice in chunk.choices[:1]:
                pairs = self._pairs(choice)
                if chunk.timings and chunk.timings.predicted_n > taken + len(pairs):
                    raise HiddenToken
                taken += len(pairs)
                if any(take(*pair) for pair in pairs):
                    return ""
                if pairs:  # nothing else counts as a sign of life: there may be only so many
                    deadline.reschedule(asyncio.get_running_loop().time() + self.timeout)
                return choice.finish_reason
            return None

        return await self._read(body, use)

    async def distribution(self, path: list[int], plain: int) -> np.ndarray:
        """Return log-probabilities (vocabulary,) of the token after `path`, nats.

        The server shows them beside the token that it samples: `plain`, one that it does show, is forced on it.

        Raises:
            Failure, UserError: as `stream`.
        """

        def use(chunk: Chunk, deadline: asyncio.Timeout) -> np.ndarray | None:
            for top in (top for choice in chunk.choices[:1] for one in choice.contents for top in one.top_logprobs):
                logprobs_V[self._token(top.id)] = min(top.logprob, 0.0)
            return logprobs_V if np.isfinite(logprobs_V).any() else None

        logprobs_V = np.full(self.vocabulary, -np.inf)
        body = request(path, 0, 1, Sampling(1.0)) | {"logprobs": self.vocabulary, "logit_bias": [[plain, 1e6]]}
        return await self._read(body, use)

    async def _read(self, body: dict[str, Any], use: Callable[[Chunk, asyncio.Timeout], T | None]) -> T:
        """Return the first thing that `use` makes of a part of the stream."""
        async with self._reply("POST", "completions", body) as (reply, deadline):
            async for line in lines(reply):
                data = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or data == b"[DONE]":
                    continue
                if (found := use(self._chunk(data), deadline)) is not None:
                    return found
        raise Failure("ended its reply in the middle")

    @asynccontextmanager
    async def _reply(
        self, method: str, what: str, body: dict[str, Any] | None
    ) -> AsyncIterator[tuple[httpx2.Response, asyncio.Timeout]]:
        """Give a reply that is no refusal, and its deadline; faults on the way become failures."""
        if body and self.model:
            body = {"model": self.model, **body}
        try:
            async with (
                asyncio.timeout(self.timeout) as deadline,
                self._client.stream(method, f"{self.url}/v1/{what}", json=body) as reply,
            ):
                if reply.status_code != 200:
                    await self._refuse(reply)
                yield reply, deadline
        except httpx2.HTTPError as e:
            raise Failure(f"cannot be reached ({self._quoted(str(e)) or type(e).__name__})") from None
        except TimeoutError:
            raise Failure(f"gave no token for {self.timeout:g} s") from None

    async def _refuse(self, reply: httpx2.Response) -> None:
        body, status = await beginning(reply), reply.status_code
        try:
            said = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            said = body.decode(errors="replace")
        reason = f"answered {status}: {self._quoted(message(said)) or reply.reason_phrase}"
        if status >= 500 or status in _LATER:
            wait = reply.headers.get("retry-after", "")
            raise Failure(reason, float(wait) if wait.isdecimal() and len(wait) < 6 else 0.0)
        hint = f"; its key is read from the environment variable {KEY}" if status in (401, 403) else ""
        raise UserError(f"the server at {self.url} {reason}{hint}")

    def _chunk(self, data: bytes) -> Chunk:
        try:
            chunk = msgspec.json.decode(data, type=Chunk)
        except (msgspec.DecodeError, RecursionError) as e:
            raise Failure(f"sent what cannot be read ({self._quoted(str(e))})") from None
        if chunk.error is not None:
            raise Failure(f"broke off: {self._quoted(message(chunk.error))}")
        return chunk

    def _pairs(self, choice: Choice) -> list[tuple[int, float]]:
        """Return token ids and log-probabilities."""
        if choice.text and not choice.contents:
            raise UserError(
                f"the server at {self.url} does not say the ids and log-probabilities of its tokens, as llama-server "
                "does without speculative decoding"
            )
        return [(self._token(one.id), min(one.logprob, 0.0)) for one in choice.contents]

    def _token(self, token: int) -> int:
        if not 0 <= token < self.vocabulary:
            raise Failure(f"sent token {token} of a vocabulary of {self.vocabulary}")
        return token

    def _quoted(self, foreign: str) -> str:
        """Make foreign text fit for a line; a server may repeat the key that it refuses."""
        return brief(foreign.replace(self._key, "***") if self._key else foreign, 200)


@asynccontextmanager
async def connect(url: str, vocabulary: int, timeout: float) -> AsyncIterator[Completions]:
    """Reach the server at `url`, with or without `/v1`; nothing is asked of it yet. Redirections are not followed.

    Raises:
        UserError: the key in the environment is none.
    """
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.replace(" ", "").isprintable()):
        raise UserError(f"the environment variable {KEY} holds characters that no key has")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Uncompressed: what is read is then as much as was sent. How many requests there are, the caller decides.
    headers["Accept-Encoding"] = "identity"
    async with httpx2.AsyncClient(headers=headers, timeout=None, limits=httpx2.Limits(max_connections=None)) as client:
        yield Completions(client, url.rstrip("/").removesuffix("/v1"), vocabulary, timeout, key)
