"""Let a policy answer problems and held-out queries through llama.cpp, and set it beside the base model.

Every figure of a model comes from the same prompts and the same seeds as the base model's, so that they can be paired.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from genius_lite.errors import UserError
from genius_lite.evaluate.checkers import extract_answer
from genius_lite.evaluate.results import GREEDY, Answers, Response
from genius_lite.evaluate.signals import Observed
from genius_lite.evaluate.tasks import REASONING_GYM, Problem, Task, from_jsonl, from_reasoning_gym
from genius_lite.prompts import Vocabulary
from genius_lite.recipe import Evaluate, TaskSource
from genius_lite.records import Completion, Query
from genius_lite.rundir import RecordLog
from genius_lite.sampler.client import LocalSampler, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling, Stats
from genius_lite.sampler.tree import Node
from genius_lite.stopping import Stop, Stopped

_UNFILTERED = Sampling(1.0)

Advance = Callable[[int], None]
Ended = Callable[[Stats], None]


@dataclass(frozen=True)
class Asked:
    """A task and the prompt tokens of its problems, in their order."""

    task: Task
    questions: list[Query]


@dataclass(frozen=True)
class Respondent:
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


def load_task(cfg: TaskSource) -> Task:
    """The problems that a recipe names.

    Raises:
        UserError: as `from_jsonl` and `from_reasoning_gym`.
    """
    if cfg.source.startswith(REASONING_GYM):
        return from_reasoning_gym(cfg.source, size=cfg.size, seed=cfg.seed, config=cfg.config)
    names = {"prompt": cfg.prompt, "answer": cfg.answer, "choices": cfg.choices}
    task = from_jsonl(Path(cfg.source), cfg.check, **names, **cfg.options)
    return replace(task, problems=task.problems[: cfg.limit])


def load_tasks(sources: Sequence[TaskSource]) -> list[Task]:
    """All of them.

    Raises:
        UserError: as `load_task`; or two have the same name.
    """
    tasks = [load_task(source) for source in sources]
    if repeated := [t.name for n, t in enumerate(tasks) if t.name in [earlier.name for earlier in tasks[:n]]]:
        raise UserError(f"two tasks are named {repeated[0]}; give their files different names")
    return tasks


def asked(task: Task, vocabulary: Vocabulary, system: str | None) -> Asked:
    """The task's problems as the model is given them."""
    return Asked(task, [Query(p.id, p.prompt, vocabulary.prompt(p.prompt, system)) for p in task.problems])


def answer_tasks(
    who: Respondent,
    tasks: Sequence[Asked],
    cfg: Evaluate,
    advance: Advance = lambda n: None,
    ended: Ended = lambda stats: None,
    kept: RecordLog[Answers] | None = None,
    stop: Stop | None = None,
) -> list[Response]:
    """Every response to every problem: the greedy one and `cfg.samples` at `cfg.temperature`, scored.

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
    answered = {(one.task, one.problem): one.responses for one in (kept.records if kept else [])}
    gate = asyncio.Semaphore(max(1, 2 * who.settings.slots // each))

    async def answer(sampler: LocalSampler, vocabulary: Vocabulary, task: Task, problem: Problem, query: Query) -> None:
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
            completions = [_completion(node) for node in await asyncio.gather(*futures)]
        responses = []
        for sample, done in enumerate(completions, GREEDY if cfg.greedy else 0):
            text = vocabulary.decode(done.tokens)
            score = (await asyncio.to_thread(task.check, problem, text)).score
            responses.append(Response(task.name, problem.id, sample, text, len(done.tokens), done.finish, score))
        answered[task.name, problem.id] = responses
        if kept:
            kept.append(Answers(task.name, problem.id, responses))

    async def ask() -> None:
        with Vocabulary.open(who.gguf) as vocabulary:
            async with who.sampler(Sampling(cfg.temperature)) as sampler:
                await asyncio.gather(
                    *(
                        answer(sampler, vocabulary, item.task, problem, query)
                        for item in tasks
                        for problem, query in zip(item.task.problems, item.questions, strict=True)
                    )
                )
                ended(await sampler.settled())

    asyncio.run(ask())
    wanted = [(item.task.name, problem.id) for item in tasks for problem in item.task.problems]
    if any(one not in answered for one in wanted):
        raise Stopped
    return [response for one in wanted for response in answered[one]]


def responses_wanted(tasks: Sequence[Asked], cfg: Evaluate) -> int:
    """How many responses `answer_tasks` samples."""
    return sum(len(item.questions) for item in tasks) * (cfg.samples + cfg.greedy)


def observe(
    who: Respondent,
    base: Respondent | None,
    queries: Sequence[Query],
    samples: int,
    advance: Advance = lambda n: None,
    ended: Ended = lambda stats: None,
) -> list[Observed]:
    """Responses to held-out queries, sampled at temperature 1, for the label-free signals.

    Args:
        base: the base model, which scores the same tokens; None where it is the one that answers.
        advance: called as responses arrive, `samples` for each query in all.
        ended: told the totals of the sampler that answers.
    """

    async def sample() -> list[tuple[Query, Completion]]:
        async with who.sampler(_UNFILTERED) as sampler:
            roots = [Node(None, query.tokens, (who.seed, "observe", query.id)) for query in queries]
            futures = [f for root in roots for f in sampler.extend(root, samples, until="end", limit=who.max_tokens)]
            for future in futures:
                future.add_done_callback(lambda _: advance(1))
            completions = [_completion(node) for node in await asyncio.gather(*futures)]
            ended(await sampler.settled())
        return list(zip([query for query in queries for _ in range(samples)], completions, strict=True))

    async def score(judge: Respondent) -> list[list[float]]:
        async with judge.sampler(_UNFILTERED) as sampler:
            return await asyncio.gather(*(sampler.score(query.tokens, done.tokens) for query, done in found))

    found = asyncio.run(sample())
    base_logprobs = asyncio.run(score(base)) if base else [[] for _ in found]
    with Vocabulary.open(who.gguf) as vocabulary:
        return [
            Observed(
                query.id,
                done.tokens,
                done.logprobs,
                of_base,
                done.finish,
                extract_answer(vocabulary.decode(done.tokens)),
            )
            for (query, done), of_base in zip(found, base_logprobs, strict=True)
        ]


def _completion(node: Node) -> Completion:
    assert node.completion
    return node.completion
