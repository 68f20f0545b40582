"""Drawing on the device, here llama.cpp's CPU backend: the same tokens and log-probabilities as from logits."""

from __future__ import annotations

import asyncio

import pytest

from genius_lite.foresight.rollouts import sample_rollouts
from genius_lite.recipe import Foresight
from genius_lite.records import Query, query_id
from genius_lite.sampler import device
from genius_lite.sampler.client import open_sampler
from genius_lite.sampler.device import OnDevice
from genius_lite.sampler.engine import Engine
from genius_lite.sampler.messages import EngineSettings, Extend, Sampling
from genius_lite.sampler.sampling import LogitsError, OnHost
from tests.support.drawing import FILTERED, SAMPLINGS, both, mixed
from tests.support.engine import PROMPT, extend, settings
from tests.support.models import VOCABULARY


def assert_same(host, on_device, rounding: float = 2e-4):
    """A draw may fall on the other side of the edge between two tokens, by how llama.cpp was built."""
    alike = [(one, other) for one, other in zip(host[0], on_device[0], strict=True) if one.tokens == other.tokens]
    assert len(alike) >= len(host[0]) - len(host[0]) // 30
    for one, other in alike:
        assert other.finish == one.finish
        assert other.logprobs == pytest.approx(one.logprobs, abs=rounding)
    for one, other in zip(host[1], on_device[1], strict=True):
        assert other == pytest.approx(one, abs=rounding)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("samplings", [SAMPLINGS[:3], SAMPLINGS], ids=["plain", "filtered"])
def test_both_ways_draw_the_same(tiny, samplings, unified):
    requests = mixed(samplings, VOCABULARY)
    assert_same(*both(tiny.gguf, requests, slots=5, parked=2, kv_unified=unified, prefill_chunk=16))


def test_also_of_a_model_that_cannot_go_back(tiny_mamba):
    assert_same(*both(tiny_mamba.gguf, mixed(SAMPLINGS[:3], VOCABULARY, limit=4), slots=3))


def test_also_of_a_real_vocabulary(smollm2):
    """Its 49,152 tokens at temperature 1 have long tails: there float32 sums may choose a neighbour, not often."""
    requests = [Extend(n, list(range(120 + n, 140)), list(range(4)), "limit", 8, s) for n, s in enumerate(SAMPLINGS)]
    host, there = both(smollm2, requests, slots=8)
    agree = [one.tokens == other.tokens for one, other in zip(host[0], there[0], strict=True)]
    assert sum(agree) >= len(agree) - 1
    first = [(one.logprobs[0], other.logprobs[0]) for one, other in zip(host[0], there[0], strict=True)]
    assert max(abs(one - other) for one, other in first) < 1e-3


def test_what_is_filtered_may_come_and_go(tiny_llama):
    engines = [Engine(str(tiny_llama), settings(draw=draw)) for draw in ("host", "device")]
    for sampling in (Sampling(0.9), FILTERED, Sampling(0.9), FILTERED):
        host, there = (extend(engine, PROMPT, [5, 6], sampling=sampling) for engine in engines)
        assert [c.tokens for c in there] == [c.tokens for c in host]


def test_where_an_operation_is_missing_the_host_draws(tiny_llama, monkeypatch, capfd):
    monkeypatch.setitem(device.Ggml._MAKING, "of_tomorrow", "")
    engine = Engine(str(tiny_llama), settings(draw="device"))
    assert isinstance(engine.drawing, OnHost)
    assert "tokens are drawn on the host: this build of llama.cpp lacks" in capfd.readouterr().err
    here = Engine(str(tiny_llama), settings())
    assert [c.tokens for c in extend(engine, PROMPT, [1])] == [c.tokens for c in extend(here, PROMPT, [1])]


def test_a_device_that_lacks_one_is_not_given_the_graph(tiny_llama, monkeypatch, capfd):
    class Old(device.Ggml):
        def __init__(self):
            super().__init__()
            self.backend_buft_get_device = lambda buffer_type: 1
            self.backend_dev_supports_op = lambda _, node: device.Tensor.from_address(node).ne[0] == 1

    monkeypatch.setattr(device, "Ggml", Old)
    engine = Engine(str(tiny_llama), settings(draw="device"))
    assert isinstance(engine.drawing, OnHost)
    assert "this device lacks ggml's operation" in capfd.readouterr().err
    here = Engine(str(tiny_llama), settings())
    assert [c.tokens for c in extend(engine, PROMPT, [1])] == [c.tokens for c in extend(here, PROMPT, [1])]


def test_logits_that_are_not_finite_are_told(poisoned):
    engine = Engine(str(poisoned), settings(draw="device"))
    with pytest.raises(LogitsError, match="not finite after 2 tokens of request 0"):
        extend(engine, [3, 255], [1])


def test_a_search_comes_to_the_same_rollouts(tiny_llama, tmp_path):
    """Through the worker, as a run asks for them: steps, futures, values and what goes on."""

    async def rollouts(draw) -> list:
        kept: list = []
        queries = [Query(query_id(text), text, [257, *text.encode(), 10, 258]) for text in ("Why?", "How?", "What?")]
        engine = EngineSettings(slots=4, context=256, threads=1, parked=4, draw=draw)
        async with open_sampler(tiny_llama, engine, Sampling(0.9), tmp_path / f"{draw}.log") as sampler:
            cfg = Foresight(beams=2, candidates=3, steps=3, max_tokens=24)
            await sample_rollouts(queries, sampler, cfg, (0, 1), 3, kept.append, lambda query, reason: None)
        return sorted(kept, key=lambda rollout: rollout.query.id)

    host, there = (asyncio.run(rollouts(draw)) for draw in ("host", "device"))
    assert [rollout.query.id for rollout in there] == [rollout.query.id for rollout in host]
    for one, other in zip(host, there, strict=True):
        for step, its in zip(one.steps, other.steps, strict=True):
            assert (its.kept, its.repeats) == (step.kept, step.repeats)
            for candidate, same in zip(step.candidates, its.candidates, strict=True):
                assert (same.beam, same.tokens) == (candidate.beam, candidate.tokens)
                assert same.value == pytest.approx(candidate.value, abs=1e-4)


def test_what_a_device_cannot_sort_is_drawn_on_the_host(tiny_llama, monkeypatch, capfd):
    whole = OnDevice._supported

    def unsorted(self: OnDevice, *arguments: object) -> bool:
        if self._sorted:
            self._unsupported = "it sorts nothing"
        return not self._sorted and whole(self, *arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(OnDevice, "_supported", unsorted)
    assert_same(*both(tiny_llama, mixed([Sampling(1.0), FILTERED], VOCABULARY)))
    assert "tokens are drawn on the host: it sorts nothing" in capfd.readouterr().err
