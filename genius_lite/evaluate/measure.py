"""Let a policy answer problems and held-out queries through llama.cpp, and set it beside the base model.

Every figure of a model comes from the same prompts and the same seeds as the base model's, so that they can be paired.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import Stop, Stopped
from genius_lite.evaluate.asking import TokenizedTask
from genius_lite.evaluate.checkers import extract_answer
from genius_lite.evaluate.signals import Observed
from genius_lite.evaluate.tasks import Problem, Task
from genius_lite.recipe import Evaluate
from genius_lite.records import Completion, FailedQuery, Query
from genius_lite.results.evaluation import GREEDY, Answers, Response, Use
from genius_lite.results.rounds import Stats
from genius_lite.rundir.lines import RecordLog
from genius_lite.sampler.client import LocalSampler, QueryFailedError, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.tree import Node

_UNFILTERED = Sampling(1.0)

T = TypeVar("T")

Advance = Callable[[int], None]
Ended = Callable[[Stats], None]


@dataclass(frozen=True)
class EvalModel:
    """A model that is to answer, and how: at most `max_tokens` a response, with the random numbers of `seed`.

    llama.cpp's messages go to the file `log`.
    """

    gguf: Path
    settings: EngineSettings
    max_tokens: int
    seed: int
    log: Path

    def sampler(self, sampling: Sampling) -> AbstractAsyncContextManager[LocalSampler]:
        """The engine that holds it."""
        return open_sampler(self.gguf, self.settings, sampling, self.log)


def answer_tasks(
    who: EvalModel,
    tasks: Sequence[TokenizedTask],
    cfg: Evaluate,
    temperature: float,
    advance: Advance = lambda n: None,
    ended: Ended = lambda stats: None,
    kept: RecordLog[Answers] | None = None,
    stop: Stop | None = None,
) -> list[Answers]:
    """Every response to every problem: the greedy one and `cfg.samples` at the temperature, scored.

    A problem that llama.cpp does not survive has none, and the reason instead.

    Args:
        advance: called as responses arrive, `responses_wanted` less those that are known in all.
        ended: told the sampler's totals.
        kept: answers of an earlier, interrupted call, whose problems are not asked again; those to each other problem
            are appended as soon as they are there.
        stop: once it is asked for no other problem is begun; those under way go on to their end.

    Raises:
        Stopped: before every problem was answered.
    """
    greedy, each = Sampling(1.0, top_k=1), cfg.samples + cfg.greedy
    answered = {(one.task, one.problem): one for one in (kept.records if kept else [])}
    gate = asyncio.Semaphore(max(1, 2 * who.settings.slots // each))

    async def answer(
        sampler: LocalSampler, vocabulary: Vocabulary, task: Task, problem: Problem, query: Query, use: Use
    ) -> None:
        async with gate:
            if (task.name, problem.id) in answered or (stop and stop.asked):
                return
            root = Node(None, query.tokens, (who.seed, "evaluate", task.name, query.id))
            futures = []
            if cfg.greedy:
                futures += sampler.extend(root, 1, until="end", limit=who.max_tokens, sampling=greedy)
            if cfg.samples:
                futures += sampler.extend(root, cfg.samples, until="end", limit=who.max_tokens)
            for future in futures:
                future.add_done_callback(lambda _: advance(1))
            nodes, why = await _survivors(futures)
        responses = []
        for sample, node in enumerate(nodes, GREEDY if cfg.greedy else 0):
            done, at = _completion(node), 0.0 if sample == GREEDY else temperature
            text = vocabulary.decode(done.tokens)
            # In a thread: a checker may take a second, and the sampler goes on meanwhile.
            verdict = await asyncio.to_thread(task.check, problem, text)
            responses.append(
                Response(
                    task=task.name,
                    problem=problem.id,
                    sample=sample,
                    text=text,
                    tokens=len(done.tokens),
                    finish=done.finish,
                    score=verdict.score,
                    answer=task.stated(problem, text),
                    timed_out=verdict.timed_out,
                    use=use,
                    temperature=at,
                )
            )
        answered[task.name, problem.id] = found = Answers(task.name, problem.id, responses, why)
        if kept:
            kept.append(found)

    async def ask() -> None:
        with Vocabulary.open(who.gguf) as vocabulary:
            async with who.sampler(Sampling(temperature)) as sampler:
                await asyncio.gather(
                    *(
                        answer(sampler, vocabulary, item.task, problem, query, use)
                        for item in tasks
                        for problem, query, use in zip(item.task.problems, item.questions, item.uses, strict=True)
                    )
                )
                ended(await sampler.drain())

    try:
        asyncio.run(ask())
    finally:
        for item in tasks:
            item.task.close()  # a scorer's process idles through no training
    wanted = [(item.task.name, problem.id) for item in tasks for problem in item.task.problems]
    if any(one not in answered for one in wanted):
        raise Stopped
    return [answered[one] for one in wanted]


def responses_wanted(tasks: Sequence[TokenizedTask], cfg: Evaluate) -> int:
    """How many responses `answer_tasks` samples."""
    return sum(len(item.questions) for item in tasks) * (cfg.samples + cfg.greedy)


def observe(
    who: EvalModel,
    base: EvalModel | None,
    queries: Sequence[Query],
    samples: int,
    advance: Advance = lambda n: None,
    ended: Ended = lambda stats: None,
) -> tuple[list[Observed], list[FailedQuery]]:
    """Responses to held-out queries, sampled at temperature 1, for the label-free signals.

    A query that llama.cpp does not survive, answering or scoring, has none, and the reason instead.

    Args:
        base: the base model, which scores the same tokens; None where it is the one that answers.
        advance: called as responses arrive, `samples` for each query in all.
        ended: told the totals of the sampler that answers.
    """
    failures = dict[str, str]()

    async def sample(sampler: LocalSampler, query: Query) -> list[tuple[Query, Completion]]:
        root = Node(None, query.tokens, (who.seed, "observe", query.id))
        futures = sampler.extend(root, samples, until="end", limit=who.max_tokens)
        for future in futures:
            future.add_done_callback(lambda _: advance(1))
        nodes, why = await _survivors(futures)
        if why:
            failures[query.id] = why
        return [(query, _completion(node)) for node in nodes]

    async def sample_all() -> list[tuple[Query, Completion]]:
        async with who.sampler(_UNFILTERED) as sampler:
            found = await asyncio.gather(*(sample(sampler, query) for query in queries))
            ended(await sampler.drain())
        return [one for of_query in found for one in of_query]

    async def score_all(judge: EvalModel) -> list[list[float]]:
        async with judge.sampler(_UNFILTERED) as sampler:
            found = await asyncio.gather(*(score(sampler, list(of)) for _, of in groupby(seen, lambda one: one[0].id)))
        return [one for of_query in found for one in of_query]

    async def score(sampler: LocalSampler, responses: list[tuple[Query, Completion]]) -> list[list[float]]:
        found, why = await _survivors(sampler.score(query.tokens, done.tokens) for query, done in responses)
        if why:
            failures[responses[0][0].id] = why
        return [[] for _ in responses] if why else found

    seen = asyncio.run(sample_all())
    base_logprobs = asyncio.run(score_all(base)) if base else [[] for _ in seen]
    with Vocabulary.open(who.gguf) as vocabulary:
        observed = [
            Observed(
                query.id,
                done.tokens,
                done.logprobs,
                of_base,
                done.finish,
                extract_answer(vocabulary.decode(done.tokens)),
            )
            for (query, done), of_base in zip(seen, base_logprobs, strict=True)
            if query.id not in failures
        ]
    return observed, [FailedQuery(query, why) for query, why in failures.items()]


async def _survivors(requests: Iterable[Awaitable[T]]) -> tuple[list[T], str | None]:
    """What a problem's requests came to; none, and the reason, if one failed: the others are given up then."""
    asked = [asyncio.ensure_future(request) for request in requests]
    try:
        return list(await asyncio.gather(*asked)), None
    except QueryFailedError as e:
        for request in asked:
            request.cancel()
        return [], str(e)


def _completion(node: Node) -> Completion:
    assert node.completion
    return node.completion
