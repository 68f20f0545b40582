"""llama.cpp as an event loop: every tick decodes one batch for all branches that are under way.

A job fills one slot. A `Stem` decodes a path up to its last token; from the logits there it draws the first
token of each branch that grows from it, and every such branch goes on as a `Branch` in a slot of its own. So
a shared prefix is decoded once, and a finished branch's slot is filled again before the next decode.
"""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import llama_cpp
import numpy as np

from genius_lite.hardware import peak_memory
from genius_lite.prompts import StepDelimiter, Vocabulary
from genius_lite.records import Completion, Finish
from genius_lite.sampler.cache import Slot, SlotCache
from genius_lite.sampler.llama import BATCH, Batch, EngineError, load
from genius_lite.sampler.messages import (
    EngineSettings,
    Extend,
    Extended,
    GiveUp,
    Release,
    Reply,
    Score,
    Scored,
    Stats,
)
from genius_lite.sampler.sampling import LogitsError, Rows, uniform

SCORE_ROWS = 64  # rows of logits kept at once while scoring: 40 MB at 152K tokens of vocabulary


@dataclass(eq=False)
class Stem:
    """A path on its way to its last token, and the branches (indices of `request.seeds`) that grow there."""

    request: Extend
    branches: list[int]
    give_up_below: float = -math.inf

    @property
    def path(self) -> list[int]:
        return self.request.path

    @property
    def reuse(self) -> int:
        """Tokens of the path that may come from cache: all but the last, whose logits are needed."""
        return len(self.request.path) - 1


@dataclass(eq=False)
class Branch:
    """A completion in the making."""

    request: Extend
    index: int
    give_up_below: float = -math.inf  # nats, of all tokens together
    has_text: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Scoring:
    """A response whose tokens are looked up instead of drawn."""

    request: Score
    logprobs: list[float] = field(default_factory=list)

    @property
    def path(self) -> list[int]:
        """All but the last token: of that one only the logits before it are needed."""
        return self.request.prompt + self.request.response[:-1]

    @property
    def reuse(self) -> int:
        return len(self.request.prompt) - 1


