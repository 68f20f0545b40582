"""A sampler that is an HTTP server: llama-server, on this machine or elsewhere.

A branch is one streamed request with its whole path as token ids. Where it ends is decided here, token by token and by
the engine's own rules (`tree.PartialCompletion`); then the server is hung up on. What fails is asked again after a
while, twice as long each time; what fails too often has failed if the server still does other work, and ends the
sampling if not.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.recipe import Server
from genius_lite.records import Completion, Finish, seed_of
from genius_lite.sampler.completions import Completions, Failure, HiddenToken, SampledToken, connect, request
from genius_lite.sampler.interface import QueryFailedError
from genius_lite.sampler.messages import Sampling, Until
from genius_lite.sampler.sampling import Rows, uniform
from genius_lite.sampler.tree import Node, PartialCompletion
from genius_lite.text import brief

_LONGEST_WAIT = 60.0  # seconds between two tries
_JITTER = random.Random()  # its own: draws of nobody else depend on it
T = TypeVar("T")


@dataclass(eq=False)
class _Branch(PartialCompletion):
    """One try at a completion, and why it ended, once it has."""

    path: list[int] = field(kw_only=True)
    seed: int = field(kw_only=True)
    finish: Finish | None = None


@dataclass(eq=False)
class ServerSampler:
    """A `Sampler` that asks a server. Made by `open_server_sampler`, whose arguments these are."""

    completions: Completions
    vocabulary: Vocabulary
    sampling: Sampling
    cfg: Server
    probe: list[int]

    def __post_init__(self) -> None:
        self._gate = asyncio.Semaphore(self.cfg.in_flight)
        self._tasks: set[asyncio.Future[Node]] = set()

    def extend(self, node: Node, n: int, *, until: Until, limit: int) -> list[asyncio.Future[Node]]:
        """See `Sampler.extend`.

        Futures raise QueryFailedError if this branch fails again and again, UserError if the server refuses it or
        does not answer any more.
        """
        samples = [self._sample(node, until, limit, seed) for seed in node.seeds(until, n)]
        tasks: list[asyncio.Future[Node]] = [asyncio.create_task(sample) for sample in samples]
        for task in tasks:
            task.add_done_callback(self._end)
        self._tasks.update(tasks)
        return tasks

    def release(self, nodes: Iterable[Node]) -> None:
        """See `Sampler.release`; a server's cache is its own affair."""

    async def drain(self) -> None:
        """See `Sampler.drain`; a server does not say what it did."""

    async def retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return the result of an attempt that may fail `cfg.retries` times; the failure of the last one is raised."""
        tries = 0
        while True:
            try:
                async with self._gate:
                    return await attempt()
            except Failure as failure:
                if tries == self.cfg.retries:
                    raise
                wait = 2**tries * _JITTER.uniform(0.5, 1.5)
                await asyncio.sleep(min(max(wait, failure.wait), _LONGEST_WAIT))
                tries += 1

    async def choose_model(self) -> None:
        """Ask for the recipe's model from now on, or for the first that the server lists.

        Raises:
            UserError: the server cannot be reached, or refuses; or there is no such model, or its vocabulary has
                another size.
        """
        wanted, url, size = self.cfg.model, self.completions.url, self.vocabulary.size
        try:
            listed = await self.retried(self.completions.models)
        except Failure as failure:
            raise UserError(f"the server at {url} {failure}; is it running?") from None
        found = next((model for model in listed if wanted in (None, model.id)), None)
        if not found:
            named = ", ".join(brief(model.id) for model in listed[:5]) or "none"
            raise UserError(f"the server at {url} does not have the model {wanted or ''}; it has: {named}")
        theirs = found.meta.n_vocab if found.meta else None
        if theirs not in (None, size):
            raise UserError(
                f"the server at {url} holds another model: its vocabulary has {theirs} tokens, that of the run's model "
                f"{size}"
            )
        self.completions.model = found.id

    async def close(self) -> None:
        """Hang up on every branch that is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end(self, task: asyncio.Future[Node]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # where a search has failed nobody else asks for its other branches

    async def _sample(self, node: Node, until: Until, limit: int, seed: int) -> Node:
        path = node.path
        try:
            return node.child(await self.retried(lambda: self._attempt(_Branch(until, limit, path=path, seed=seed))))
        except Failure as failure:
            tries = f"{self.cfg.retries + 1} times" if self.cfg.retries else "at the first try"
            try:
                await self._attempt(_Branch("end", 1, path=self.probe, seed=0))
            except Failure:
                raise UserError(
                    f"the server at {self.completions.url} {failure}, {tries}; when it does its work, the same command "
                    "goes on from here"
                ) from None
            raise QueryFailedError(f"the server {failure}, {tries}") from None

    async def _attempt(self, branch: _Branch) -> Completion:
        def take(sampled: SampledToken) -> bool:
            branch.finish = branch.append(sampled.id, min(sampled.logprob, 0.0), self.vocabulary)
            return branch.finish is not None

        while branch.finish is None:
            position = len(branch.tokens)
            seed = seed_of(branch.seed, position) if position else branch.seed
            path, left = branch.path + branch.tokens, branch.limit - position
            body = request(path, seed, left, self.sampling, ends=branch.until != "limit")
            try:
                reason = await self.completions.stream(body, take)
            except HiddenToken:
                take(await self._hidden(branch))
                continue
            if branch.finish is None and reason == "length":
                raise UserError(
                    f"the server at {self.completions.url} stopped after {len(branch.path)} + {len(branch.tokens)} "
                    f"tokens, of {branch.limit} that may follow; start it with more context for each branch"
                )
            if branch.finish is None:
                raise Failure(f"ended a completion by itself ({reason})")
        return Completion(branch.tokens, branch.logprobs, branch.finish)

    @cached_property
    def _hidden_tokens(self) -> tuple[np.ndarray, int]:
        """Which of the V tokens a server may hide, shape (V,), and one that it shows; a large V takes 0.1 s."""
        pieces, ends = self.vocabulary.pieces, self.vocabulary.ends
        hidden_V = np.array([_is_unfinished(piece) for piece in pieces])
        return hidden_V, next(i for i, piece in enumerate(pieces) if piece.isalpha() and not ends[i])

    async def _hidden(self, branch: _Branch) -> SampledToken:
        """Draw a token from those that the server may have hidden.

        That it hid one is known, so only these are left; among them the draw is as it would have been.
        """
        hidden_V, plain = self._hidden_tokens
        logprobs_V = await self.completions.distribution(branch.path + branch.tokens, plain)
        at = uniform(branch.seed, len(branch.tokens))
        try:
            token = Rows(logprobs_V[None]).draw(0, at, self.sampling, among=hidden_V)
        except IndexError:
            raise Failure("hid a token that it cannot have sampled") from None
        return SampledToken(token, float(logprobs_V[token]))


def _is_unfinished(piece: bytes) -> bool:
    """Say whether a character of several bytes begins at the end of these and goes on beyond it."""
    return any(back < _length(piece[-back]) for back in range(1, min(3, len(piece)) + 1))


def _length(byte: int) -> int:
    """Return the bytes of the UTF-8 character that this one begins; 0 if it begins none of several."""
    return 0 if byte < 0xC0 or byte >= 0xF8 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


@asynccontextmanager
async def open_server_sampler(
    cfg: Server, vocabulary: Vocabulary, sampling: Sampling, probe: list[int]
) -> AsyncIterator[ServerSampler]:
    """Open the recipe's server as a sampler; hangs up on everything at the end of the block.

    Args:
        vocabulary: of the model that the server should hold.
        probe: a prompt; that the server goes on with it shows that it is well.

    Raises:
        UserError: the server cannot be reached, refuses the key, or has no such model.
    """
    async with connect(cfg.url, vocabulary.size, cfg.timeout) as completions:
        sampler = ServerSampler(completions, vocabulary, sampling, cfg, probe)
        await sampler.choose_model()
        try:
            yield sampler
        finally:
            await sampler.close()
