"""Let a policy answer problems through llama.cpp, with the base model's prompts and seeds, and score what it says."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import Stop, Stopped, UserError
from genius_lite.evaluate.tasks import Problem, Task, TokenizedTask
from genius_lite.progress import Advance
from genius_lite.recipe import Auto, Evaluate
from genius_lite.records import Completion, Query
from genius_lite.results.evaluation import GREEDY, Answers, Response, Use
from genius_lite.results.rounds import Stats
from genius_lite.rundir.lines import RecordLog
from genius_lite.sampler.client import LocalSampler, QueryFailedError, open_sampler
from genius_lite.sampler.interface import all_or_none
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.tree import Node
from genius_lite.weights.gguf_file import GGUF

UNFILTERED, _GREEDY = Sampling(1.0), Sampling(1.0, top_k=1)
_LEAST = 0.01  # temperature that a recommendation has
_USUAL = 0.7  # temperature, where nothing says

T = TypeVar("T")

Ended = Callable[[Stats], None]


@dataclass(frozen=True)
class EvalModel:
    """A model that is to answer, and how: at most `max_tokens` a response, with the random numbers of `seed`.

    llama.cpp's messages go to the file `log`; `say` is told in one line of every failure of its process.
    """

    gguf: Path
    settings: EngineSettings
    max_tokens: int
    seed: int
    log: Path
    say: Callable[[str], None] = lambda line: None

    def sampler(self, sampling: Sampling) -> AbstractAsyncContextManager[LocalSampler]:
        """The engine that holds it."""
        return open_sampler(self.gguf, self.settings, sampling, self.log, say=self.say)


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
    cfg: Evaluate,
    temperature: float,
    advance: Advance = lambda n: None,
    ended: Ended = lambda stats: None,
    kept: RecordLog[Answers] | None = None,
    stop: Stop | None = None,
    remembered: dict[tuple[str, str], list[Completion]] | None = None,
) -> list[Answers]:
    """Every response to every problem: the greedy one and `cfg.samples` at the temperature, scored.

    A problem that llama.cpp does not survive has none, and the reason instead.

    Args:
        advance: called as responses arrive, `responses_wanted` less those that are kept in all.
        ended: told the sampler's totals.
        kept: answers of an earlier, interrupted call, whose problems are not asked again; each other one is appended.
        stop: once it is asked for no other problem is begun; those under way go on to their end.
        remembered: responses by task and problem, which are not sampled again, but scored; those sampled are added.

    Raises:
        Stopped: before every problem was answered.
        UserError: what is known is not what is asked for.
    """
    wanted, known = ways_asked(cfg, temperature), {} if remembered is None else remembered
    asked = [(item.task.name, problem.id) for item in tasks for problem in item.task.problems]
    answered = {(one.task, one.problem): one for one in (_checked(kept, {*asked}, cfg) if kept else [])}
    idle = all(one in answered or one in known for one in asked)
    gate = asyncio.Semaphore(max(1, 2 * who.settings.slots // (cfg.samples + cfg.greedy)))

    async def answer(
        sampler: LocalSampler | None, vocabulary: Vocabulary, task: Task, problem: Problem, query: Query, use: Use
    ) -> None:
        one, why = (task.name, problem.id), None
        async with gate:
            if one in answered or (stop and stop.asked):
                return
            if (found := known.get(one)) is not None:
                advance(len(found))
            else:
                assert sampler
                root = Node(None, query.tokens, (who.seed, "evaluate", task.name, query.id))
                found, why = await sample_responses(sampler, root, wanted, who.max_tokens, advance)
                if not why:
                    known[one] = found
        responses = []
        for sample, done in enumerate(found, GREEDY if cfg.greedy else 0):
            said = vocabulary.said(query.tokens, done.tokens).answer
            # In a thread: a checker may take a second, and the sampler goes on meanwhile.
            verdict = await asyncio.to_thread(task.check, problem, said)
            responses.append(
                Response(
                    task=task.name,
                    problem=problem.id,
                    sample=sample,
                    text=vocabulary.decode(done.tokens),
                    tokens=len(done.tokens),
                    finish=done.finish,
                    score=verdict.score,
                    answer=verdict.answer if said else None,
                    timed_out=verdict.timed_out,
                    use=use,
                    temperature=0.0 if sample == GREEDY else temperature,
                )
            )
        answered[one] = Answers(*one, responses, why)
        if kept:
            kept.append(answered[one])

    async def ask() -> None:
        with Vocabulary.open(who.gguf) as vocabulary:
            async with nullcontext() if idle else who.sampler(Sampling(temperature)) as sampler:
                await asyncio.gather(
                    *(
                        answer(sampler, vocabulary, item.task, problem, query, use)
                        for item in tasks
                        for problem, query, use in zip(item.task.problems, item.questions, item.uses, strict=True)
                    )
                )
                if sampler:
                    ended(await sampler.drain())

    try:
        asyncio.run(ask())
    finally:
        for item in tasks:
            item.task.close()  # a scorer's process idles through no training
    if any(one not in answered for one in asked):
        raise Stopped
    return [answered[one] for one in asked]


def _checked(kept: RecordLog[Answers], asked: Container[tuple[str, str]], cfg: Evaluate) -> Iterator[Answers]:
    """Yield what is known of the problems asked; each must be whole. A sweep's log has what its second half asks, too.

    Raises:
        UserError: one is not, which is named.
    """
    samples = [*range(GREEDY if cfg.greedy else 0, cfg.samples)]
    for number, one in enumerate(kept.records, 1):
        if (one.task, one.problem) not in asked:
            continue
        whole = [response.sample for response in one.responses] == ([] if one.failure else samples)
        if not whole or any((r.task, r.problem) != (one.task, one.problem) for r in one.responses):
            raise UserError(f"{kept.path}:{number}: these are not the responses that are asked for; delete the line")
        yield one


def ways_asked(cfg: Evaluate, temperature: float) -> list[tuple[int, Sampling]]:
    """How a problem is asked: so many responses with each sampling, the greedy one first."""
    return [(1, _GREEDY)] * cfg.greedy + [(cfg.samples, Sampling(temperature))]


def responses_wanted(tasks: Sequence[TokenizedTask], cfg: Evaluate) -> int:
    """How many responses `answer_tasks` asks for."""
    return sum(len(item.questions) for item in tasks) * (cfg.samples + cfg.greedy)


async def sample_responses(
    sampler: LocalSampler, root: Node, wanted: Sequence[tuple[int, Sampling]], limit: int, advance: Advance
) -> tuple[list[Completion], str | None]:
    """So many responses with each sampling; none, and the reason, if llama.cpp does not survive them."""
    futures = []
    for count, sampling in wanted:
        futures += sampler.extend(root, count, until="end", limit=limit, sampling=sampling)
    for future in futures:
        future.add_done_callback(lambda _: advance(1))
    nodes, why = await survivors(futures)
    return [cast("Completion", node.completion) for node in nodes], why


async def survivors(requests: Iterable[Awaitable[T]]) -> tuple[list[T], str | None]:
    """What a problem's requests came to; none, and the reason, if one failed: the others are given up then."""
    try:
        return await all_or_none(requests), None
    except QueryFailedError as e:
        return [], str(e)
