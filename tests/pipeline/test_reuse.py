from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

from genius_lite.errors import UserError
from genius_lite.evaluate.record import write_evaluation
from genius_lite.pipeline.job import prepare
from genius_lite.pipeline.reuse import copy_stages
from genius_lite.recipe import Evaluate, Foresight, Learner, Model, Quantize, Queries, Recipe, Sampler, TaskSource
from genius_lite.records import FailedQuery, Query, Rollout, Step
from genius_lite.results.evaluation import GREEDY, Answers, Response
from genius_lite.run import run
from genius_lite.rundir.folder import ANSWERS, RunDir
from genius_lite.rundir.lines import RecordLog, read_records, write_records
from genius_lite.rundir.reader import RunFolder
from tests.conftest import FORKED_HELPERS
from tests.support.models import ANY_PAIRS, questions

pytestmark = FORKED_HELPERS

IDENTITY = {
    "model": "m",
    "weights": None,
    "system": None,
    "template": {"enable_thinking": False},
    "queries": "4, q",
    "answers": "stated",
    "round_queries": None,
    "watched": "w",
    "seed": 0,
    "tasks": ["t"],
    "learner": {"holdout": 0.1, "loss": "aco"},
    "quantize": {"type": "Q8_0", "keep": 0.9},
    "foresight": {"max_tokens": 64, "temperature": 1.0},
    "evaluate": {"samples": 1, "queries": 4, "rollback": True},
    "sampler": {"kv_type": "F16"},
}
QUERIES = [Query(f"{number:016x}", f"question {number}", [1, number]) for number in range(4)]
SEARCHED = [Rollout(query, []) for query in QUERIES[:3]]
RESPONSES = [
    Response("t", problem, sample, f"{problem} {sample}", 2, "end", 1.0)
    for problem in ("one", "two")
    for sample in (GREEDY, 0)
]
HF_CHECKPOINT, EVALUATION, ANSWERED, ROLLOUTS, ADAPTER = (
    "hf-checkpoint",
    "round-0/evaluation",
    "answers to the tasks",
    "rollouts",
    "round-1/adapter",
)
ROUNDED, AS_ROUNDED = "rounded/base.gguf", "rounded/evaluation"
FILES = {
    HF_CHECKPOINT: "hf-checkpoint/w",
    EVALUATION: "round-0/evaluation/responses.jsonl",
    ROUNDED: "rounded/base.gguf",
    AS_ROUNDED: "rounded/evaluation/responses.jsonl",
    ANSWERED: "round-0/answers.jsonl",
    ROLLOUTS: "round-1/rollouts.jsonl",
    ADAPTER: "round-1/adapter/a",
}
IMPORTANCE = "rounded/imatrix.gguf"  # by which the rounded base was quantized


@pytest.fixture
def other(tmp_path) -> Path:
    run = tmp_path / "other"
    for folder in ("hf-checkpoint", "round-0/evaluation", "rounded/evaluation", "round-1/adapter"):
        (run / folder).mkdir(parents=True)
    (run / "hf-checkpoint" / "w").write_text("weights")
    (run / "rounded" / "base.gguf").write_text("rounded weights")
    (run / IMPORTANCE).write_text("importance")
    (run / "round-1" / "adapter" / "a").write_text("adapter")
    for base in ("round-0", "rounded"):
        write_evaluation(run / base / "evaluation", [Answers(r.task, r.problem, [r]) for r in RESPONSES], None)
    write_records(run / "round-1" / "rollouts.jsonl", SEARCHED)
    (run / "recipe.json").write_text(json.dumps(IDENTITY))
    return run


@pytest.fixture
def own(tmp_path) -> RunDir:
    (tmp_path / "own").mkdir()
    return RunDir(tmp_path / "own")


