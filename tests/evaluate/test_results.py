"""What several responses to a problem say together, and which problems choose and which report."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from statistics import fmean

import pytest

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.evaluate.measure import temperature_of
from genius_lite.evaluate.results import at_best, best_temperature, by_temperature, choosing_scores, results, votes
from genius_lite.evaluate.scoring import Verdict
from genius_lite.evaluate.statistics import wilson
from genius_lite.evaluate.tasks import Problem, Task, TokenizedTask, from_rows, tokenize_task
from genius_lite.recipe import TaskSource
from genius_lite.records import Finish
from genius_lite.results.evaluation import GREEDY, Commonest, Cooled, Response, Use
from genius_lite.weights import gguf_file


def said(
    problem: str,
    sample: int,
    right: bool,
    answer: str | None = None,
    finish: Finish = "end",
    use: Use = "both",
    temperature: float = 0.7,
) -> Response:
    heat = 0.0 if sample == GREEDY else temperature
    return Response("t", problem, sample, "", 10, finish, float(right), answer, use=use, temperature=heat)


def test_majority_and_pass_by_hand():
    rows = [
        said("a", 0, True, "4"), said("a", 1, True, "4"), said("a", 2, False, "5"), said("a", 3, False, "6"),
        said("b", 0, False, "1"), said("b", 1, False, "1"), said("b", 2, True, "2"), said("b", 3, False, None),
    ]  # fmt: skip
    (found,) = results(rows)
    assert list(found.most) == list(found.some) == ["1", "2", "4"]
    assert found.some["1"].estimate == pytest.approx(3 / 8)
    assert found.some["2"].estimate == pytest.approx(fmean([1 - 1 / 6, 1 - 3 / 6]))
    assert found.some["4"].estimate == 1.0
    assert found.most["4"].estimate == pytest.approx(0.5)  # a: "4" twice; b: "1" twice
    others = [said("a", GREEDY, False, "7"), said("c", 0, True, "1", use="choose")]
    assert votes([*rows, *others]) == {"t": {"a": 1.0, "b": 0.0}}
    # Of two responses each answer has one vote, or both the same: ties count by halves.
    of_a = fmean({0: 0.0, 1: 0.5, 2: 1.0}[sum(pair)] for pair in combinations([1, 1, 0, 0], 2))
    of_b = fmean([0.0, 0.5, 0.0, 0.5, 0.0, 1.0])
    assert found.most["2"].estimate == pytest.approx(fmean([of_a, of_b]))


def test_the_commonest_answer_counts_each_problem_alike():
    rows = [said("a", n, False, "B") for n in range(8)] + [said("a", GREEDY, False, "C", "length")]
    rows += [said("b", 0, True, "C"), said("b", 1, True, "B"), said("c", 0, False, "C"), said("d", 0, False, None)]
    (few,) = results(rows)
    assert few.commonest is None, "three problems have an answer"
    (found,) = results([*rows, said("e", 0, False, "C")])
    assert found.commonest == Commonest("C", 2.5 / 4)


@pytest.mark.parametrize(
    ("kind", "answer", "text", "stated"),
    [
        ("numeric", "11", "4 + 7 = 11 in Roman numerals.", "11"),
        ("numeric", "11", "Nobody knows.", None),
        ("exact", "blue", "**Answer:** blue", "blue"),
    ],
)
def test_a_vote_counts_what_the_checker_reads(tmp_path, kind, answer, text, stated):
    """Of one response the vote is then as often right as the response."""
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "?", "answer": answer}) + "\n")
    read = from_rows(TaskSource(source=str(tmp_path / "t.jsonl"), check=kind))
    assert read.check(read.problems[0], text) == Verdict(float(stated == answer), stated)


def test_who_does_not_end_has_no_vote():
    rows = [said("a", 0, True, "4"), *(said("a", n, False, "9", finish="length") for n in (1, 2, 3))]
    (found,) = results(rows)
    assert found.most["4"].estimate == 1.0
    assert found.of_ended and found.of_ended.estimate == 1.0
    assert found.cut == 0.75
    (none,) = results([said("a", n, False, "9", finish="length") for n in range(2)])
    assert none.of_ended is None and none.most["2"].estimate == 0.0


def test_rounds_are_judged_by_the_mean_of_greedy_and_sampled_accuracy():
    rows = [
        said("a", GREEDY, True),
        said("a", 0, False),
        said("a", 1, True),
        said("b", GREEDY, False),
        said("b", 0, True),
    ]
    assert choosing_scores(rows) == {"t": {"a": 0.75, "b": 0.5}}
    (found,) = results(rows)
    assert found.judged.estimate == pytest.approx(0.625)
    assert choosing_scores([said("a", 0, True)]) == {"t": {"a": 1.0}}, "of one kind alone, that"


def test_problems_that_choose_do_not_report():
    rows = [said("a", GREEDY, True, use="choose"), said("b", GREEDY, False, use="report")]
    assert choosing_scores(rows) == {"t": {"a": 1.0}}
    (found,) = results(rows)
    assert (found.problems, found.judged.estimate, found.chosen_on) == (1, 0.0, False)
    assert results([rows[0]]) == []


def test_where_the_same_problems_choose_and_report_gains_are_corrected_for_the_choice():
    base = [said(f"p{n}", GREEDY, n % 3 == 0) for n in range(30)]
    tuned = [said(f"p{n}", GREEDY, n % 2 == 0) for n in range(30)]
    (one,), (five,) = results(tuned, base, rounds=1), results(tuned, base, rounds=5)
    assert one.chosen_on and one.judged_gain and five.judged_gain
    assert one.judged_gain.estimate == five.judged_gain.estimate
    assert five.judged_gain.low < one.judged_gain.low < one.judged_gain.high < five.judged_gain.high
    apart = [[said(r.problem, r.sample, r.right, use="report") for r in rows] for rows in (tuned, base)]
    (reported,) = results(*apart, rounds=5)
    assert not reported.chosen_on and reported.judged_gain == one.judged_gain


def test_a_problem_that_only_one_of_them_answered_is_left_out_of_the_gain():
    base, tuned = [said("a", GREEDY, False)], [said("a", GREEDY, True), said("b", GREEDY, False)]
    (found,) = results(tuned, base)
    assert found.greedy_gain and found.greedy_gain.estimate == 1.0
    assert found.mcnemar and (found.mcnemar.gained, found.mcnemar.lost) == (1, 0)
    (alone,) = results(tuned, [said("c", GREEDY, True)])
    assert alone.greedy_gain is None and alone.mcnemar is None


def task(problems: int, name: str = "t") -> Task:
    rows = [Problem(f"{n:04x}", f"{n}?", str(n)) for n in range(problems)]
    return Task(name, rows, lambda problem, text: Verdict(0.0))


def divided(of: Task, use, gguf) -> TokenizedTask:
    with Vocabulary.open(gguf) as vocabulary:
        return tokenize_task(of, use, vocabulary, None)


def test_half_of_the_problems_choose_the_same_ones_whatever_the_seed(tiny_llama):
    found = divided(task(41), "auto", tiny_llama)
    assert found.uses.count("choose") == 20 and found.uses.count("report") == 21
    assert found.uses == divided(task(41, "other"), "auto", tiny_llama).uses
    assert found.uses[:20] != ["choose"] * 20, "not the first ones"
    choosing = found.choosing()
    assert [q.id for q in choosing.questions] == [p.id for p in choosing.task.problems]
    assert len(choosing.questions) == 20 and set(choosing.uses) == {"choose"}
    assert divided(task(39), "auto", tiny_llama).uses == ["both"] * 39
    assert divided(task(2), "report", tiny_llama).uses == ["report"] * 2


def test_a_prompt_that_is_asked_twice_does_not_both_choose_and_report(tiny_llama):
    rows = [Problem(f"{n}", f"{n // 2}?", str(n)) for n in range(60)]
    found = divided(Task("t", rows, lambda problem, text: Verdict(0.0)), "auto", tiny_llama)
    uses = {
        row.prompt: {use for r, use in zip(rows, found.uses, strict=True) if r.prompt == row.prompt} for row in rows
    }
    assert all(len(of) == 1 for of in uses.values()) and found.uses.count("choose") == 30


def test_conversations_that_end_alike_are_divided_by_all_that_is_asked(tiny_llama):
    rows = [
        Problem(f"{n}", "Give the number only.", "1", before=[{"role": "user", "content": f"{n}?"}]) for n in range(60)
    ]
    found = divided(Task("t", rows, lambda problem, text: Verdict(0.0)), "auto", tiny_llama)
    assert (found.uses.count("choose"), found.uses.count("report")) == (30, 30)
    alike = [Problem(f"{n}", "The same?", "1") for n in range(60)]
    assert divided(Task("t", alike, lambda problem, text: Verdict(0.0)), "auto", tiny_llama).uses == ["both"] * 60


def test_some_problems_are_left_out(tiny_llama):
    found = divided(task(3), "report", tiny_llama).without({"0001"})
    assert [q.id for q in found.questions] == [p.id for p in found.task.problems] == ["0000", "0002"]
    assert list(found.uses) == ["report"] * 2


@pytest.mark.parametrize(
    ("of_file", "of_folder", "expected"),
    [
        (None, None, 0.7),
        (0.6000000238418579, None, 0.6),
        (0.0, None, 0.7),
        (1e-5, None, 0.7),
        (0.6, '{"temperature": 0.2}', 0.2),
        (None, '\ufeff{"temperature": 1.5}', 1.5),
        (0.3, "[]", 0.3),
    ],
)
def test_the_temperature_is_the_one_that_the_model_recommends(tiny_llama, tmp_path, of_file, of_folder, expected):
    model = gguf_file.read(tiny_llama)
    if of_file is not None:
        model = replace(model, metadata={**model.metadata, "general.sampling.temp": of_file})
    if of_folder:
        (tmp_path / "generation_config.json").write_text(of_folder, encoding="utf-8")
    assert temperature_of("auto", model, tmp_path) == expected
    assert temperature_of(0.9, model, tmp_path) == 0.9
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        temperature_of("auto", model, tmp_path)


def heated(right: dict[float, tuple[bool, bool]]) -> list[Response]:
    """At each temperature whether the problem that chooses, and the one that reports, is right."""
    uses: tuple[Use, Use] = ("choose", "report")
    return [
        said(use, GREEDY if at == 0 else 0, ok, use=use, temperature=at)
        for at, both in right.items()
        for use, ok in zip(uses, both, strict=True)
    ]


def test_the_temperature_is_chosen_on_other_problems_than_it_is_told_of():
    base = heated({0.0: (False, True), 0.3: (True, False), 0.7: (False, True)})
    assert best_temperature(by_temperature(base, "choose")) == 0.3
    cooled = Cooled(0.3, {}, by_temperature(base, "report")[0.3])
    (found,) = at_best(cooled, heated({0.0: (False, False), 0.7: (True, True)}), rounds=1)
    assert (found.base_temperature, found.temperature) == (0.3, 0.7)
    assert (found.base.estimate, found.tuned.estimate, found.gain.estimate) == (0.0, 1.0, 1.0)


def test_one_answer_a_problem_has_one_interval_wherever_it_is_told():
    rows = [said(f"p{n}", GREEDY, n < 3, temperature=0.0) for n in range(10)]
    (alone,) = results(rows)
    assert alone.greedy == alone.judged == wilson(3, 10)
    assert alone.by_kind["mean of both"] == (None, None)
    (found,) = at_best(Cooled(0.0, {}, by_temperature(rows, "report")[0.0]), rows, rounds=1)
    assert found.base == found.tuned == wilson(3, 10)


def test_gains_on_problems_that_choose_say_how_sure_they_are():
    rows = [said(f"p{n}", GREEDY, n < 3) for n in range(20)]
    assert [results(rows, rows, rounds)[0].confidence for rounds in (1, 3)] == [0.95, pytest.approx(1 - 0.05 / 3)]
    reported = [said(f"p{n}", GREEDY, n < 3, use="report") for n in range(20)]
    assert results(reported, reported, 3)[0].confidence == 0.95


def test_of_equally_good_temperatures_the_highest_is_taken():
    tried = heated({0.0: (True, True), 0.3: (True, False), 0.7: (False, True)})
    assert best_temperature(by_temperature(tried, "choose")) == 0.3
