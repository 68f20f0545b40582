"""Broken run folders and shards of fixed seeds; `python -m tests.faults.hostile --folders` tries any number."""

from __future__ import annotations

from collections import Counter

from tests.conftest import FORKED_HELPERS
from tests.faults.hostile import examined_folders
from tests.faults.run_folders import DEEDS

pytestmark = FORKED_HELPERS

_SLOW = ("run", "reuse")  # which train: one of each is enough here
# Of four seeds one breaks a shard, and three a run with which the same is done: two of them are tried.
SEEDS = [n for n in range(32) if n in (0, 25) or n % 4 == 3 or (n % 4 and DEEDS[n // 4] not in _SLOW)]


def test_broken_run_folders_and_shards_are_one_clear_line_or_work(tmp_path):
    found = [*examined_folders(SEEDS, tmp_path)]
    assert [(b.seed, b.what, b.deed, o) for b, o in found if o["outcome"] not in ("refused", "accepted")] == []
    counts = Counter(o["outcome"] for _, o in found)
    assert counts["refused"] >= len(SEEDS) / 8
    assert counts["accepted"] >= len(SEEDS) / 8, "some files matter to nobody"
