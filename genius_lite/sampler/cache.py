"""Which tokens each llama.cpp sequence holds. Only a cache: losing all of it costs prefill time and no more."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import llama_cpp

_WORTH_COPYING = 16  # shared tokens from which copying a sequence beats decoding them again


@dataclass(eq=False)
class Slot:
    """One llama.cpp sequence. `tokens` are in its KV cache, `pending` are decoded next, in order."""

    index: int
    tokens: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    job: Any = None
    released: bool = True
    last_used: int = 0

    @property
    def idle(self) -> bool:
        return self.job is None


class SlotCache:
    """The sequences of a llama.cpp context, found by the tokens they hold: slots that decode, and cached ones.

    With a KV buffer for each sequence llama.cpp splits a batch wherever sequence ids leave a gap, and every piece
    reads all weights again (SmolLM2, Q4_0: 24 rows took 73 ms without a gap, 137 ms with eight). So busy slots are
    kept side by side, and what must be remembered meanwhile is cached behind them; a copy costs less than a row.

    `memory` is `llama_get_memory(ctx)`. `truncates` is False for recurrent and hybrid models, whose state cannot go
    back: there a sequence serves a path only if all that it holds is a prefix of it.
    """

    def __init__(self, memory: Any, slots: int, cached: int, truncates: bool):
        self.memory = memory
        self.truncates = truncates
        self.slots = [Slot(i) for i in range(slots + cached)]
        self.decoding, self.cached = self.slots[:slots], self.slots[slots:]
        self.clock = 0

    @property
    def busy(self) -> list[Slot]:
        """Decoding slots with a job, by sequence id."""
        return [s for s in self.decoding if not s.idle]

    def held(self) -> set[tuple[int, ...]]:
        """Return what idle slots hold."""
        return {tuple(s.tokens) for s in self.slots if s.idle}

    def place(self, path: list[int], reuse: int, job: Any) -> Slot | None:
        """Give `job` a slot with as much of `path[:reuse]` as is cached, the rest pending; None if all are busy."""
        wanted = path[:reuse]
        slot = self._exact(wanted, self.decoding)
        if slot is None:
            slot = self._idle_slot()
            if slot is None:
                return None
            self._fetch(wanted, slot)
        elif not self.truncates:
            self._cache(slot, sparing=slot)
        slot.pending = path[len(slot.tokens) :]
        self._assign(slot, job)
        return slot

    def fork(self, source: Slot, job: Any) -> Slot | None:
        """Give `job` a slot with the same contents as `source`, or None if all are busy."""
        slot = self._idle_slot()
        if slot is None:
            return None
        self._cache(slot, sparing=source)
        self._copy(source, slot)
        self._assign(slot, job)
        return slot

    def remember(self, slot: Slot) -> None:
        """Cache what a busy slot holds, where the model cannot be cut back to it later."""
        if not self.truncates:
            self._cache(slot, sparing=slot)

    def free(self, slot: Slot, keep: int, released: bool = False) -> None:
        """End the slot's job; its first `keep` tokens stay cached, where the model can go back to them."""
        slot.job, slot.pending, slot.released = None, [], released
        if self.truncates:
            self._truncate(slot, keep)

    def release(self, tokens: list[int]) -> None:
        """Let the idle slot that holds just these tokens be reused before any other."""
        slot = self._exact(tokens, self.slots)
        if slot is not None:
            slot.released = True

    def compact(self) -> None:
        """Move busy slots down over idle ones, so that they stand side by side."""
        while (busy := self.busy) and len(busy) <= busy[-1].index:
            last, slot = busy[-1], next(s for s in self.decoding if s.idle)
            self._cache(slot, sparing=last)
            self._copy(last, slot)
            slot.job, slot.pending, slot.released, slot.last_used = last.job, last.pending, False, last.last_used
            last.job, last.pending, last.released = None, [], True
            self._truncate(last, 0)

    def _assign(self, slot: Slot, job: Any) -> None:
        self.clock += 1
        slot.job, slot.released, slot.last_used = job, False, self.clock

    def _exact(self, tokens: list[int], among: list[Slot]) -> Slot | None:
        return next((s for s in among if s.idle and s.tokens == tokens), None)

    def _idle_slot(self) -> Slot | None:
        return _least_missed([s for s in self.decoding if s.idle])

    def _cache(self, slot: Slot, sparing: Slot) -> None:
        """Remember what the slot holds, unless it was released, in the cached slot that is missed least."""
        target = _least_missed([s for s in self.cached if s is not sparing])
        if target is not None and not slot.released:
            self._copy(slot, target)
            target.released, target.last_used = False, slot.last_used

    def _fetch(self, wanted: list[int], slot: Slot) -> None:
        """Bring the longest cached prefix of `wanted` into the idle `slot`, whose own contents are cached."""
        source, shared = slot, self._shared(slot, wanted)
        for other in self.slots:
            if other.tokens[: shared + 1] == wanted[: shared + 1] and (more := self._shared(other, wanted)) > shared:
                source, shared = other, more
        self._cache(slot, sparing=source)
        if source is not slot and shared >= _WORTH_COPYING:
            self._copy(source, slot)
            # What moves back into a slot need not stay cached, if the slot can be cut back to it.
            source.released |= source.idle and self.truncates and shared == len(source.tokens)
        self._truncate(slot, self._shared(slot, wanted))

    def _shared(self, slot: Slot, tokens: list[int]) -> int:
        """Count how many leading tokens the slot could serve."""
        shared = common_prefix(slot.tokens, tokens)
        return shared if self.truncates or shared == len(slot.tokens) else 0

    def _copy(self, source: Slot, target: Slot) -> None:
        """Copy a whole sequence: with a KV buffer for each, llama.cpp copies nothing less."""
        llama_cpp.llama_memory_seq_rm(self.memory, target.index, -1, -1)
        llama_cpp.llama_memory_seq_cp(self.memory, source.index, target.index, -1, -1)
        target.tokens = list(source.tokens)

    def _truncate(self, slot: Slot, length: int) -> None:
        if length < len(slot.tokens):
            llama_cpp.llama_memory_seq_rm(self.memory, slot.index, length, -1)
            del slot.tokens[length:]


def _least_missed(slots: list[Slot]) -> Slot | None:
    """Choose empty and released slots first, lowest id first; then the longest unused."""
    return min(slots, key=lambda s: (not s.released, s.index if s.released else s.last_used), default=None)


def common_prefix(a: list[int], b: list[int]) -> int:
    """Count how many leading tokens are equal."""
    shared, most = 0, min(len(a), len(b))
    while shared < most:  # by halves: slices are compared in C
        middle = (shared + most + 1) // 2
        if a[shared:middle] == b[shared:middle]:
            shared = middle
        else:
            most = middle - 1
    return shared
