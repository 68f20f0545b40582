"""The bookkeeping of sequences, against a llama.cpp that only notes which tokens a sequence would hold."""

from __future__ import annotations

import pytest

from genius_lite.sampler import cache
from genius_lite.sampler.cache import Slot, SlotCache

PATH = list(range(100, 130))


class Kv:
    """Token lists of sequences, changed by the calls that the cache makes."""

    def __init__(self):
        self.sequences: dict[int, list[int]] = {}

    def llama_memory_seq_rm(self, memory, seq, start, end):
        self.sequences[seq] = self.sequences.get(seq, [])[: max(start, 0)]

    def llama_memory_seq_cp(self, memory, source, target, start, end):
        self.sequences[target] = list(self.sequences.get(source, []))


@pytest.fixture
def kv(monkeypatch) -> Kv:
    kv = Kv()
    monkeypatch.setattr(cache, "llama_cpp", kv)
    return kv


def decode(kv: Kv, slot: Slot) -> None:
    """What a decode step does with pending tokens."""
    slot.tokens += slot.pending
    slot.pending = []
    kv.sequences[slot.index] = list(slot.tokens)


def consistent(kv: Kv, slots: SlotCache) -> bool:
    return all(kv.sequences.get(s.index, []) == s.tokens for s in slots.slots)


def run(kv: Kv, slots: SlotCache, path: list[int], keep: int) -> int:
    """Place, decode and free a path; how many tokens had to be decoded."""
    slot = slots.place(path, len(path) - 1, "job")
    assert slot is not None
    pending = len(slot.pending)
    decode(kv, slot)
    slots.free(slot, keep)
    return pending


def test_going_on_decodes_only_the_last_token(kv):
    slots = SlotCache(None, 2, 0, truncates=True)
    assert run(kv, slots, PATH, keep=len(PATH) - 1) == len(PATH)
    assert run(kv, slots, PATH, keep=len(PATH) - 1) == 1
    assert consistent(kv, slots)


@pytest.mark.parametrize(("cached", "decoded"), [(1, 1), (0, len(PATH))])
def test_what_was_cached_comes_back_and_the_rest_is_decoded_again(kv, cached, decoded):
    slots = SlotCache(None, 1, cached, truncates=True)
    run(kv, slots, PATH, keep=len(PATH) - 1)
    run(kv, slots, [1, 2, 3], keep=2)
    assert run(kv, slots, PATH, keep=len(PATH) - 1) == decoded
    assert consistent(kv, slots)


def test_busy_slots_move_together_and_lose_nothing(kv):
    slots = SlotCache(None, 4, 2, truncates=True)
    placed = [slots.place([i, 50 + i, 60 + i], 2, f"job {i}") for i in range(4)]
    for slot in placed:
        assert slot is not None
        decode(kv, slot)
    slots.free(slots.decoding[0], keep=3)
    slots.free(slots.decoding[2], keep=3)
    slots.compact()
    assert [s.index for s in slots.busy] == [0, 1]
    assert {s.job: s.tokens for s in slots.busy} == {"job 1": [1, 51, 61], "job 3": [3, 53, 63]}
    assert (0, 50, 60) in slots.held(), "what an idle slot remembered is cached, not lost"
    assert consistent(kv, slots)


def test_all_slots_busy_is_a_wait(kv):
    slots = SlotCache(None, 1, 1, truncates=True)
    slot = slots.place(PATH, 29, "job")
    assert slots.place([1, 2], 1, "other") is None
    assert slot is not None
    assert slots.fork(slot, "other") is None


def test_a_recurrent_state_is_kept_where_it_forks(kv):
    slots = SlotCache(None, 2, 2, truncates=False)
    step, future = PATH[:20], PATH
    slot = slots.place(step, 19, "step")
    assert slot is not None
    decode(kv, slot)
    slots.free(slot, keep=19)  # cannot be cut back: it holds the step's last token too
    assert slot.tokens == step
    slot = slots.place([*step, 7], 20, "future")
    assert slot is not None
    assert slot.pending == [7]
    slot.pending += future[20:]
    decode(kv, slot)
    slots.free(slot, keep=20)
    again = slots.place([*step, 8], 20, "next step")
    assert again is not None
    assert again.pending == [8]
    assert consistent(kv, slots)
