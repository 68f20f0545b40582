"""llama.cpp as an event loop: every step decodes one batch for all branches that are under way.

A job fills one slot. A `PrefillJob` decodes a path up to its last token; from the logits there it draws the first
token of each branch that grows from it, and every such branch goes on as a `Branch` in a slot of its own. So
a shared prefix is decoded once, and a finished branch's slot is filled again before the next decode.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import llama_cpp
import msgspec
import numpy as np

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.hardware import peak_memory
from genius_lite.records import Completion
from genius_lite.results.rounds import Stats
from genius_lite.sampler.cache import Slot, SlotCache
from genius_lite.sampler.llama import BATCH, Batch, EngineError, load
from genius_lite.sampler.messages import (
    CancelBelow,
    Drawn,
    EngineSettings,
    Extend,
    Extended,
    Release,
    Reply,
    Score,
    Scored,
)
from genius_lite.sampler.sampling import LogitsError, Rows, uniform
from genius_lite.sampler.tree import PartialCompletion

SCORE_ROWS = 64  # rows of logits kept at once while scoring: 40 MB at 152K tokens of vocabulary


@dataclass(eq=False)
class PrefillJob:
    """A path on its way to its last token, and the branches (indices of `request.seeds`) that grow there."""

    request: Extend
    branches: list[int]
    cancel_below: float = -math.inf

    @property
    def path(self) -> list[int]:
        return self.request.path

    @property
    def reuse(self) -> int:
        """Tokens of the path that may come from cache: all but the last, whose logits are needed."""
        return len(self.request.path) - 1


@dataclass(eq=False)
class Branch(PartialCompletion):
    """A completion in the making, of the `index`-th seed of its request."""

    request: Extend = field(kw_only=True)
    index: int = field(kw_only=True)


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

    Args:
        loading: called again and again while the model loads.

    Raises:
        EngineError: the model does not load, or the context does not fit.
    """

    def __init__(self, model_path: str, settings: EngineSettings, loading: Callable[[], None] = lambda: None):
        self.settings = settings
        self.model, self.ctx = load(model_path, settings, loading=loading)
        self.vocabulary = Vocabulary(self.model)
        recurrent = llama_cpp.llama_model_is_recurrent(self.model) or llama_cpp.llama_model_is_hybrid(self.model)
        memory = llama_cpp.llama_get_memory(self.ctx)
        self.cache = SlotCache(memory, settings.slots, settings.parked, truncates=not recurrent)
        # llama.cpp pads the context, and a unified cache would let one branch take everybody's cells.
        self.context = settings.context
        self.batch = Batch(self.ctx, self.vocabulary.size)
        self.threads = ThreadPoolExecutor(settings.threads)  # idle while llama.cpp's own compute
        self.queue: deque[PrefillJob | Scoring] = deque()
        self._totals = Stats()

    def submit(self, request: Extend | Score | CancelBelow | Release) -> None:
        """Take a request; its replies come from later decode steps.

        Raises:
            EngineError: the path does not fit the context.
        """
        if isinstance(request, Release):
            for path in request.paths:
                self.cache.release(path[:-1])
            return
        if isinstance(request, CancelBelow):
            for job in (*self.queue, *(slot.job for slot in self.cache.busy)):
                if isinstance(job, (PrefillJob, Branch)) and job.request.id == request.id:
                    job.cancel_below = request.total
            return
        if isinstance(request, Score):
            job, needed = Scoring(request), len(request.prompt) + len(request.response) - 1
        else:
            job, needed = PrefillJob(request, list(range(len(request.seeds)))), len(request.path) + 1
        if needed > self.context:
            raise EngineError(f"{needed} tokens do not fit a context of {self.context}")
        self.queue.append(job)

    @property
    def busy(self) -> bool:
        """Whether a decode step would do anything."""
        return bool(self.queue or self.cache.busy)

    @property
    def stats(self) -> Stats:
        return msgspec.structs.replace(self._totals, peak=peak_memory())

    def decode_step(self) -> list[Reply]:
        """Admit what fits, decode one batch, draw from it; the completions that this finished."""
        start = time.perf_counter()
        replies: list[Reply] = []
        self._admit()
        self.cache.compact()
        rows = self._fill_batch()
        if rows:
            logits = self.batch.decode()
            decoded = time.perf_counter()
            seconds = decoded - self.batch.started
            self._totals.decode_s += seconds
            if all(isinstance(slot.job, Branch) for slot, _ in rows):
                self._totals.branch_steps.add(len(rows), seconds)
            self._draw(rows, logits, replies)
            self._totals.sampling_s += time.perf_counter() - decoded
            self._totals.decode_steps += 1
        self._totals.busy_s += time.perf_counter() - start
        return replies

    # -- before the decode ---------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give waiting jobs a slot; those whose cache is still there go first, so that it is not evicted.

        A path that another prefill is decoding is waited for and then copied, not decoded beside it: an evaluation asks
        for the greedy response and for sampled ones at once.
        """
        room = self.settings.slots - len(self.cache.busy)
        if not (self.queue and room):
            return
        held = self.cache.held()
        waiting = sorted(self.queue, key=lambda job: tuple(job.path[: job.reuse]) not in held)
        self.queue.clear()
        under_way = [slot.job.path for slot in self.cache.busy if isinstance(slot.job, PrefillJob)]
        for job in waiting:
            if not room or (self.cache.truncates and job.path in under_way):
                self.queue.append(job)
                continue
            self.cache.place(job.path, job.reuse, job)
            room -= 1
            if isinstance(job, PrefillJob):
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
                self._totals.prefilled += take
            slot.tokens += chunk
            del slot.pending[:take]
            rows.append((slot, wanted))
        return rows

    def _wanted_rows(self, slot: Slot, take: int) -> int:
        """Count how many of the chunk's last tokens need logits."""
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
                if isinstance(slot.job, PrefillJob):
                    self._start_branches(slot, slot.job, batch, at, replies)
                elif isinstance(slot.job, Branch):
                    self._append_token(slot, slot.job, batch, at, replies)
                else:
                    self._look_up(slot, slot.job, batch, at, count, replies)
            at += count

    def _start_branches(self, slot: Slot, prefill: PrefillJob, batch: Rows, row: int, replies: list[Reply]) -> None:
        """Draw the first token of the prefill's branches and give each its slot; those that find none wait."""
        *others, last = prefill.branches
        for n, index in enumerate(others):
            branch = self._branch(prefill, index)
            own = self.cache.fork(slot, branch)
            if own is None:
                self.queue.appendleft(PrefillJob(prefill.request, others[n:], prefill.cancel_below))
                break
            self._append_token(own, branch, batch, row, replies)
        slot.job = self._branch(prefill, last)
        self._append_token(slot, slot.job, batch, row, replies)

    def _branch(self, prefill: PrefillJob, index: int) -> Branch:
        request = prefill.request
        # The last token of a path is never decoded, so a path may fill the context to the brim.
        limit = min(request.limit, self.context - len(request.path))
        return Branch(request.until, limit, prefill.cancel_below, request=request, index=index)

    def _append_token(self, slot: Slot, branch: Branch, batch: Rows, row: int, replies: list[Reply]) -> None:
        """Draw the branch's next token, and reply if it is the last."""
        request = branch.request
        token = batch.draw(row, uniform(request.seeds[branch.index], len(branch.tokens)), request.sampling)
        self._totals.sampled += 1
        if request.streamed:
            replies.append(Drawn(request.id, branch.index, len(branch.tokens), token))
        finish = branch.append(token, batch.logprob(row, token), self.vocabulary)
        if finish is None:
            slot.pending = [token]
            return
        # A step, or what a conversation said, may be extended next; of anything else only what it grew from can be.
        keep = len(slot.tokens) if finish == "step" or request.streamed else len(request.path) - 1
        self.cache.free(slot, keep, released=finish != "step" and request.until == "step")
        replies.append(Extended(request.id, branch.index, Completion(branch.tokens, branch.logprobs, finish)))

    def _look_up(self, slot: Slot, job: Scoring, batch: Rows, at: int, count: int, replies: list[Reply]) -> None:
        response = job.request.response
        for row in range(at, at + count):
            job.logprobs.append(batch.logprob(row, response[len(job.logprobs)]))
        if len(job.logprobs) == len(response):
            self.cache.free(slot, len(job.request.prompt) - 1)
            replies.append(Scored(job.request.id, job.logprobs))


def _named(slot: Slot) -> str:
    """Name a slot's job as the log does."""
    job = slot.job
    assert job
    branch = f", branch {job.index}" if isinstance(job, Branch) else ""
    return f"{len(slot.tokens)} tokens of request {job.request.id}{branch}"
