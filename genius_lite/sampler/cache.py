"""Which tokens each llama.cpp sequence holds. Only a cache: losing all of it costs prefill time and no more."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np

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
    """The sequences of a llama.cpp context, found by the tokens they hold.

    Args:
        memory: `llama_get_memory(ctx)`.
        truncates: False for recurrent and hybrid models, whose state cannot go back: there a sequence serves a
            path only if all that it holds is a prefix of it.
    """

    def __init__(self, memory: Any, slots: int, truncates: bool):
        self.memory = memory
        self.truncates = truncates
        self.slots = [Slot(i) for i in range(slots)]
        self.clock = 0

    def holds(self, tokens: list[int]) -> bool:
        """Whether an idle slot holds just these tokens."""
        return self._exact(tokens) is not None

    def place(self, path: list[int], reuse: int, job: Any) -> Slot | None:
        """A slot for `job` with as much of `path[:reuse]` as is cached, the rest pending; None if all are busy."""
        wanted = path[:reuse]
        exact = self._exact(wanted)
        # Going on in place destroys nothing where a sequence can be cut back to here later.
        slot = exact if exact and self.truncates else self._victim()
        if slot is None:
            return None
        if slot is not exact:
            self._fetch(wanted, slot)
        slot.pending = path[len(slot.tokens) :]
        self._occupy(slot, job)
        return slot

    def fork(self, source: Slot, job: Any) -> Slot | None:
        """A second slot with the same contents as `source`, or None if all are busy."""
        free = self._victim()
        if free is None:
            return None
        self._copy(source, free)
        self._occupy(free, job)
        return free

    def vacate(self, slot: Slot, keep: int, released: bool = False) -> None:
        """End the slot's job; its first `keep` tokens stay cached, where the model can go back to them."""
        slot.job, slot.pending, slot.released = None, [], released
        if self.truncates:
            self._truncate(slot, keep)

    def release(self, tokens: list[int]) -> None:
        """Let the idle slot that holds just these tokens be reused before any other."""
        slot = self._exact(tokens)
        if slot is not None:
            slot.released = True

    def _occupy(self, slot: Slot, job: Any) -> None:
        self.clock += 1
        slot.job, slot.released, slot.last_used = job, False, self.clock

    def _exact(self, tokens: list[int]) -> Slot | None:
        return next((s for s in self.slots if s.idle and s.tokens == tokens), None)

    def _victim(self) -> Slot | None:
        """The idle slot that is missed least: empty or released ones first, then the longest unused."""
        idle = (s for s in self.slots if s.idle)
        return min(idle, key=lambda s: (not s.released, s.last_used if not s.released else s.index), default=None)

    def _fetch(self, wanted: list[int], slot: Slot) -> None:
        """Bring the longest cached prefix of `wanted` into the idle `slot`."""
        shared = {s: self._shared(s, wanted) for s in self.slots}
        source = max(self.slots, key=lambda s: (shared[s], s is slot))
        if source is not slot and shared[source] >= _WORTH_COPYING:
            self._copy(source, slot)
        self._truncate(slot, self._shared(slot, wanted))

    def _shared(self, slot: Slot, tokens: list[int]) -> int:
        """How many leading tokens the slot could serve."""
        shared = _common_prefix(slot.tokens, tokens)
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


def _common_prefix(a: list[int], b: list[int]) -> int:
    """How many leading tokens are equal."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return int(np.argmax(np.array(a[:n]) != np.array(b[:n])))
