"""Broken run folders and shards of fixed seeds; `python -m tests.faults.hostile --folders` tries any number."""

from __future__ import annotations

from collections import Counter

from tests.faults.hostile import examined_folders
from tests.faults.run_folders import DEEDS

_SLOW = ("run", "reuse")  # which train: one of each is enough here
SEEDS = [0, 25, *(n for n in range(3, 32) if DEEDS[n // 4 % len(DEEDS)] not in _SLOW or n % 4 == 3)]


def test_broken_run_folders_and_shards_are_one_clear_line_or_work(tmp_path):
    found = [*examined_folders(SEEDS, tmp_path)]
    assert [(b.seed, b.what, b.deed, o) for b, o in found if o["outcome"] not in ("refused", "accepted")] == []
    counts = Counter(o["outcome"] for _, o in found)
    assert counts["refused"] >= len(SEEDS) / 8
    assert counts["accepted"] >= len(SEEDS) / 8, "some files matter to nobody"