def changed(**sections) -> dict:
    identity = copy.deepcopy(IDENTITY)
    for name, value in sections.items():
        identity[name] = {**identity[name], **value} if isinstance(value, dict) else value
    return identity


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (changed(), [HF_CHECKPOINT, EVALUATION, ROUNDED, AS_ROUNDED, ROLLOUTS, ADAPTER]),
        (changed(learner={"loss": "dpo"}), [HF_CHECKPOINT, EVALUATION, ROUNDED, AS_ROUNDED, ROLLOUTS]),
        (changed(learner={"targets": ["q_proj"]}), [HF_CHECKPOINT, EVALUATION, ROLLOUTS]),
        (changed(evaluate={"rollback": False}), [HF_CHECKPOINT, EVALUATION, ROUNDED, AS_ROUNDED, ROLLOUTS, ADAPTER]),
        (changed(quantize={"keep": 0.5}), [HF_CHECKPOINT, EVALUATION, ROUNDED, AS_ROUNDED, ROLLOUTS, ADAPTER]),
        (changed(quantize={"type": "F16"}), [HF_CHECKPOINT, EVALUATION, ROLLOUTS, ADAPTER]),
        (changed(evaluate={"samples": 2}), [HF_CHECKPOINT, ROUNDED, ROLLOUTS, ADAPTER]),
        (changed(evaluate={"queries": 8}, watched="others"), [HF_CHECKPOINT, ROUNDED, ANSWERED, ROLLOUTS]),
        (changed(foresight={"temperature": 0.6}), [HF_CHECKPOINT, EVALUATION, ROUNDED, AS_ROUNDED]),
        (changed(foresight={"max_tokens": 32}), [HF_CHECKPOINT, ROUNDED]),
        (changed(foresight={"thought_tokens": 32}), [HF_CHECKPOINT, ROUNDED]),
        (changed(queries="4, others", watched="others"), [HF_CHECKPOINT, ROUNDED, ANSWERED, ROLLOUTS]),
        (changed(answers="numeric"), [HF_CHECKPOINT, ROUNDED, ANSWERED, ROLLOUTS]),  # what is held out is judged by it
        (changed(round_queries=2), [HF_CHECKPOINT, EVALUATION, ROUNDED, AS_ROUNDED, ROLLOUTS]),
        (changed(tasks=["others"]), [HF_CHECKPOINT, ROUNDED, ROLLOUTS, ADAPTER]),
        # Of rollouts the prompts themselves are compared, below.
        (changed(system="Be brief."), [HF_CHECKPOINT, ROUNDED, ROLLOUTS]),
        (changed(template={"enable_thinking": True}), [HF_CHECKPOINT, ROUNDED, ROLLOUTS]),
        (changed(seed=1), [HF_CHECKPOINT, ROUNDED]),
        (changed(sampler={"kv_type": "Q8_0"}), [HF_CHECKPOINT, ROUNDED]),
        (changed(weights="full"), [EVALUATION, ROLLOUTS]),  # round 1 samples the user's own file
        (changed(model="another"), []),
    ],
)
def test_only_what_would_come_out_the_same_is_taken(own, other, identity, expected):
    assert copy_stages(own, identity, QUERIES[:3], other) == expected
    files = {FILES[name] for name in expected} | ({IMPORTANCE} if ROUNDED in expected else set())
    assert {str(p.relative_to(own.path)) for p in own.path.rglob("*") if p.is_file()} == files
    assert copy_stages(own, identity, QUERIES[:3], other) == [], "what is there is left alone"


def test_a_rounded_base_comes_with_its_own_importance_or_not_at_all(own, other):
    (own / "rounded").mkdir()
    (own / IMPORTANCE).write_text("of another adapter, when this run was stopped")
    assert ROUNDED not in copy_stages(own, IDENTITY, QUERIES[:3], other)
    (own / IMPORTANCE).unlink()
    (other / IMPORTANCE).unlink()
    assert ROUNDED not in copy_stages(own, IDENTITY, QUERIES[:3], other)
    (other / IMPORTANCE).write_text("importance")
    assert copy_stages(own, IDENTITY, QUERIES[:3], other) == [ROUNDED, AS_ROUNDED]


def test_a_finished_evaluation_is_not_given_answers(own, other):
    shutil.copytree(other / "round-0", own / "round-0")
    assert ANSWERED not in copy_stages(own, changed(watched="others"), QUERIES, other)


def test_answers_come_by_problem_as_an_interrupted_evaluation_keeps_them(own, other):
    copy_stages(own, changed(watched="others"), [], other)
    assert read_records(own / "round-0" / ANSWERS, Answers) == [
        Answers("t", "one", RESPONSES[:2]),
        Answers("t", "two", RESPONSES[2:]),
    ]


@pytest.mark.parametrize(
    ("queries", "shared", "said"),
    [
        (QUERIES, [0, 1, 2], ["rollouts of 3 of 4 queries"]),
        ([QUERIES[2], QUERIES[3], QUERIES[0]], [0, 2], ["rollouts of 2 of 3 queries"]),
        ([Query(QUERIES[1].id, QUERIES[1].prompt, [7, 1])], [], []),  # under another system message
        (QUERIES[3:], [], []),
    ],
)
def test_rollouts_are_taken_by_question_and_prompt(own, other, queries, shared, said):
    assert copy_stages(own, changed(tasks=["others"]), queries, other)[2:] == said
    assert (own / "round-1").exists() == bool(shared), "no folder of a round for nothing"
    log = own.sub("round-1") / "rollouts.jsonl"
    assert log.exists() == bool(shared)
    assert [*RecordLog(log, Rollout).records] == [SEARCHED[n] for n in shared]


def test_of_an_interrupted_run_what_is_whole_is_taken(own, other):
    with (other / "round-1" / "rollouts.jsonl").open("ab") as file:
        file.write(b'{"query":{"id":"0000')
    assert copy_stages(own, IDENTITY, QUERIES, other)[-1] == "rollouts of 3 of 4 queries"


def test_what_this_run_searched_already_is_filled_up(own, other):
    """A first try was interrupted, or another question was searched here before."""
    log = own.sub("round-1") / "rollouts.jsonl"
    write_records(log, [SEARCHED[1]])
    assert copy_stages(own, IDENTITY, QUERIES[:3], other)[-2:] == ["rollouts of 2 of 3 queries", "round-1/adapter"]
    assert [*RecordLog(log, Rollout).records] == [SEARCHED[1], SEARCHED[0], SEARCHED[2]]


