from __future__ import annotations

import json
from dataclasses import replace

import llama_cpp
import msgspec
import pytest

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import Stop, Stopped, UserError
from genius_lite.evaluate.benchmarks import load_tasks
from genius_lite.evaluate.checkers import extract_answer
from genius_lite.evaluate.held_out import observe
from genius_lite.evaluate.measure import EvalModel, Sampled, answer_tasks
from genius_lite.evaluate.results import results
from genius_lite.evaluate.tasks import tokenize_task
from genius_lite.recipe import CheckOptions, TaskSource
from genius_lite.records import Query
from genius_lite.results.evaluation import GREEDY, Answers, Response
from genius_lite.rundir.lines import RecordLog
from genius_lite.sampler.messages import EngineSettings

SETTINGS = EngineSettings(slots=4, context=256, threads=1)


def row(problem: str, sample: int, score: float, task: str = "t") -> Response:
    return Response(task, problem, sample, "", 10, "end", score)


def test_accuracies_and_paired_gains_by_hand():
    base = [row("a", GREEDY, 0), row("a", 0, 0), row("a", 1, 1), row("b", GREEDY, 1), row("b", 0, 0), row("b", 1, 0)]
    tuned = [row("a", GREEDY, 1), row("a", 0, 1), row("a", 1, 1), row("b", GREEDY, 1), row("b", 0, 0), row("b", 1, 1)]
    (alone,) = results(base)
    assert alone.greedy and alone.sampled and alone.sampled_gain is None and alone.mcnemar is None
    assert (alone.problems, alone.samples, alone.cut, alone.length) == (2, 2, 0.0, 10.0)
    assert (alone.greedy.estimate, alone.sampled.estimate) == (0.5, 0.25)
    (beside,) = results(tuned, base)
    assert beside.sampled_gain and beside.greedy_gain and beside.mcnemar
    assert beside.sampled_gain.estimate == pytest.approx(0.5)
    assert beside.greedy_gain.estimate == pytest.approx(0.5)
    assert (beside.mcnemar.gained, beside.mcnemar.lost) == (1, 0)
    assert beside.judged.estimate == pytest.approx(0.875)
    assert beside.judged_gain and beside.judged_gain.estimate == pytest.approx(0.5 * (0.5 + 0.5))


def test_tasks_stay_apart_and_may_lack_greedy_responses():
    found = results([row("a", 0, 1), row("a", 0, 1, task="other"), row("b", 0, 0.5, task="other")])
    assert [(r.task, r.greedy) for r in found] == [("t", None), ("other", None)]
    assert found[1].sampled and found[1].sampled.estimate == 0.5


def test_two_tasks_of_one_name_are_refused(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.jsonl").write_text(json.dumps({"prompt": "1 + 1?", "answer": "2"}) + "\n")
    sources = [TaskSource(source=str(tmp_path / folder / "t.jsonl")) for folder in ("x", "y")]
    with pytest.raises(UserError, match="two tasks are named t"):
        load_tasks(sources)


def test_a_source_may_be_asked_in_several_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "1 + 1?", "answer": "2"}) + "\n")
    sources = [
        TaskSource(source=str(tmp_path / "t.jsonl")),
        TaskSource(source="t.jsonl", check="numeric"),
        TaskSource(source="./t.jsonl", options=CheckOptions(ignore_case=True)),
    ]
    found = load_tasks(sources)
    assert [task.name for task in found] == ["t", "t-2", "t-3"]
    assert [task.check(task.problems[0], "It is 2.").score for task in found] == [0, 1, 0]
    with pytest.raises(UserError, match=r"t\.jsonl is named twice, to be asked in the same way; take one out"):
        load_tasks([*sources, sources[1]])
    (tmp_path / "t-2.jsonl").write_text((tmp_path / "t.jsonl").read_text())
    with pytest.raises(UserError, match="two tasks are named t-2"):
        load_tasks([*sources, TaskSource(source=str(tmp_path / "t-2.jsonl"))])


