"""A sampler that is an HTTP server: llama-server or vLLM, on this machine or elsewhere.

A branch is one streamed request with its whole path as token ids. Where a step ends is decided here, token by token and
by the same rules as in `engine.py`; then the server is hung up on. What fails is asked again after a while, twice as
long each time; what fails too often is set aside if the server still does other work, and ends the sampling if not.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from genius_lite.data.vocabulary import StepDelimiter, Vocabulary
from genius_lite.errors import UserError
from genius_lite.recipe import Server
from genius_lite.records import Completion, Finish, seed_of
from genius_lite.sampler.client import QueryFailedError
from genius_lite.sampler.completions import Completions, connect, request
from genius_lite.sampler.messages import Sampling, Until
from genius_lite.sampler.replies import Failure, HiddenToken
from genius_lite.sampler.sampling import Rows, uniform
from genius_lite.sampler.tree import Node

_LONGEST_WAIT = 60.0  # seconds between two tries
T = TypeVar("T")


@dataclass(eq=False)
class _Branch:
    """What is asked for; `cancel_below` is in nats, of all tokens together."""

    path: list[int]
    seed: int
    until: Until
    limit: int
    cancel_below: float = -math.inf


@dataclass(eq=False)
class _Growth:
    """A completion in the making, and why it ended, once it has."""

    branch: _Branch
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    has_text: bool = False
    finish: Finish | None = None


class ServerSampler:
    """A `Sampler` that asks a server. Made by `open_server_sampler`.

    Args:
        probe: a prompt; that the server goes on with it shows that it is well.
        pace: multiplies every wait between two tries.
    """

    def __init__(
        self,
        completions: Completions,
        vocabulary: Vocabulary,
        sampling: Sampling,
        cfg: Server,
        probe: list[int],
        pace: float,
    ):
        self.completions, self.sampling, self.cfg = completions, sampling, cfg
        self._pieces, self._ends = vocabulary.pieces, vocabulary.ends
        self._delimiter = StepDelimiter(self._pieces)
        self._probe = _Branch(probe, 0, "end", 1)
        self._pace, self._jitter = pace, random.Random()
        self._gate = asyncio.Semaphore(cfg.in_flight)
        self._branches: dict[asyncio.Future[Node], _Branch] = {}

    def extend(self, node: Node, n: int, *, until: Until, limit: int) -> list[asyncio.Future[Node]]:
        """See `Sampler.extend`.

        Futures raise QueryFailedError if this branch fails again and again, UserError if the server refuses it or does not
        answer any more.
        """
        return [self._start(node, _Branch(node.path, seed, until, limit)) for seed in node.seeds(until, n)]

    def release(self, nodes: Iterable[Node]) -> None:
        """See `Sampler.release`; a server's cache is its own affair."""

    def cancel_below(self, branch: asyncio.Future[Node], total: float) -> None:
        """See `Sampler.cancel_below`."""
        if branch in self._branches:
            self._branches[branch].cancel_below = total

    async def patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of an attempt that may fail `cfg.retries` times before the last.

        Raises:
            Failure: of the last one.
        """
        tries = 0
        while True:
            try:
                async with self._gate:
                    return await attempt()
            except Failure as failure:
                if tries == self.cfg.retries:
                    raise
                wait = 2**tries * self._jitter.uniform(0.5, 1.5)
                await asyncio.sleep(self._pace * min(max(wait, failure.wait), _LONGEST_WAIT))
                tries += 1

    async def close(self) -> None:
        """Hang up on every branch that is under way."""
        for task in self._branches:
            task.cancel()
        await asyncio.gather(*self._branches, return_exceptions=True)

    # -- one branch ----------------------------------------------------------------------------------------

    def _start(self, node: Node, branch: _Branch) -> asyncio.Future[Node]:
        task = asyncio.create_task(self._sample(node, branch))
        self._branches[task] = branch
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Future[Node]) -> None:
        del self._branches[task]
        if not task.cancelled():
            task.exception()  # where a search has failed nobody else asks for its other branches

    async def _sample(self, node: Node, branch: _Branch) -> Node:
        try:
            return node.child(await self.patiently(lambda: self._attempt(branch)))
        except Failure as failure:
            tries = f"{self.cfg.retries + 1} times" if self.cfg.retries else "at the first try"
            try:
                await self._attempt(self._probe)
            except Failure:
                raise UserError(
                    f"the server at {self.completions.url} {failure}, {tries}; when it does its work, the same command "
                    "goes on from here"
                ) from None
            raise QueryFailedError(f"the server {failure}, {tries}") from None

    async def _attempt(self, branch: _Branch) -> Completion:
        growth = _Growth(branch)
        while growth.finish is None:
            path, position = branch.path + growth.tokens, len(growth.tokens)
            seed = seed_of(branch.seed, position) if position else branch.seed
            body = request(path, seed, branch.limit - position, self.sampling, ends=branch.until != "limit")
            try:
                reason = await self.completions.stream(body, lambda *pair: self._take(growth, *pair))
            except HiddenToken:
                self._take(growth, *await self._hidden(branch, growth))
            else:
                self._check_end(growth, reason)
        return Completion(growth.tokens, growth.logprobs, growth.finish)

    def _take(self, growth: _Growth, token: int, logprob: float) -> bool:
        """The completion's next token; says whether it is the last."""
        growth.tokens.append(token)
        growth.logprobs.append(round(logprob, 6))
        growth.finish = self._finish(growth, token)
        growth.has_text |= bool(self._delimiter.has_text[token])
        return growth.finish is not None

    def _finish(self, growth: _Growth, token: int) -> Finish | None:
        branch = growth.branch
        if self._ends[token] and branch.until != "limit":
            return "end"
        if len(growth.tokens) >= branch.limit:
            return "length"
        if branch.until == "step" and self._delimiter.ends_step(token, growth.has_text):
            return "step"
        if branch.cancel_below > -math.inf and sum(growth.logprobs) < branch.cancel_below:
            return "dropped"
        return None

    def _check_end(self, growth: _Growth, reason: str) -> None:
        """What a server that ended a completion by itself is told."""
        if growth.finish is None and reason == "length":
            raise UserError(
                f"the server at {self.completions.url} stopped after {len(growth.branch.path)} + {len(growth.tokens)} "
                f"tokens, of {growth.branch.limit} that may follow; start it with more context for each branch"
            )
        if growth.finish is None:
            raise Failure(f"ended a completion by itself ({reason})")

    # -- what llama-server hides ---------------------------------------------------------------------------

    async def _hidden(self, branch: _Branch, growth: _Growth) -> tuple[int, float]:
        """A token drawn from those that the server may have hidden, and its log-probability.

        That it hid one is known, so only these are left; among them the draw is as it would have been.
        """
        hidden_V = np.array([_is_unfinished(piece) for piece in self._pieces])
        plain = next(i for i, piece in enumerate(self._pieces) if piece.isalpha() and not self._ends[i])
        logprobs_V = await self.completions.distribution(branch.path + growth.tokens, plain)
        at = uniform(branch.seed, len(growth.tokens))
        try:
            token = Rows(logprobs_V[None]).draw(0, at, self.sampling, among=hidden_V)
        except IndexError:
            raise Failure("hid a token that it cannot have sampled") from None
        return token, float(logprobs_V[token])