def test_what_was_learned_from_is_not_filled_up(own, other):
    here = own.sub("round-1")
    write_records(here / "rollouts.jsonl", [SEARCHED[1]])
    (here / "pairs.jsonl").touch()
    assert "rollouts" not in " ".join(copy_stages(own, IDENTITY, QUERIES[:3], other))
    assert [*RecordLog(here / "rollouts.jsonl", Rollout).records] == [SEARCHED[1]]


def test_a_query_that_failed_here_stays_failed(own, other):
    here = own.sub("round-1")
    write_records(here / "failed.jsonl", [FailedQuery(QUERIES[0].id, "it died")])
    assert copy_stages(own, IDENTITY, QUERIES[:3], other)[-1] == "rollouts of 2 of 3 queries"
    assert [*RecordLog(here / "rollouts.jsonl", Rollout).records] == SEARCHED[1:]


def test_no_adapter_is_taken_that_learned_from_other_rollouts(own, other):
    own_rollout = Rollout(QUERIES[0], [Step(0, [], [], foreseen=False)])
    write_records(own.sub("round-1") / "rollouts.jsonl", [own_rollout])
    assert copy_stages(own, IDENTITY, QUERIES[:3], other)[-1] == "rollouts of 2 of 3 queries"


def test_a_folder_of_another_version_has_no_evaluation_to_take(own, other):
    older = {key: value for key, value in IDENTITY.items() if key != "evaluate"}
    (other / "recipe.json").write_text(json.dumps(older))
    assert copy_stages(own, IDENTITY, QUERIES[:3], other) == [HF_CHECKPOINT, ROUNDED, ROLLOUTS, ADAPTER]


def test_a_damaged_line_is_named(own, other):
    (other / "round-1" / "rollouts.jsonl").write_text("no record\n")
    with pytest.raises(UserError, match=r"rollouts\.jsonl:1: damaged record"):
        copy_stages(own, IDENTITY, QUERIES, other)


def test_the_log_is_a_copy_that_can_grow(own, other):
    copy_stages(own, IDENTITY, QUERIES, other)
    RecordLog(own / "round-1" / "rollouts.jsonl", Rollout).append(Rollout(QUERIES[3], []))
    assert read_records(other / "round-1" / "rollouts.jsonl", Rollout) == SEARCHED


def test_pairs_come_with_what_was_learned_from_them(own, other):
    for name in ("filtered.json", "pairs.jsonl"):
        (other / "round-1" / name).write_text(name)
    copy_stages(own, changed(quantize={"type": "F16"}), QUERIES[:3], other)
    assert {p.name for p in (own / "round-1").iterdir()} == {
        "rollouts.jsonl",
        "filtered.json",
        "pairs.jsonl",
        "adapter",
    }


def test_no_adapter_is_taken_that_learned_from_fewer_questions(own, other):
    copy_stages(own, IDENTITY, QUERIES, other)
    assert not (own / "round-1" / "adapter").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        copy_stages(RunDir(tmp_path), IDENTITY, [], tmp_path / "nothing")


def test_a_run_that_asks_more_goes_on_from_one_that_asked_few(tiny_llama, tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"prompt": f"Say {n}.", "answer": f"{n}"}) + "\n" for n in range(3)))

    def recipe(limit: int, holdout: float) -> Recipe:
        return Recipe(
            out=str(tmp_path / f"of-{limit}"),
            model=Model(gguf=str(tiny_llama)),
            queries=Queries(source=questions(tmp_path, 9), limit=limit),
            rounds=1,
            foresight=Foresight(beams=1, candidates=2, steps=2, max_tokens=12),
            pairs=ANY_PAIRS,
            learner=Learner(rank=2, batch_pairs=4, parity_limit=100, holdout=holdout),
            quantize=Quantize(type="Q8_0"),
            evaluate=Evaluate(tasks=[TaskSource(source=str(problems), check="exact")], queries=2, query_samples=2),
            sampler=Sampler(slots=4, threads=1),
        )

    run(recipe(3, holdout=0.0))
    run(recipe(7, holdout=0.25), reuse=tmp_path / "of-3")
    few, more = (
        {r.query.id: r for r in read_records(tmp_path / f"of-{n}" / "round-1" / "rollouts.jsonl", Rollout)}
        for n in (3, 7)
    )
    held = prepare(recipe(7, holdout=0.25)).held_out
    assert held & few.keys(), "one that the other run searched is to be held out of this one"
    assert (len(few), len(more), held & more.keys()) == (3, 5, set())
    assert {query: more[query] for query in few.keys() - held} == {query: few[query] for query in few.keys() - held}
    assert RunFolder(tmp_path / "of-7").round(0).responses == RunFolder(tmp_path / "of-3").round(0).responses
    signals = [(tmp_path / f"of-{n}" / "round-0" / "evaluation" / "signals.json").read_text() for n in (3, 7)]
    assert signals[0] != signals[1], "other queries are watched"
    rounded = [(tmp_path / f"of-{n}" / "rounded" / "base.gguf").stat().st_ino for n in (3, 7)]
    assert rounded[0] == rounded[1]
