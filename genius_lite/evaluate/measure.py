"""Let a policy answer problems through llama.cpp, with the base model's prompts and seeds, and score what it says."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import Stop, Stopped, UserError
from genius_lite.evaluate.tasks import Problem, Task, TokenizedTask
from genius_lite.progress import Advance
from genius_lite.recipe import Auto
from genius_lite.records import Completion, Query
from genius_lite.results.evaluation import GREEDY, Answers, Response, Said, Use
from genius_lite.results.rounds import Stats
from genius_lite.rundir.checks import completion_faults
from genius_lite.rundir.lines import RecordLog
from genius_lite.sampler.client import LocalSampler, QueryFailedError, open_sampler
from genius_lite.sampler.interface import all_or_none, run_until_complete
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.tree import Node
from genius_lite.weights.gguf_file import GGUF

_LEAST = 0.01  # temperature that a recommendation has
_USUAL = 0.7  # temperature, where nothing says

T = TypeVar("T")
Record = TypeVar("Record", Answers, Said)

Key = tuple[str, str]
"""Task and id of a question; a held-out query's task is empty."""
Sampled = dict[Key, list[Completion]]
"""All responses to each question, the likeliest first if it was asked for."""


@dataclass(frozen=True)
class EvalModel:
    """A model that is to answer, and how: by the likeliest response, if `greedy`, and `samples` at the `temperature`.

    Each has at most `max_tokens`, drawn by the random numbers of `seed`. llama.cpp's messages go to the file `log`;
    `say` is told in one line of every failure of its process. Once `stop` is asked for no other question is begun.
    `totals` has what each of its samplers did; copies share both.
    """

    gguf: Path
    settings: EngineSettings
    max_tokens: int
    seed: int
    samples: int
    temperature: float = 1.0
    greedy: bool = False
    log: Path = Path(os.devnull)
    say: Callable[[str], None] = lambda line: None
    stop: Stop = field(default_factory=Stop)
    totals: list[Stats] = field(default_factory=list)

    @property
    def responses(self) -> int:
        """How many responses a question has."""
        return self.greedy + self.samples

    def may_have_said(self, responses: Sequence[Completion], vocabulary: int) -> bool:
        """Say whether these can be the responses to a question, in tokens of a vocabulary of this size."""
        faults = (fault for one in responses for fault in completion_faults(one, vocabulary))
        longest = max((len(one.tokens) for one in responses), default=0)
        return len(responses) == self.responses and longest <= self.max_tokens and not any(faults)

    def sampler(self) -> AbstractAsyncContextManager[LocalSampler]:
        """The engine that holds it; each request says how it samples."""
        return open_sampler(self.gguf, self.settings, Sampling(1.0), self.log, say=self.say)


def temperature_of(wanted: float | Auto, model: GGUF, weights: Path | None = None) -> float:
    """The temperature of later use: as wanted, else what the model's file or its weights' folder recommends, else 0.7.

    A recommendation of 0, or hardly more, is none: the likeliest response is measured anyway.

    Raises:
        UserError: the folder's file is no JSON.
    """
    if wanted != "auto":
        return wanted
    config = weights / "generation_config.json" if weights else None
    try:
        beside = json.loads(config.read_text(encoding="utf-8-sig")) if config and config.is_file() else {}
    except ValueError as e:
        raise UserError(f"{config}: not JSON ({e}); mend it, or write evaluate.temperature") from None
    recommended = beside.get("temperature") if isinstance(beside, dict) else None
    for found in (recommended, model.metadata.get("general.sampling.temp")):
        if isinstance(found, int | float) and _LEAST <= found < math.inf:
            return float(f"{found:.4g}")  # a GGUF's is in float32
    return _USUAL


