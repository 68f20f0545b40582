from __future__ import annotations

import pytest

from genius_lite.errors import UserError
from genius_lite.pipeline.job import Job, prepare
from genius_lite.recipe import Evaluate, Foresight, Learner, Model, Queries, Recipe


def _job(
    tmp_path, model, questions: list[str], watched: int = 16, holdout: float = 0.1, patience: int | None = None
) -> Job:
    source = tmp_path / "q.txt"
    source.write_text("\n".join(questions))
    return prepare(
        Recipe(
            out=str(tmp_path / "run"),
            model=Model(gguf=str(model)),
            queries=Queries(source=str(source), limit=10),
            foresight=Foresight(max_tokens=16),
            learner=Learner(holdout=holdout),
            evaluate=Evaluate(queries=watched, patience=patience),
        )
    )


def test_the_guard_watches_the_held_out_and_then_what_lies_beyond_the_limit(tmp_path, tiny_llama):
    texts = [chr(ord("a") + n) for n in range(14)]
    job = _job(tmp_path, tiny_llama, texts)
    (held,) = job.held_out
    watched = [q.prompt for q in job.watched]
    assert job.watched[0].id == held
    assert [q for q in job.queries if q.id != held] == job.searched
    assert watched[1:] == texts[10:]
    assert [q.prompt for q in job.queries] == texts[:10]
    assert [q.prompt for q in _job(tmp_path, tiny_llama, texts, watched=3).watched] == watched[:3]
    unwatched = _job(tmp_path, tiny_llama, texts, watched=0)
    assert (unwatched.watched, unwatched.held_out) == ([], frozenset())
    assert unwatched.searched == unwatched.queries, "what nobody watches is learned from"
    assert [q.prompt for q in _job(tmp_path, tiny_llama, texts, holdout=0.0).watched] == texts[10:]


def test_what_was_not_asked_for_needs_no_larger_context(tmp_path, tiny_llama):
    short = [chr(ord("a") + n) for n in range(10)]
    job = _job(tmp_path, tiny_llama, [*short, "far too long " * 100, "k"])
    assert [q.prompt for q in job.watched][1:] == ["k"]
    assert job.context == _job(tmp_path, tiny_llama, short).context


def test_another_question_that_is_watched_is_another_run(tmp_path, tiny_llama):
    texts = [chr(ord("a") + n) for n in range(11)]
    before, after = (_job(tmp_path, tiny_llama, [*texts, last]).identity() for last in "xy")
    assert {key for key in before if before[key] != after[key]} == {"watched"}


@pytest.mark.parametrize(("held", "beyond"), [(0.1, 0), (0.0, 1)])
def test_patience_judges_by_what_is_held_out_or_lies_beyond(tmp_path, tiny_llama, held, beyond):
    texts = [chr(ord("a") + n) for n in range(10 + beyond)]
    assert _job(tmp_path, tiny_llama, texts, holdout=held, patience=1).watched


@pytest.mark.parametrize(("held", "count"), [(0.0, 10), (0.1, 4)])
def test_patience_that_nothing_can_judge_by_is_refused(tmp_path, tiny_llama, held, count):
    texts = [chr(ord("a") + n) for n in range(count)]
    assert not _job(tmp_path, tiny_llama, texts, holdout=held).watched
    with pytest.raises(UserError, match=r"q\.txt: evaluate\.patience has no queries to judge"):
        _job(tmp_path, tiny_llama, texts, holdout=held, patience=1)
