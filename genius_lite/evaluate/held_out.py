"""What a policy says to held-out queries, scored by the base model too: of what the label-free signals are made."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.evaluate.checkers import read_answer
from genius_lite.evaluate.measure import EvalModel, Key, Sampled, ask_each, checked, sample_each
from genius_lite.evaluate.signals import Observed
from genius_lite.progress import Advance
from genius_lite.recipe import AnswerKind
from genius_lite.records import FailedQuery, Query
from genius_lite.results.evaluation import Said
from genius_lite.rundir.lines import RecordLog
from genius_lite.sampler.client import LocalSampler
from genius_lite.sampler.interface import run_until_complete
from genius_lite.weights import gguf_file


def observe(
    who: EvalModel,
    base: EvalModel | None,
    queries: Sequence[Query],
    answers: AnswerKind = "stated",
    advance: Advance = lambda n: None,
    kept: RecordLog[Said] | None = None,
    known: Sampled | None = None,
) -> tuple[list[Observed], list[FailedQuery]]:
    """Responses to held-out queries, sampled at temperature 1, for the label-free signals.

    A query that llama.cpp does not survive, answering or scoring, has none, and the reason instead.

    Args:
        base: the base model, which scores the same tokens; None where it is the one that answers.
        answers: of which kind the queries' are.
        advance: called as responses arrive, `who.samples` for each query in all.
        kept, known: as in `measure.answer_tasks`.

    Raises:
        Stopped: before every query was answered, and scored.
        UserError: what is kept is not what is asked for.
    """
    sampled: Sampled = {} if known is None else known
    asked, failures = {("", query.id): query for query in queries}, dict[Key, str]()
    tokens = gguf_file.read(who.gguf).vocabulary
    earlier = checked(kept, lambda one: who.may_have_said(one.responses, tokens))
    sampled |= {one.key: one.responses for one in earlier if one.key in asked}
    advance(who.samples * sum(key in sampled for key in asked))

    async def note(key: Key, why: str | None) -> None:
        if why:
            failures[key] = why
        elif kept:
            kept.append(Said(key[1], sampled[key]))

    run_until_complete(sample_each(who, asked, sampled, advance, note))
    scores: dict[Key, list[list[float]]] = {key: [[]] * who.samples for key in asked}

    def score(sampler: LocalSampler, key: Key) -> Iterator[Awaitable[list[float]]]:
        return (sampler.score(asked[key].tokens, done.tokens) for done in sampled[key])

    async def note_scores(key: Key, found: list[list[float]], why: str | None) -> None:
        scores[key] = found
        if why:
            failures[key] = why

    if base:
        run_until_complete(ask_each(base, [key for key in asked if key in sampled], score, note_scores))
    seen = list[Observed]()
    with Vocabulary.open(who.gguf) as vocabulary:
        for key, query in asked.items():
            if key in failures:
                continue
            for done, of_base in zip(sampled[key], scores[key], strict=True):
                answer, thought_ended = vocabulary.said(query.tokens, done.tokens)
                stated = read_answer(answers, answer)
                seen.append(Observed(query.id, done.tokens, done.logprobs, of_base, done.finish, stated, thought_ended))
    return seen, [FailedQuery(key[1], why) for key, why in failures.items()]
