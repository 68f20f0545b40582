"""Families whose state cannot go back: a branch that was forked, copied or lost goes on as if from its start."""

from __future__ import annotations

import pytest

from genius_lite.sampler.engine import Engine
from tests.architectures.zoo import RECURRENT, TEXT
from tests.support.engine import extend, settings

NATS = 1e-3  # a token, in fp32; batches of another shape sum in another order
PREFIX = TEXT[:90]
SEEDS = [1, 2, 3, 4]


@pytest.mark.parametrize("name", sorted(RECURRENT))
@pytest.mark.parametrize(
    ("slots", "parked", "unified"), [(2, 0, False), (3, 2, False), (8, 8, False), (3, 2, True), (8, 8, True)]
)
def test_a_forked_branch_is_what_its_path_from_the_start_gives(zoo, name, slots, parked, unified):
    file = str(zoo / f"{name}.gguf")  # in fp32, so that nothing is rounded twice
    fresh = Engine(file, settings(slots=1, kv_type="F32"))
    engine = Engine(file, settings(slots=slots, parked=parked, kv_unified=unified, kv_type="F32"))
    assert not engine.cache.truncates
    path, decoded = PREFIX, []
    for level in range(3):
        before = engine.stats.prefilled
        forked = extend(engine, path, SEEDS, limit=8)
        decoded.append(engine.stats.prefilled - before)
        for seed, branch in zip(SEEDS, forked, strict=True):
            before = fresh.stats.prefilled
            (alone,) = extend(fresh, path, [seed], limit=8)
            assert fresh.stats.prefilled - before == len(path), "from its start"
            assert branch.tokens == alone.tokens
            assert branch.logprobs == pytest.approx(alone.logprobs, abs=NATS)
        path = path + max((branch.tokens for branch in forked), key=len)
        for other in range(2):  # others between, for which what is cached has to go where there is no room
            extend(engine, [*TEXT[100:160], other], [level, 7], limit=9)
    if parked == 8:
        assert decoded == [len(PREFIX), 1, 1], "a prefix is decoded once, and a state gone on from"
    elif parked == 0:
        assert decoded[1] > len(PREFIX), "what was lost is decoded again"