def _is_unfinished(piece: bytes) -> bool:
    """Whether a character of several bytes begins at the end of these and goes on beyond it."""
    return any(back < _length(piece[-back]) for back in range(1, min(3, len(piece)) + 1))


def _length(byte: int) -> int:
    """Bytes of the UTF-8 character that this one begins; 0 if it begins none of several."""
    return 0 if byte < 0xC0 or byte >= 0xF8 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


@asynccontextmanager
async def open_server_sampler(
    cfg: Server, vocabulary: Vocabulary, sampling: Sampling, probe: list[int], *, pace: float = 1.0
) -> AsyncIterator[ServerSampler]:
    """The recipe's server as a sampler; hangs up on everything at the end of the block.

    Args:
        vocabulary: of the model that the server should hold.
        probe: a prompt, for seeing whether the server is well.
        pace: multiplies every wait between two tries.

    Raises:
        UserError: the server cannot be reached, refuses the key, or has no such model.
    """
    async with connect(cfg.url, vocabulary.size, cfg.timeout) as completions:
        sampler = ServerSampler(completions, vocabulary, sampling, cfg, probe, pace)
        try:
            await sampler.patiently(lambda: completions.choose(cfg.model))
        except Failure as failure:
            raise UserError(f"the server at {completions.url} {failure}; is it running?") from None
        try:
            yield sampler
        finally:
            await sampler.close()