def answer_tasks(
    who: EvalModel,
    tasks: Sequence[TokenizedTask],
    advance: Advance = lambda n: None,
    kept: RecordLog[Answers] | None = None,
    known: Sampled | None = None,
) -> list[Answers]:
    """Every response to every problem, scored.

    A problem that llama.cpp does not survive has none, and the reason instead.

    Args:
        advance: called as responses arrive: all that are wanted, less those that are kept.
        kept: answers of an earlier, interrupted call, whose problems are not asked again; each other one is appended.
        known: responses that are not sampled again, but scored; those sampled are added.

    Raises:
        Stopped: before every problem was answered.
        UserError: what is kept is not what is asked for.
    """
    sampled: Sampled = {} if known is None else known
    asked: dict[Key, tuple[Task, Problem, Query, Use]] = {
        (item.task.name, problem.id): (item.task, problem, query, use)
        for item in tasks
        for problem, query, use in zip(item.task.problems, item.questions, item.uses, strict=True)
    }
    first = GREEDY if who.greedy else 0

    def whole(one: Answers) -> bool:
        if one.key not in asked:  # a sweep's log has what its second half asks, too
            return True
        samples = [] if one.failure else [*range(first, who.samples)]
        return [(r.task, r.problem, r.sample) for r in one.responses] == [(*one.key, sample) for sample in samples]

    answered = {one.key: one for one in checked(kept, whole)}

    async def score(key: Key, sample: int, done: Completion) -> Response:
        task, problem, query, use = asked[key]
        said = vocabulary.said(query.tokens, done.tokens).answer
        # In a thread: a checker may take a second, and the sampler goes on meanwhile.
        verdict = await asyncio.to_thread(task.check, problem, said)
        return Response(
            *(task.name, problem.id, sample),
            text=vocabulary.decode(done.tokens),
            tokens=len(done.tokens),
            finish=done.finish,
            score=verdict.score,
            answer=verdict.answer if said else None,
            timed_out=verdict.timed_out,
            use=use,
            temperature=0.0 if sample == GREEDY else who.temperature,
        )

    async def judge(key: Key, why: str | None = None) -> None:
        responses = [await score(key, *drawn) for drawn in enumerate([] if why else sampled[key], first)]
        answered[key] = Answers(*key, responses, why)
        if kept:
            kept.append(answered[key])

    async def answer() -> None:
        left = {key: query for key, (_, _, query, _) in asked.items() if key not in answered}
        recalled = [key for key in left if key in sampled]
        if recalled and who.stop.asked:
            raise Stopped
        for key in recalled:
            advance(len(sampled[key]))
        await asyncio.gather(*map(judge, recalled), sample_each(who, left, sampled, advance, judge))

    try:
        with Vocabulary.open(who.gguf) as vocabulary:
            run_until_complete(answer())
    finally:
        for item in tasks:
            item.task.close()  # a scorer's process idles through no training
    return [answered[key] for key in asked]


async def sample_each(
    who: EvalModel,
    questions: Mapping[Key, Query],
    sampled: Sampled,
    advance: Advance,
    then: Callable[[Key, str | None], Awaitable[None]],
) -> None:
    """Add a model's responses to those questions that have none; `then` is called with each, or why it has none still.

    Raises:
        Stopped: before every question was asked.
    """

    def ask(sampler: LocalSampler, key: Key) -> list[asyncio.Future[Node]]:
        drawn = ("evaluate", *key) if key[0] else ("observe", key[1])
        root, sampling = Node(None, questions[key].tokens, (who.seed, *drawn)), Sampling(who.temperature)
        futures = sampler.extend(
            root, who.samples, until="end", limit=who.max_tokens, sampling=sampling, likeliest=who.greedy
        )
        for future in futures:
            future.add_done_callback(lambda _: advance(1))
        return futures

    async def note(key: Key, nodes: list[Node], why: str | None) -> None:
        if not why:
            sampled[key] = [cast("Completion", node.completion) for node in nodes]
        await then(key, why)

    await ask_each(who, [key for key in questions if key not in sampled], ask, note)


async def ask_each(
    who: EvalModel,
    asked: Sequence[Key],
    ask: Callable[[LocalSampler, Key], Iterable[Awaitable[T]]],
    then: Callable[[Key, list[T], str | None], Awaitable[None]],
) -> None:
    """Make the requests of each question, of as many at once as keep a model's slots busy.

    Args:
        then: is given what they came to, while the sampler goes on; nothing, and the reason, where llama.cpp does not
            survive one of them.

    Raises:
        Stopped: before the last was begun; those under way go on to their end.
    """
    gate, left = asyncio.Semaphore(max(1, 2 * who.settings.slots // who.responses)), len(asked)

    async def one(key: Key) -> None:
        nonlocal left
        found, why = list[T](), None
        async with gate:
            if who.stop.asked:
                return
            left -= 1
            try:
                found = await all_or_none(ask(sampler, key))
            except QueryFailedError as e:
                why = str(e)
        await then(key, found, why)

    if not asked:
        return
    if who.stop.asked:
        raise Stopped
    async with who.sampler() as sampler:
        await asyncio.gather(*map(one, asked))
        who.totals.append(await sampler.drain())
    if left:
        raise Stopped


def checked(kept: RecordLog[Record] | None, whole: Callable[[Record], bool]) -> Iterator[Record]:
    """Yield what was answered before.

    Raises:
        UserError: a line is not `whole`, which is named.
    """
    for number, one in enumerate(kept.records if kept else (), 1):
        if kept and not whole(one):
            raise UserError(f"{kept.path}:{number}: these are not the responses that are asked for; delete the line")
        yield one
