"""What a real worker does with a model that computes NaN, with prompts that imitate steps, and over many cycles."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from genius_lite.data.steps import OpenStep, StepDelimiter
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.sampler.client import QueryFailedError, SamplerError, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.process import Worker
from genius_lite.sampler.tree import Node
from tests.sampler.conftest import POISONED

SETTINGS = EngineSettings(slots=4, context=256, threads=1)
SAMPLING = Sampling(0.9)


def test_nan_logits_are_traced_to_their_request_and_only_that_is_set_aside(poisoned, tmp_path):
    async def scenario():
        said: list[str] = []
        async with open_sampler(poisoned, SETTINGS, SAMPLING, tmp_path / "log", say=said.append) as sampler:
            sound = sampler.extend(Node(None, [257, 72], (0, 1, "sound")), 3, until="limit", limit=12)
            (bad,) = sampler.extend(Node(None, [257, POISONED], (0, 1, "bad")), 1, until="end", limit=5)
            with pytest.raises(QueryFailedError, match="met logits that are not finite, three times"):
                await bad
            found = await asyncio.gather(*sound, return_exceptions=True)
            with pytest.raises(QueryFailedError, match="not finite"):
                await sampler.score([257, 72], [65, POISONED, 66])
            return said, found

    said, found = asyncio.run(scenario())
    assert {"met logits that are not finite" in line for line in said} == {True}
    # A branch may come upon the token by itself.
    assert all(isinstance(f, QueryFailedError) or np.isfinite(f.completion.logprobs).all() for f in found)
    log = (tmp_path / "log").read_text(errors="replace")
    assert "the model gave logits that are not finite after 2 tokens of request " in log
    assert "Traceback" not in log


def test_a_model_that_computes_nothing_but_nan_ends_the_sampling(poisoned, tmp_path):
    async def scenario():
        async with open_sampler(poisoned, SETTINGS, SAMPLING, tmp_path / "log") as sampler:
            roots = [Node(None, [257, POISONED], (0, 1, str(i))) for i in range(4)]
            futures = [f for root in roots for f in sampler.extend(root, 1, until="end", limit=5)]
            return await asyncio.gather(*futures, return_exceptions=True)

    found = asyncio.run(scenario())
    assert {type(e) for e in found} == {QueryFailedError, SamplerError}
    assert "met logits that are not finite, again and again" in str(found[-1])


def test_a_prompt_that_imitates_steps_changes_no_step(tiny_llama, tmp_path):
    async def scenario():
        with Vocabulary.open(tiny_llama) as vocabulary:
            delimiter = StepDelimiter(vocabulary.pieces)
            prompts = [vocabulary.prompt(text) for text in ("a", "a\n\nb\n", "Step 1: x\nStep 2: y\n\n\n")]
        async with open_sampler(tiny_llama, SETTINGS, Sampling(1.5), tmp_path / "log") as sampler:
            roots = [Node(None, prompt, (0, 1, str(i))) for i, prompt in enumerate(prompts)]
            futures = [f for root in roots for f in sampler.extend(root, 12, until="step", limit=80)]
            return delimiter, [node.completion for node in await asyncio.gather(*futures)]

    delimiter, completions = asyncio.run(scenario())
    for completion in completions:
        *_, ended = _ends(delimiter, completion.tokens)
        assert ended == (completion.finish == "step")
        assert not any([*_ends(delimiter, completion.tokens)][:-1])
    assert "step" in {completion.finish for completion in completions}


def _ends(delimiter: StepDelimiter, tokens: list[int]) -> Iterator[bool]:
    """Whether a step ends after each token, of these tokens alone."""
    step = OpenStep(delimiter)
    for token in tokens:
        yield step.ends(token)


def test_modules_of_the_working_directory_are_not_run(tiny_llama, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("open('it-ran', 'w')")
    monkeypatch.chdir(tmp_path)

    async def scenario():
        async with open_sampler(tiny_llama, SETTINGS, SAMPLING, tmp_path / "log") as sampler:
            return await sampler.score([257, 72], [65, 66])

    assert len(asyncio.run(scenario())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "numpy.py"]


def test_many_samplers_leave_no_file_open(tiny_llama, tmp_path):
    async def cycle():
        async with open_sampler(tiny_llama, SETTINGS, SAMPLING, tmp_path / "log") as sampler:
            await sampler.score([257, 72], [65, 66])

    process, held = psutil.Process(), []
    before = process.children()
    for _ in range(10):
        asyncio.run(cycle())
        held.append(process.num_fds())
    assert max(held[2:]) == held[2]
    assert process.children() == before


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_worker_that_is_killed_while_it_loads_is_started_again(tiny_llama, tmp_path, monkeypatch, failures):
    real, begun, said = Worker.start, [], []

    async def start(*arguments):
        begun.append(arguments)
        if len(begun) <= failures:
            raise SamplerError("the sampler's process was killed by SIGKILL")
        return await real(*arguments)

    monkeypatch.setattr(Worker, "start", start)
    settings, sampling = EngineSettings(slots=1, context=64, threads=1), Sampling(1.0)

    async def score() -> list[float]:
        async with open_sampler(tiny_llama, settings, sampling, tmp_path / "log", say=said.append) as sampler:
            return await sampler.score([65, 66], [67])

    if failures == 3:
        with pytest.raises(SamplerError, match="killed by SIGKILL"):
            asyncio.run(score())
    else:
        assert len(asyncio.run(score())) == 1
    assert said == ["warning: the sampler's process was killed by SIGKILL; starting it again"] * min(failures, 2)
