"""llama.cpp as an event loop: every step decodes one batch for all branches that are under way.

A job fills one slot. The completions of a request begin together, as one `Branch`, which decodes their path and then
one token a step for all of them; where they draw different tokens they part, each part in a slot of its own. So what
they have in common is decoded once: their prompt, and all that they say alike. The slot of a finished branch is filled
again before the next decode.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import llama_cpp
import msgspec

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.hardware.system import peak_memory
from genius_lite.records import Completion, Finish
from genius_lite.results.rounds import Stats
from genius_lite.sampler.cache import Slot, SlotCache
from genius_lite.sampler.device import DeviceError, OnDevice
from genius_lite.sampler.jobs import Branch, Scoring
from genius_lite.sampler.llama import BATCH, Batch, EngineError, load
from genius_lite.sampler.messages import Drawn, EngineSettings, Extend, Extended, Release, Reply, Score, Scored
from genius_lite.sampler.sampling import DRAWS, Draw, LogitsError, OnHost, RowRequest

SCORE_ROWS = 64  # rows of logits kept at once while scoring: 40 MB at 152K tokens of vocabulary


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
        self.queue: deque[Branch | Scoring] = deque()
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
            jobs, needed = [Scoring(request)], len(request.prompt) + len(request.response) - 1
        else:
            jobs, needed = self._branches(request), len(request.path) + 1
        if needed > self.context:
            raise EngineError(f"{needed} tokens do not fit a context of {self.context}")
        self.queue.extend(jobs)

    def _branches(self, request: Extend) -> list[Branch]:
        """Let the completions of a request begin: together, as far as one row can be drawn from for all of them."""
        # The last token of a path is never decoded, so a path may fill the context to the brim.
        limit = min(request.limit, self.context - len(request.path))
        indices = range(len(request.seeds))
        groups = [list(indices[first : first + DRAWS]) for first in range(0, len(indices), DRAWS)]
        return [Branch(request.until, limit, request=request, indices=group) for group in groups]

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
            if self.batch.size == self.batch.rows == len(rows):
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

        A path that another branch begins with is waited for and then copied, not decoded beside it: an evaluation asks
        for the greedy response and for sampled ones at once.
        """
        room = self.settings.slots - len(self.cache.busy)
        if not (self.queue and room):
            return
        held = self.cache.held()
        waiting = sorted(self.queue, key=lambda job: tuple(job.path[: job.reuse]) not in held)
        self.queue.clear()
        under_way = [slot.job.path for slot in self.cache.busy if isinstance(slot.job, Branch) and slot.job.begins]
        for job in waiting:
            if not room or (self.cache.truncates and job.path in under_way):
                self.queue.append(job)
                continue
            self.cache.place(job.path, job.reuse, job)
            room -= 1
            if isinstance(job, Branch) and job.begins:
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
            self._totals.prefilled += take
            if asked and isinstance(slot.job, Branch) and not slot.job.begins:
                self._totals.prefilled -= 1
                self._totals.shared += len(slot.job.indices) - 1
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
        return [RowRequest(slot.index, job.request.sampling, job.uniforms())]

    # -- after the decode ----------------------------------------------------------------------------------

    def _draw(self, rows: list[tuple[Slot, list[RowRequest]]], asked: list[RowRequest], replies: list[Reply]) -> None:
        try:
            drawn = iter(self.drawing.read(asked))
        except LogitsError as e:
            slot = self.cache.slots[asked[e.row].sequence]
            branch = f", branch {slot.job.indices[0]}" if isinstance(slot.job, Branch) else ""
            whose = f" after {len(slot.tokens)} tokens of request {slot.job.request.id}{branch}"
            raise LogitsError(e.row, whose) from None
        for slot, asked_of in rows:
            found, job = [token for _ in asked_of for token in next(drawn)], slot.job
            if found and isinstance(job, Branch):
                self._grow(slot, job, found, replies)
            elif found:
                job.logprobs += [logprob for _, logprob in found]
                if len(job.logprobs) == len(job.request.response):
                    self.cache.free(slot, len(job.request.prompt) - 1)
                    replies.append(Scored(job.request.id, job.logprobs))

    def _grow(self, slot: Slot, branch: Branch, drawn: list[Draw], replies: list[Reply]) -> None:
        """Give each completion its next token; where these differ one part stays, others find slots or wait."""
        going: list[tuple[Branch, Finish | None]] = []  # what the slot holds is wanted by these
        for part, token in branch.parts(drawn):
            finish = self._append_token(part, token, replies)
            # A step, or what a conversation said, may be extended next; of anything else only what it grew from can be.
            if finish in (None, "step") or branch.request.streamed:
                going.append((part, finish))
        if not going:
            self.cache.free(slot, len(branch.request.path) - 1, released=branch.request.until == "step")
            return
        going.sort(key=lambda each: (each[1] is not None, -len(each[0].indices)))
        without = [each for each in going[1:] if not self._part(slot, *each)]
        if without:
            self.cache.remember(slot)
        self.queue.extendleft(part for part, finish in reversed(without) if finish is None)
        self._go_on(slot, *going[0])

    def _part(self, source: Slot, branch: Branch, finish: Finish | None) -> bool:
        """Let the branch go on in a slot of its own, if there is one."""
        if own := self.cache.fork(source, branch):
            self._go_on(own, branch, finish)
        return own is not None

    def _go_on(self, slot: Slot, branch: Branch, finish: Finish | None) -> None:
        """Let the slot decode the branch's last token next, or keep what led to it for what may follow."""
        if finish is None:
            slot.job, slot.pending = branch, [branch.tokens[-1]]
        else:
            self.cache.free(slot, len(slot.tokens))

    def _append_token(self, branch: Branch, drawn: Draw, replies: list[Reply]) -> Finish | None:
        """Take the branch's next token, and reply if it is the last; why it is."""
        request, (token, logprob) = branch.request, drawn
        self._totals.sampled += len(branch.indices)
        if request.streamed:
            replies += [Drawn(request.id, index, len(branch.tokens), token) for index in branch.indices]
        if finish := branch.append(token, logprob, self.vocabulary):
            completion = Completion(branch.tokens, branch.logprobs, finish)
            replies += [Extended(request.id, index, completion) for index in branch.indices]
        return finish
