"""What a policy says to held-out queries, scored by the base model too: of what the label-free signals are made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import Stop, Stopped, UserError
from genius_lite.evaluate.checkers import submitted
from genius_lite.evaluate.measure import UNFILTERED, Ended, EvalModel, sample_responses, survivors
from genius_lite.evaluate.signals import Observed
from genius_lite.progress import Advance
from genius_lite.recipe import AnswerKind
from genius_lite.records import Completion, FailedQuery, Query
from genius_lite.results.evaluation import Said
from genius_lite.rundir.checks import completion_faults
from genius_lite.rundir.lines import RecordLog
from genius_lite.sampler.client import LocalSampler
from genius_lite.sampler.tree import Node
from genius_lite.weights import gguf_file


def observe(
    who: EvalModel,
    base: EvalModel | None,
    queries: Sequence[Query],
    samples: int,
    advance: Advance = lambda n: None,
    ended: Ended = lambda stats: None,
    kept: RecordLog[Said] | None = None,
    stop: Stop | None = None,
    remembered: dict[str, list[Completion]] | None = None,
    answers: AnswerKind = "stated",
) -> tuple[list[Observed], list[FailedQuery]]:
    """Responses to held-out queries, sampled at temperature 1, for the label-free signals.

    A query that llama.cpp does not survive, answering or scoring, has none, and the reason instead.

    Args:
        base: the base model, which scores the same tokens; None where it is the one that answers.
        advance: called as responses arrive, `samples` for each query in all.
        ended, kept, stop, remembered: as in `measure.answer_tasks`, by query.
        answers: of which kind the queries' are.

    Raises:
        Stopped: before every query was answered, and scored.
        UserError: what is kept is not what is asked for.
    """
    asked, failures = {query.id for query in queries}, dict[str, str]()
    known, stop = {} if remembered is None else remembered, stop or Stop()
    for one in _kept(kept, who, samples) if kept else ():
        if one.query_id in asked:
            known[one.query_id] = one.responses
    unknown = [query for query in queries if query.id not in known]
    advance(samples * (len(queries) - len(unknown)))

    async def say(sampler: LocalSampler, query: Query) -> None:
        root = Node(None, query.tokens, (who.seed, "observe", query.id))
        found, why = await sample_responses(sampler, root, [(samples, UNFILTERED)], who.max_tokens, advance)
        if why:
            failures[query.id] = why
            return
        known[query.id] = found
        if kept:
            kept.append(Said(query.id, found))

    if unknown:
        asyncio.run(_ask_each(who, unknown, say, samples, stop, ended))
    scored: dict[str, list[list[float]]] = {query.id: [[]] * samples for query in queries}

    async def score(sampler: LocalSampler, query: Query) -> None:
        scored[query.id], why = await survivors(sampler.score(query.tokens, one.tokens) for one in known[query.id])
        if why:
            failures[query.id] = why

    if base:
        asyncio.run(_ask_each(base, [query for query in queries if query.id in known], score, samples, stop))
    seen = list[Observed]()
    with Vocabulary.open(who.gguf) as vocabulary:
        for query in (query for query in queries if query.id not in failures):
            for done, of_base in zip(known[query.id], scored[query.id], strict=True):
                answer, thought_ended = vocabulary.said(query.tokens, done.tokens)
                stated = submitted(answers, answer)
                seen.append(Observed(query.id, done.tokens, done.logprobs, of_base, done.finish, stated, thought_ended))
    return seen, [FailedQuery(query, why) for query, why in failures.items()]


async def _ask_each(
    who: EvalModel,
    queries: Sequence[Query],
    ask: Callable[[LocalSampler, Query], Awaitable[None]],
    responses: int,
    stop: Stop,
    ended: Ended = lambda stats: None,
) -> None:
    """Ask a model something of each query, of as many at once as keep its slots busy with so many `responses` each.

    Raises:
        Stopped: before the last was begun.
    """
    gate, left = asyncio.Semaphore(max(1, 2 * who.settings.slots // responses)), len(queries)

    async def one(query: Query) -> None:
        nonlocal left
        async with gate:
            if not stop.asked:
                left -= 1
                await ask(sampler, query)

    async with who.sampler(UNFILTERED) as sampler:
        await asyncio.gather(*map(one, queries))
        ended(await sampler.drain())
    if left:
        raise Stopped


def _kept(kept: RecordLog[Said], who: EvalModel, samples: int) -> Iterator[Said]:
    """Yield what was said before.

    Raises:
        UserError: a line is not of this model's responses, so many to a query; it is named.
    """
    vocabulary = gguf_file.read(who.gguf).vocabulary
    for number, one in enumerate(kept.records, 1):
        whole = len(one.responses) == samples
        if not whole or any(fault for each in one.responses for fault in completion_faults(each, vocabulary)):
            raise UserError(f"{kept.path}:{number}: these are not the responses that are asked for; delete the line")
        yield one