class Engine:
    """A llama.cpp context and the requests in it.

    Raises:
        EngineError: the model does not load, or the context does not fit.
    """

    def __init__(self, model_path: str, settings: EngineSettings):
        self.settings = settings
        self.model, self.ctx = load(model_path, settings)
        self.vocabulary = Vocabulary(self.model)
        self.delimiter = StepDelimiter(self.vocabulary.pieces)
        self.ends = self.vocabulary.ends
        recurrent = llama_cpp.llama_model_is_recurrent(self.model) or llama_cpp.llama_model_is_hybrid(self.model)
        memory = llama_cpp.llama_get_memory(self.ctx)
        self.cache = SlotCache(memory, settings.slots, settings.parked, truncates=not recurrent)
        # llama.cpp pads the context, and a unified cache would let one branch take everybody's cells.
        self.context = settings.context
        self.batch = Batch(self.ctx, self.vocabulary.size)
        self.threads = ThreadPoolExecutor(settings.threads)  # idle while llama.cpp's own compute
        self.queue: deque[Stem | Scoring] = deque()
        self.sampled = self.prefilled = self.ticks = 0
        self.decode_s = self.sampling_s = self.busy_s = 0.0

    def submit(self, request: Extend | Score | GiveUp | Release) -> None:
        """Take a request; its replies come from later ticks.

        Raises:
            EngineError: the path does not fit the context.
        """
        if isinstance(request, Release):
            for path in request.paths:
                self.cache.release(path[:-1])
            return
        if isinstance(request, GiveUp):
            for job in (*self.queue, *(slot.job for slot in self.cache.busy)):
                if isinstance(job, (Stem, Branch)) and job.request.id == request.id:
                    job.give_up_below = request.total
            return
        if isinstance(request, Score):
            job, needed = Scoring(request), len(request.prompt) + len(request.response) - 1
        else:
            job, needed = Stem(request, list(range(len(request.seeds)))), len(request.path) + 1
        if needed > self.context:
            raise EngineError(f"{needed} tokens do not fit a context of {self.context}")
        self.queue.append(job)

    @property
    def busy(self) -> bool:
        """Whether a tick would do anything."""
        return bool(self.queue or self.cache.busy)

    @property
    def stats(self) -> Stats:
        return Stats(
            self.sampled,
            self.prefilled,
            self.ticks,
            self.decode_s,
            self.sampling_s,
            self.busy_s,
            peak_memory(),
        )

    def tick(self) -> list[Reply]:
        """Admit what fits, decode one batch, draw from it; the completions that this finished."""
        start = time.perf_counter()
        replies: list[Reply] = []
        self._admit()
        self.cache.compact()
        rows = self._fill_batch()
        if rows:
            logits = self.batch.decode()
            decoded = time.perf_counter()
            self.decode_s += decoded - self.batch.started
            self._draw(rows, logits, replies)
            self.sampling_s += time.perf_counter() - decoded
            self.ticks += 1
        self.busy_s += time.perf_counter() - start
        return replies

    # -- before the decode ---------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give waiting jobs a slot; those whose cache is still there go first, so that it is not evicted.

        A path that another stem is decoding is waited for and then copied, not decoded beside it: an evaluation asks
        for the greedy response and for sampled ones at once.
        """
        if not self.queue:
            return
        waiting = sorted(self.queue, key=lambda job: not self.cache.holds(job.path[: job.reuse]))
        self.queue.clear()
        under_way = [slot.job.path for slot in self.cache.busy if isinstance(slot.job, Stem)]
        for job in waiting:
            waits = self.cache.truncates and job.path in under_way
            if waits or self.cache.place(job.path, job.reuse, job) is None:
                self.queue.append(job)
            elif isinstance(job, Stem):
                under_way.append(job.path)

    def _fill_batch(self) -> list[tuple[Slot, int]]:
        """Put pending tokens into the batch: one of each branch, and chunks of longer prefills beside them.

        Returns the slots in batch order, each with the number of logits rows that it asked for.
        """
        busy = self.cache.busy
        spare = min(self.settings.prefill_chunk, BATCH - len(busy))
        rows = []
        self.batch.clear()
        for slot in busy:
            take = min(len(slot.pending), 1 + spare)
            if isinstance(slot.job, Scoring):
                take = min(take, SCORE_ROWS)
            spare -= take - 1
            chunk = slot.pending[:take]
            wanted = self._wanted_rows(slot, take)
            self.batch.add(slot.index, chunk, len(slot.tokens), wanted)
            if not isinstance(slot.job, Branch):
                self.prefilled += take
            slot.tokens += chunk
            del slot.pending[:take]
            rows.append((slot, wanted))
        return rows

    def _wanted_rows(self, slot: Slot, take: int) -> int:
        """How many of the chunk's last tokens need logits."""
        if isinstance(slot.job, Scoring):
            first = len(slot.job.request.prompt) - 1
            return max(0, len(slot.tokens) + take - max(first, len(slot.tokens)))
        return int(take == len(slot.pending))

    # -- after the decode ----------------------------------------------------------------------------------

    def _draw(self, rows: list[tuple[Slot, int]], logits_RV: np.ndarray, replies: list[Reply]) -> None:
        try:
            batch = Rows(logits_RV, self.threads, self.settings.threads) if len(logits_RV) else None
        except LogitsError as e:
            owners = [slot for slot, count in rows for _ in range(count)]
            raise LogitsError(e.row, f" after {_named(owners[e.row])}") from None
        at = 0
        for slot, count in rows:
            if count and batch:
                if isinstance(slot.job, Stem):
                    self._sprout(slot, slot.job, batch, at, replies)
                elif isinstance(slot.job, Branch):
                    self._grow(slot, slot.job, batch, at, replies)
                else:
                    self._look_up(slot, slot.job, batch, at, count, replies)
            at += count

    def _sprout(self, slot: Slot, stem: Stem, batch: Rows, row: int, replies: list[Reply]) -> None:
        """Draw the first token of the stem's branches and give each its slot; those that find none wait."""
        *others, last = stem.branches
        for n, index in enumerate(others):
            branch = Branch(stem.request, index, stem.give_up_below)
            own = self.cache.fork(slot, branch)
            if own is None:
                self.queue.appendleft(Stem(stem.request, others[n:], stem.give_up_below))
                break
            self._grow(own, branch, batch, row, replies)
        slot.job = Branch(stem.request, last, stem.give_up_below)
        self._grow(slot, slot.job, batch, row, replies)

    def _grow(self, slot: Slot, branch: Branch, batch: Rows, row: int, replies: list[Reply]) -> None:
        """Draw the branch's next token, and reply if it is the last."""
        request = branch.request
        token = batch.draw(row, uniform(request.seeds[branch.index], len(branch.tokens)), request.sampling)
        branch.tokens.append(token)
        branch.logprobs.append(round(batch.logprob(row, token), 6))
        self.sampled += 1
        finish = self._finish(branch, token)
        branch.has_text |= bool(self.delimiter.has_text[token])
        if finish is None:
            slot.pending = [token]
            return
        # A step is what may be extended next; of anything else only what it grew from can be.
        keep = len(slot.tokens) if finish == "step" else len(request.path) - 1
        self.cache.vacate(slot, keep, released=finish != "step" and request.until == "step")
        replies.append(Extended(request.id, branch.index, Completion(branch.tokens, branch.logprobs, finish)))

    def _finish(self, branch: Branch, token: int) -> Finish | None:
        request = branch.request
        if self.ends[token] and request.until != "limit":
            return "end"
        # The last token of a path is never decoded, so a path may fill the context to the brim.
        if len(branch.tokens) >= request.limit or len(request.path) + len(branch.tokens) >= self.context:
            return "length"
        if request.until == "step" and self.delimiter.ends_step(token, branch.has_text):
            return "step"
        # A sum over a hundred tokens or so: only asked of branches that somebody would give up.
        if branch.give_up_below > -math.inf and sum(branch.logprobs) < branch.give_up_below:
            return "dropped"
        return None

    def _look_up(self, slot: Slot, job: Scoring, batch: Rows, at: int, count: int, replies: list[Reply]) -> None:
        response = job.request.response
        for row in range(at, at + count):
            job.logprobs.append(batch.logprob(row, response[len(job.logprobs)]))
        if len(job.logprobs) == len(response):
            self.cache.vacate(slot, len(job.request.prompt) - 1)
            replies.append(Scored(job.request.id, job.logprobs))


def _named(slot: Slot) -> str:
    """A slot's job as the log names it."""
    job = slot.job
    assert job
    branch = f", branch {job.index}" if isinstance(job, Branch) else ""
    return f"{len(slot.tokens)} tokens of request {job.request.id}{branch}"
