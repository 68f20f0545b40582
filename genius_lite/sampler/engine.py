"""llama.cpp as an event loop: every step decodes one batch for all branches that are under way.

A job fills one slot. A `PrefillJob` decodes a path up to its last token; from the logits there it draws the first
token of each branch that grows from it, and every such branch goes on as a `Branch` in a slot of its own. So
a shared prefix is decoded once, and a finished branch's slot is filled again before the next decode.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import llama_cpp
import msgspec

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.hardware.system import peak_memory
from genius_lite.records import Completion
from genius_lite.results.rounds import Stats
from genius_lite.sampler.cache import Slot, SlotCache
from genius_lite.sampler.device import DeviceError, OnDevice
from genius_lite.sampler.llama import BATCH, Batch, EngineError, load
from genius_lite.sampler.messages import Drawn, EngineSettings, Extend, Extended, Release, Reply, Score, Scored
from genius_lite.sampler.sampling import Draw, LogitsError, OnHost, RowRequest, uniform
from genius_lite.sampler.tree import PartialCompletion

SCORE_ROWS = 64  # rows of logits kept at once while scoring: 40 MB at 152K tokens of vocabulary


@dataclass(eq=False)
class PrefillJob:
    """A path on its way to its last token, and the branches (indices of `request.seeds`) that grow there."""

    request: Extend
    branches: list[int]

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
    """A llama.cpp context and the requests in it; `loading` is called again and again while the model loads.

    Raises:
        EngineError: the model does not load, or the context does not fit.
    """

    def __init__(self, model_path: str, settings: EngineSettings, loading: Callable[[], None] = lambda: None):
        self.settings = settings
        self.model, self.ctx = load(model_path, settings, loading=loading)
        self.vocabulary = Vocabulary(self.model)
        recurrent = llama_cpp.llama_model_is_recurrent(self.model) or llama_cpp.llama_model_is_hybrid(self.model)
        memory, truncates = llama_cpp.llama_get_memory(self.ctx), not recurrent
        self.cache = SlotCache(memory, settings.slots, settings.parked, truncates)
        # llama.cpp pads the context, and a unified cache would let one branch take everybody's cells.
        self.context = settings.context
        self.batch = Batch(self.ctx, self.vocabulary.size)
        try:
            drawing = OnDevice(self.ctx, settings.slots, self.vocabulary.size) if settings.draw == "device" else None
            self.drawing = drawing or self._on_host()
        except DeviceError as e:
            self.drawing = self._on_host(e)
        self.queue: deque[PrefillJob | Scoring] = deque()
        self._totals = Stats()

    def _on_host(self, why: DeviceError | None = None) -> OnHost:
        if why:
            print(f"tokens are drawn on the host: {why}", file=sys.stderr)
        threads = ThreadPoolExecutor(self.settings.threads)  # idle while llama.cpp's own compute
        return OnHost(self.batch.logits, threads, self.settings.threads)

    def submit(self, request: Extend | Score | Release) -> None:
        """Take a request; its replies come from later decode steps.

        Raises:
            EngineError: the path does not fit the context.
        """
        if isinstance(request, Release):
            for path in request.paths:
                self.cache.release(path[:-1])
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
            asked = [row for _, rows_of_slot in rows for row in rows_of_slot]
            try:
                self.drawing.ask(asked)
            except DeviceError as e:  # a filter sorts, which the device may lack
                self.drawing = self._on_host(e)
            self.batch.decode()
            decoded = time.perf_counter()
            seconds = decoded - self.batch.started
            self._totals.decode_s += seconds
            if all(isinstance(slot.job, Branch) for slot, _ in rows):
                self._totals.branch_steps.add(len(rows), seconds)
            if asked:
                self._draw(rows, asked, replies)
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

    def _fill_batch(self) -> list[tuple[Slot, list[RowRequest]]]:
        """Put pending tokens into the batch: one of each branch, and chunks of longer prefills beside them.

        Returns the slots in batch order, each with what it asks of the logits of its last tokens.
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
            asked = self._ask(slot, take)
            self.batch.add(slot.index, chunk, len(slot.tokens), len(asked))
            if not isinstance(slot.job, Branch):
                self._totals.prefilled += take
            slot.tokens += chunk
            del slot.pending[:take]
            rows.append((slot, asked))
        return rows

    def _ask(self, slot: Slot, take: int) -> list[RowRequest]:
        """Say what is asked of the logits of the chunk's last tokens."""
        job = slot.job
        if isinstance(job, Scoring):
            first = len(job.request.prompt) - 1
            known, rows = len(job.logprobs), max(0, len(slot.tokens) + take - max(first, len(slot.tokens)))
            return [RowRequest(slot.index, given=token) for token in job.request.response[known : known + rows]]
        if take < len(slot.pending):
            return []
        request = job.request
        if isinstance(job, Branch):
            return [RowRequest(slot.index, request.sampling, [uniform(request.seeds[job.index], len(job.tokens))])]
        starting = job.branches[: min(1 + self.settings.slots - len(self.cache.busy), self.drawing.most)]
        return [RowRequest(slot.index, request.sampling, [uniform(request.seeds[index], 0) for index in starting])]

    # -- after the decode ----------------------------------------------------------------------------------

    def _draw(self, rows: list[tuple[Slot, list[RowRequest]]], asked: list[RowRequest], replies: list[Reply]) -> None:
        try:
            drawn = iter(self.drawing.read(asked))
        except LogitsError as e:
            slot = self.cache.slots[asked[e.row].sequence]
            branch = f", branch {slot.job.index}" if isinstance(slot.job, Branch) else ""
            whose = f" after {len(slot.tokens)} tokens of request {slot.job.request.id}{branch}"
            raise LogitsError(e.row, whose) from None
        for slot, asked_of in rows:
            found, job = [token for _ in asked_of for token in next(drawn)], slot.job
            if found and isinstance(job, PrefillJob):
                self._start_branches(slot, job, found, replies)
            elif found and isinstance(job, Branch):
                self._append_token(slot, job, found[0], replies)
            elif found:
                job.logprobs += [logprob for _, logprob in found]
                if len(job.logprobs) == len(job.request.response):
                    self.cache.free(slot, len(job.request.prompt) - 1)
                    replies.append(Scored(job.request.id, job.logprobs))

    def _start_branches(self, slot: Slot, prefill: PrefillJob, drawn: list[Draw], replies: list[Reply]) -> None:
        """Give each of the prefill's branches its slot and first token; those that find none wait."""
        started, waiting = prefill.branches[: len(drawn)], prefill.branches[len(drawn) :]
        for index, token in zip(started[:-1], drawn, strict=False):
            branch = self._branch(prefill, index)
            if own := self.cache.fork(slot, branch):
                self._append_token(own, branch, token, replies)
            else:
                waiting.append(index)  # another prefill of this decode took the slot
        if waiting:
            self.queue.appendleft(PrefillJob(prefill.request, waiting))
        slot.job = self._branch(prefill, started[-1])
        self._append_token(slot, slot.job, drawn[-1], replies)

    def _branch(self, prefill: PrefillJob, index: int) -> Branch:
        request = prefill.request
        # The last token of a path is never decoded, so a path may fill the context to the brim.
        limit = min(request.limit, self.context - len(request.path))
        return Branch(request.until, limit, request=request, index=index)

    def _append_token(self, slot: Slot, branch: Branch, drawn: Draw, replies: list[Reply]) -> None:
        """Take the branch's next token, and reply if it is the last."""
        request, (token, logprob) = branch.request, drawn
        self._totals.sampled += 1
        if request.streamed:
            replies.append(Drawn(request.id, branch.index, len(branch.tokens), token))
        finish = branch.append(token, logprob, self.vocabulary)
        if finish is None:
            slot.pending = [token]
            return
        # A step, or what a conversation said, may be extended next; of anything else only what it grew from can be.
        keep = len(slot.tokens) if finish == "step" or request.streamed else len(request.path) - 1
        self.cache.free(slot, keep, released=finish != "step" and request.until == "step")
        replies.append(Extended(request.id, branch.index, Completion(branch.tokens, branch.logprobs, finish)))
