"""Let a policy answer problems and held-out queries through llama.cpp, and set it beside the base model.

Every figure of a model comes from the same prompts and the same seeds as the base model's, so that they can be paired.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from genius_lite.errors import UserError
from genius_lite.evaluate.checkers import extract_answer
from genius_lite.evaluate.signals import Observed
from genius_lite.evaluate.statistics import (
    Interval,
    McNemar,
    mcnemar_exact,
    mean_accuracy,
    paired_difference,
    wilson,
)
from genius_lite.evaluate.tasks import REASONING_GYM, Task, from_jsonl, from_reasoning_gym
from genius_lite.prompts import Vocabulary
from genius_lite.recipe import Evaluate, TaskSource
from genius_lite.records import Completion, Finish, Query
from genius_lite.sampler.client import LocalSampler, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling, Stats
from genius_lite.sampler.tree import Node

GREEDY = -1  # the `sample` of the likeliest response
_RESAMPLING_SEED = 0  # of the bootstrap: the same figures give the same interval
_UNFILTERED = Sampling(1.0)

Advance = Callable[[int], None]
Ended = Callable[[Stats], None]


@dataclass(frozen=True)
class Asked:
    """A task and the prompt tokens of its problems, in their order."""

    task: Task
    questions: list[Query]


class Response(msgspec.Struct, frozen=True):
    """An answer to a problem, and what its checker says: 0 (wrong) to 1 (right). `tokens` is its length."""

    task: str
    problem: str
    sample: int
    text: str
    tokens: int
    finish: Finish
    score: float

    @property
    def right(self) -> bool:
        """Whether it is wholly right."""
        return self.score == 1


class TaskResult(msgspec.Struct, frozen=True):
    """Accuracy on a task, the share of wholly right responses: greedy, and sampled at the recipe's temperature.

    Beside the base model: the paired difference of each, and McNemar's test of the greedy responses. `cut` is the share
    of responses that ran into `max_tokens`, `length` the mean in tokens, both over all of them.
    """

    task: str
    problems: int
    samples: int
    cut: float
    length: float
    greedy: Interval | None
    sampled: Interval | None
    greedy_gain: Interval | None = None
    sampled_gain: Interval | None = None
    mcnemar: McNemar | None = None

    @property
    def score(self) -> float:
        """What rounds are compared by: sampled accuracy, else greedy."""
        best = self.sampled or self.greedy
        assert best
        return best.estimate


def load_task(cfg: TaskSource) -> Task:
    """The problems that a recipe names.

    Raises:
        UserError: as `from_jsonl` and `from_reasoning_gym`.
    """
    if cfg.source.startswith(REASONING_GYM):
        return from_reasoning_gym(cfg.source, size=cfg.size, seed=cfg.seed, config=cfg.config)
    names = {"prompt": cfg.prompt, "answer": cfg.answer, "choices": cfg.choices}
    task = from_jsonl(Path(cfg.source), cfg.check, **names, **cfg.options)
    return Task(task.name, task.problems[: cfg.limit], task.check)


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
    model: Path,
    settings: EngineSettings,
    tasks: Sequence[Asked],
    cfg: Evaluate,
    max_tokens: int,
    seed: int,
    log: Path,
    advance: Advance = lambda n: None,
    ended: Ended = lambda stats: None,
) -> list[Response]:
    """Every response to every problem: the greedy one and `cfg.samples` at `cfg.temperature`, scored.

    Args:
        max_tokens: of a response.
        advance: called as responses arrive, `responses_wanted` in all.
        ended: told the sampler's totals.
    """
    sampling = Sampling(cfg.temperature)
    greedy = Sampling(1.0, top_k=1)

    async def ask() -> list[Completion]:
        async with open_sampler(model, settings, sampling, log) as sampler:
            futures = []
            for item in tasks:
                for question in item.questions:
                    root = Node(None, question.tokens, (seed, "evaluate", item.task.name, question.id))
                    if cfg.greedy:
                        futures += sampler.extend(root, 1, until="end", limit=max_tokens, sampling=greedy)
                    if cfg.samples:
                        futures += sampler.extend(root, cfg.samples, until="end", limit=max_tokens)
            for future in futures:
                future.add_done_callback(lambda _: advance(1))
            completions = [_completion(node) for node in await asyncio.gather(*futures)]
            ended(await sampler.settled())
            return completions

    completions = iter(asyncio.run(ask()))
    responses = []
    with Vocabulary.open(model) as vocabulary:
        for item in tasks:
            for problem in item.task.problems:
                for sample in range(GREEDY if cfg.greedy else 0, cfg.samples):
                    done = next(completions)
                    text = vocabulary.decode(done.tokens)
                    score = item.task.check(problem, text)
                    length = len(done.tokens)
                    responses.append(Response(item.task.name, problem.id, sample, text, length, done.finish, score))
    return responses


def responses_wanted(tasks: Sequence[Asked], cfg: Evaluate) -> int:
    """How many responses `answer_tasks` samples."""
    return sum(len(item.questions) for item in tasks) * (cfg.samples + cfg.greedy)


def observe(
    model: Path,
    settings: EngineSettings,
    base: tuple[Path, EngineSettings] | None,
    queries: Sequence[Query],
    samples: int,
    max_tokens: int,
    seed: int,
    log: Path,
    advance: Advance = lambda n: None,
    ended: Ended = lambda stats: None,
) -> list[Observed]:
    """Responses to held-out queries, sampled at temperature 1, for the label-free signals.

    Args:
        base: the base model, which scores the same tokens; None where `model` is the base model.
        advance: called as responses arrive, `samples` for each query in all.
        ended: told the totals of the sampler that answers.
    """

    async def sample() -> list[tuple[Query, Completion]]:
        async with open_sampler(model, settings, _UNFILTERED, log) as sampler:
            roots = [Node(None, query.tokens, (seed, "observe", query.id)) for query in queries]
            futures = [f for root in roots for f in sampler.extend(root, samples, until="end", limit=max_tokens)]
            for future in futures:
                future.add_done_callback(lambda _: advance(1))
            completions = [_completion(node) for node in await asyncio.gather(*futures)]
            ended(await sampler.settled())
        return list(zip([query for query in queries for _ in range(samples)], completions, strict=True))

    async def score(sampler: LocalSampler) -> list[list[float]]:
        return await asyncio.gather(*(sampler.score(query.tokens, done.tokens) for query, done in found))

    async def score_with(file: Path, base_settings: EngineSettings) -> list[list[float]]:
        async with open_sampler(file, base_settings, _UNFILTERED, log) as sampler:
            return await score(sampler)

    found = asyncio.run(sample())
    base_logprobs = asyncio.run(score_with(*base)) if base else [[] for _ in found]
    with Vocabulary.open(model) as vocabulary:
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


def results(responses: Sequence[Response], base: Sequence[Response] = ()) -> list[TaskResult]:
    """Accuracies with 95 % intervals, a row a task, and the paired differences to the base model's responses.

    One sample a problem gives Wilson's interval, more of them a bootstrap over problems.
    """
    by_task, of_base = _by_task(responses), _by_task(base)
    return [_result(name, rows, of_base.get(name, [])) for name, rows in by_task.items()]


def _result(name: str, rows: list[Response], base: list[Response]) -> TaskResult:
    greedy, sampled = _scores(rows, greedy=True), _scores(rows, greedy=False)
    base_greedy, base_sampled = _scores(base, greedy=True), _scores(base, greedy=False)
    right = [scores[0] for scores in greedy.values()]
    base_right = [base_greedy[problem][0] for problem in greedy] if base_greedy else []
    return TaskResult(
        task=name,
        problems=len({row.problem for row in rows}),
        samples=len({row.sample for row in rows} - {GREEDY}),
        cut=sum(row.finish == "length" for row in rows) / len(rows),
        length=sum(row.tokens for row in rows) / len(rows),
        greedy=_accuracy(greedy),
        sampled=_accuracy(sampled),
        greedy_gain=_gain(base_greedy, greedy),
        sampled_gain=_gain(base_sampled, sampled),
        mcnemar=mcnemar_exact(base_right, right) if base_right else None,
    )


def _accuracy(scores: dict[str, list[float]]) -> Interval | None:
    if not scores:
        return None
    first = [samples[0] for samples in scores.values()]
    if all(len(samples) == 1 for samples in scores.values()):
        return wilson(sum(first), len(first))
    return mean_accuracy(list(scores.values()), _RESAMPLING_SEED)


def _gain(base: dict[str, list[float]], tuned: dict[str, list[float]]) -> Interval | None:
    if not base or not tuned:
        return None
    return paired_difference([base[problem] for problem in tuned], list(tuned.values()), _RESAMPLING_SEED)


def _scores(rows: list[Response], *, greedy: bool) -> dict[str, list[float]]:
    """Problem -> 1 or 0 for each of its responses of one kind: partial credit is no right answer."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if (row.sample == GREEDY) == greedy:
            found[row.problem].append(float(row.right))
    return found


def _by_task(responses: Sequence[Response]) -> dict[str, list[Response]]:
    found: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        found[response.task].append(response)
    return found


def _completion(node: Node) -> Completion:
    assert node.completion
    return node.completion