def test_the_real_model_answers_the_same_questions_the_same_way(smollm2, tmp_path):
    rows = [
        {"prompt": "How many legs does a dog have?", "answer": 4},
        {"prompt": "How many days are in a week?", "answer": 8},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tasks = load_tasks([TaskSource(source=str(tmp_path / "t.jsonl"), check="numeric")])
    with Vocabulary.open(smollm2) as vocabulary:
        items = [tokenize_task(task, "auto", vocabulary, None) for task in tasks]
    # One branch at a time, a KV cache of 32 bits, questions whose words are all clearly likelier than the next best:
    # else rounding decides, and it is another in each build of llama.cpp.
    settings = EngineSettings(slots=1, context=256, threads=1, kv_type="F32")
    stop, arrived = Stop(), []
    who = EvalModel(smollm2, settings, max_tokens=10, seed=0, samples=2, greedy=True, log=tmp_path / "log", stop=stop)

    def answers(advance=arrived.append, **more):
        found = answer_tasks(who, items, advance, **more)
        return [response for one in found for response in one.responses]

    first = answers()
    assert len(first) == len(arrived) == who.responses * len(rows) == 6
    assert [r.sample for r in first] == [GREEDY, 0, 1] * 2
    greedy = {r.problem: r for r in first if r.sample == GREEDY}
    by_question = {q.prompt: greedy[q.id] for q in items[0].questions}
    assert (
        "4" in by_question["How many legs does a dog have?"].text
        and by_question["How many legs does a dog have?"].score == 1
    )
    assert by_question["How many days are in a week?"].score == 0
    llama = llama_cpp.Llama(str(smollm2), n_ctx=256, verbose=False, type_k=0, type_v=0)
    for question in items[0].questions:
        said = llama.create_completion(question.tokens, max_tokens=8, temperature=0)["choices"][0]["text"]
        assert by_question[question.prompt].text.startswith(said)
    assert answers() == first

    kept = RecordLog(tmp_path / "answers.jsonl", Answers)
    with pytest.raises(Stopped):
        answers(lambda n: setattr(stop, "asked", True), kept=kept)
    stop.asked = False
    assert [one.responses for one in kept.records] == [first[:3]]
    arrived.clear()
    assert answers(kept=kept) == first
    assert len(arrived) == 3
    assert [one.responses for one in kept.records] == [first[:3], first[3:]]

    # What an earlier run sampled is scored alone, and not at all once a stop was asked for.
    known: Sampled = {}
    assert answers(known=known) == first and len(known) == 2
    arrived.clear()
    again, stop.asked = RecordLog(tmp_path / "again.jsonl", Answers), True
    with pytest.raises(Stopped):
        answers(kept=again, known=dict(known))
    assert not again.records and not arrived
    stop.asked = False
    assert answers(kept=again, known=dict(known)) == first and len(arrived) == len(rows)


def test_a_thought_that_was_cut_off_is_no_answer(smollm2, tmp_path):
    """SmolLM2, whose prompt begins a thought that it never ends, and then one that ends it for it."""
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "What is 2 + 2?", "answer": 4}) + "\n")
    (task,) = load_tasks([TaskSource(source=str(tmp_path / "t.jsonl"), check="numeric")])
    who = EvalModel(smollm2, SETTINGS, max_tokens=12, seed=0, samples=2, log=tmp_path / "log")
    found, seen = {}, {}
    with Vocabulary.open(smollm2) as vocabulary:
        item = tokenize_task(task, "auto", vocabulary, None)
        (question,) = item.questions
        for thought in ("<think>\n", "<think>\n\n</think>\n\n"):
            tokens = question.tokens + vocabulary.encode(thought, special=True)
            asked = replace(item, questions=[msgspec.structs.replace(question, tokens=tokens)])
            (answers,) = answer_tasks(replace(who, samples=0, greedy=True), [asked])
            (found[thought],) = answers.responses
            seen[thought], _ = observe(who, None, asked.questions)
    thinking, answering = found.values()
    assert thinking.text.strip()
    assert (thinking.score, thinking.answer) == (0, None)
    assert answering.answer == task.check(task.problems[0], answering.text).answer
    assert [(o.answer, o.thought_ended) for o in seen["<think>\n"]] == [(None, False)] * 2
    assert [o.thought_ended for o in seen["<think>\n\n</think>\n\n"]] == [None] * 2


def test_the_base_model_scores_what_a_policy_sampled(smollm2, tmp_path):
    with Vocabulary.open(smollm2) as vocabulary:
        queries = [Query("q", "What is 2 + 2?", vocabulary.prompt("What is 2 + 2?"))]
    who = EvalModel(smollm2, SETTINGS, max_tokens=12, seed=0, samples=3, log=tmp_path / "log")
    seen, failures = observe(who, who, queries)
    assert failures == []
    assert [o.query_id for o in seen] == ["q"] * 3
    assert len({tuple(o.tokens) for o in seen}) > 1
    for o in seen:
        # One decodes a token at a time and the other all at once: llama.cpp's kernels round differently.
        assert o.base_logprobs == pytest.approx(o.logprobs, abs=0.3)
    with Vocabulary.open(smollm2) as vocabulary:
        assert [o.answer for o in seen] == [extract_answer(vocabulary.decode(o.tokens)) for o in seen]
